//! Whole models in half precision against the CPU backend in single precision.

use super::models::Pair;
use super::{mixed, odd, variants};
use crate::backend::Backend;
use crate::bundle::quant::Dtype;
use crate::config::tests::tiny;
use crate::gpu::{GpuOptions, Kernels, KvType};

/// Of the logits' spread; in single precision 1e-3 is enough.
const TOLERANCE: f32 = 1e-2;

#[test]
fn products_and_cache_in_halves() {
    let options = GpuOptions { kernels: Kernels::Parallel, ..GpuOptions::new(150) };
    let f16 = variants().iter().any(|variant| variant.f16);
    for (config, dtype) in [(tiny(), (|_| Dtype::Q4) as fn(&str) -> Dtype), (odd(), mixed)] {
        let mut pair = Pair::with_options(&config, dtype, options, TOLERANCE);
        assert_eq!(pair.gpu.describe().1.ends_with(", f16"), f16);
        pair.same();
    }
}

#[test]
fn a_cache_of_halves_takes_half_the_room() {
    for kernels in [Kernels::Serial, Kernels::Parallel] {
        let options = GpuOptions { kernels, f16: false, ..GpuOptions::new(150) };
        let mut halves = Pair::with_options(&tiny(), mixed, options, TOLERANCE);
        // Before logits are wanted, which make a buffer.
        let bytes = halves.gpu.bytes();
        halves.same();
        assert!(!halves.gpu.describe().1.ends_with(", f16"));
        let single = GpuOptions { kv: KvType::F32, ..options };
        let single = Pair::with_options(&tiny(), mixed, single, TOLERANCE);
        let saved = 2 * tiny().n_layers * tiny().kv_dim() * 150 * 2;
        assert_eq!(bytes + saved as u64, single.gpu.bytes());
        // Where bindings are small there is room for twice as many positions.
        let small = GpuOptions { binding_limit: Some(12_000), ..options };
        assert_eq!(Pair::with_options(&tiny(), mixed, small, TOLERANCE).gpu.capacity(), 150);
    }
}
