//! Engram kernels against their CPU twins, and whole models with Engram layers.

use super::kernels::{Bench, CAPACITY, POSITION, close, everywhere_with, floats, values};
use super::models::Pair;
use super::{PARALLEL, mixed, odd};
use crate::backend::{Backend, Output, Step, Want};
use crate::bundle::quant::Dtype;
use crate::bundle::random;
use crate::config::Config;
use crate::config::tests::tiny;
use crate::cpu::{engram, kernels};
use crate::engram::Engram;
use crate::engram::config::tests::tiny_engram;
use crate::engram::tests::off_is_the_model_without;
use crate::gpu::{GpuBackend, GpuOptions, Kernels};
use crate::plan::{Op, Plan};

/// Two Engram layers; of the wider model, projections that are split at different rows.
fn with_engram(config: Config) -> Config {
    let head_width = if config.hidden_size == 96 { 24 } else { 56 };
    Config { engram: Some(Engram { head_width, ..tiny_engram() }), ..config }
}

fn everywhere(test: impl Fn(&Bench, &[u32], &str)) {
    everywhere_with(with_engram, test);
}

/// The second Engram layer, so that the index matters.
const INDEX: usize = 1;

#[test]
fn engram_project() {
    everywhere(|b, tokens, what| {
        let c = &b.config;
        let (width, stem) = (c.engram.as_ref().unwrap().width(), c.stem_width());
        let rows = values("rows", tokens.len() * c.row_width());
        let [key, value] = ["engram_key", "engram_value"].map(|name| b.id(&format!("blk.1.{name}")));
        b.run(&[Op::EngramProject { index: INDEX, key, value }], tokens, &rows);
        let heads: Vec<f32> = rows
            .chunks(c.row_width())
            .flat_map(|rows| &rows[stem + INDEX * width..][..width])
            .copied()
            .collect();
        let buffers = b.buffers.engram.as_ref().unwrap();
        b.expect(&format!("{what}, key"), &buffers.key, &b.product(&heads, key));
        b.expect(&format!("{what}, value"), &buffers.value, &b.product(&heads, value));
    });
}

#[test]
fn engram_gate() {
    everywhere(|b, tokens, what| {
        let hidden = b.config.hidden_size;
        let [query_norm, key_norm, conv_norm] =
            ["query", "key", "conv"].map(|name| b.id(&format!("blk.1.engram_{name}_norm")));
        let [x, mut key, mut value] = ["x", "key", "value"].map(|name| values(name, tokens.len() * hidden));
        // Tokens that agree with their key, that don't, and one that has none.
        for (i, key) in key.chunks_mut(hidden).enumerate() {
            let along = [0.0, 0.5, -0.5][i % 3];
            key.iter_mut().zip(&x[i * hidden..]).for_each(|(k, x)| *k += along * x);
        }
        if tokens.len() > 1 {
            key[hidden..2 * hidden].fill(0.0);
        }
        let buffers = b.buffers.engram.as_ref().unwrap();
        b.write(&b.buffers.x, &x);
        b.write(&buffers.key, &key);
        b.write(&buffers.value, &value);
        b.run(&[Op::EngramGate { index: INDEX, query_norm, key_norm, conv_norm }], tokens, &[]);
        let gains = [query_norm, key_norm].map(|id| b.twins[id].vector());
        let eps = b.config.rms_norm_eps;
        let all = x.chunks(hidden).zip(key.chunks(hidden)).zip(value.chunks_mut(hidden));
        for ((x, key), value) in all {
            engram::engram_gate(x, key, gains, eps, value);
        }
        b.expect(&format!("{what}, value"), &buffers.value, &value);
        let mut normed = vec![0.0; value.len()];
        kernels::rms_norm(&value, b.twins[conv_norm].vector(), eps, &mut normed);
        let cached = floats(&b.read(&buffers.cache[INDEX]));
        close(&format!("{what}, cache"), &cached[POSITION * hidden..], &normed, b.tolerance());
    });
}

#[test]
fn engram_conv() {
    everywhere(|b, tokens, what| {
        let hidden = b.config.hidden_size;
        let conv = b.id("blk.1.engram_conv");
        let dilation = b.config.engram.as_ref().unwrap().order();
        let cache = values("cache", CAPACITY * hidden);
        let [x, value] = ["x", "value"].map(|name| values(name, tokens.len() * hidden));
        let buffers = b.buffers.engram.as_ref().unwrap();
        b.write(&buffers.cache[INDEX], &cache);
        b.write(&buffers.value, &value);
        // Where taps reach past the beginning, and where they don't.
        for position in [0, 4, POSITION] {
            b.write(&b.buffers.x, &x);
            b.run_at(position, &[Op::EngramConv { index: INDEX, conv }], tokens, &[]);
            let mut expected = x.clone();
            let all = expected.chunks_mut(hidden).zip(value.chunks(hidden));
            for (i, (x, value)) in all.enumerate() {
                let taps = b.twins[conv].vector();
                engram::engram_conv(&cache, position + i, taps, dilation, value, x);
            }
            b.expect(&format!("{what}, position {position}"), &b.buffers.x, &expected);
        }
    });
}

#[test]
fn whole_models_equal_the_cpu() {
    for kernels in [Kernels::Serial, Kernels::Parallel] {
        Pair::new(&with_engram(tiny()), |_| Dtype::Q4, kernels, None).same();
        Pair::new(&with_engram(odd()), mixed, kernels, None).same();
        // Steps of 39 tokens.
        Pair::new(&with_engram(tiny()), mixed, kernels, Some(60_000)).same();
    }
    // Without STEM layers the Engram rows stand first.
    let config = Config { stem_layers: vec![], ..with_engram(tiny()) };
    Pair::new(&config, mixed, Kernels::Auto, None).same();
}

#[test]
fn values_of_zero_change_no_bit() {
    let tokens: Vec<u32> = (0..21).map(|i| (i * i * 31 + 7) % 300).collect();
    let logits = |config: &Config| {
        let core = random::core(config, 3, |_| Dtype::Q8);
        let tensors: Vec<_> = core.iter().map(|(t, _)| t.clone()).collect();
        let options = GpuOptions { kernels: Kernels::Parallel, ..GpuOptions::new(50) };
        let mut gpu = pollster::block_on(GpuBackend::new(&tensors, config, options)).unwrap();
        for (id, (tensor, planes)) in core.iter().enumerate() {
            if !tensor.name.ends_with("engram_value") {
                gpu.write(id, 0, planes).unwrap();
            }
        }
        let rows: Vec<f32> = tokens.iter().flat_map(|t| random::rows(config, *t, 3)).collect();
        let step = Step { tokens: &tokens, position: 0, rows: &rows, want: Want::Logits };
        match pollster::block_on(gpu.forward(step)).unwrap() {
            Output::Logits(logits) => logits,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(logits(&with_engram(tiny())), logits(&tiny()));
}

#[test]
fn off_it_is_the_model_without() {
    for kernels in [Kernels::Serial, Kernels::Parallel] {
        off_is_the_model_without(|config, tensors| {
            let options = GpuOptions { kernels, ..GpuOptions::new(100) };
            pollster::block_on(GpuBackend::new(tensors, config, options)).unwrap()
        });
    }
}

#[test]
fn an_engram_layer_takes_three_dispatches() {
    let b = Bench::new(&with_engram(tiny()), |_| Dtype::Q8, PARALLEL, 1.0);
    let program = b.compile(&Plan::of_config(&b.config).ops);
    for layers in [&program.one, &program.many] {
        let running = layers.dispatches.iter().filter(|dispatch| dispatch.runs(1));
        assert_eq!(running.count(), 1 + 5 * 3 + 3 * 2);
        // The embedding alone: the first layer has head rows.
        assert_eq!(layers.before_rows, 1);
    }
}
