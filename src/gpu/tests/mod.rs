//! Tests on whatever adapter there is: they fail where there is none. `WGPU_BACKEND` and `VK_ICD_FILENAMES`
//! choose one; a software adapter will do.

mod decode;
mod engram;
mod failures;
mod halves;
mod kernels;
mod models;

use crate::bundle::quant::Dtype;
use crate::config::Config;
use crate::config::tests::tiny;
use crate::gpu::KvType;
use crate::gpu::backend::Variant;
use crate::gpu::device::Gpu;

const SERIAL: Variant = Variant { serial: true, f16: false, kv: KvType::F32 };
const PARALLEL: Variant = Variant { serial: false, f16: false, kv: KvType::F32 };
/// Half precision wherever there is a kernel for it.
const HALVES: Variant = Variant { serial: false, f16: true, kv: KvType::F16 };

/// What the adapter can run. A GPU may lack f16; the software adapter has it, or nobody would notice that it is untested.
fn variants() -> Vec<Variant> {
    let gpu = pollster::block_on(Gpu::open(0)).unwrap();
    if gpu.f16 {
        return vec![SERIAL, PARALLEL, HALVES];
    }
    assert!(!gpu.software, "{} has no f16", gpu.name);
    eprintln!("{} has no f16, its kernels are not tested", gpu.name);
    vec![SERIAL, PARALLEL, Variant { f16: false, ..HALVES }]
}

/// Other awkward sizes than [`tiny`]'s: an odd vocabulary, a head of its own, no shared key heads.
fn odd() -> Config {
    Config {
        vocab_size: 1031,
        hidden_size: 288,
        intermediate_size: 416,
        n_layers: 4,
        n_heads: 8,
        n_kv_heads: 8,
        head_dim: 36,
        rope_theta: 100_000.0,
        tied_head: false,
        stem_layers: vec![1, 3],
        ..tiny()
    }
}

/// Every way of storing, and different ones for the two weights of a dense gate.
fn mixed(name: &str) -> Dtype {
    match name {
        "token_embd" => Dtype::Q8,
        _ if name.ends_with("ffn_gate") || name.ends_with("attn_output") => Dtype::F32,
        _ if name.ends_with("engram_key") || name.ends_with("ffn_up") || name.ends_with("attn_qkv") => {
            Dtype::Q8
        }
        _ => Dtype::Q4,
    }
}
