//! Whole random models against the CPU backend.

use super::{mixed, odd};
use crate::backend::{Backend, Output, Penalty, Step, Want};
use crate::bundle::quant::Dtype;
use crate::bundle::random;
use crate::config::Config;
use crate::config::tests::tiny;
use crate::cpu::CpuBackend;
use crate::gpu::{GpuBackend, GpuOptions, Kernels, KvType};

const SEED: u64 = 3;

pub(super) struct Pair {
    config: Config,
    pub gpu: GpuBackend,
    cpu: CpuBackend,
    steps: usize,
    /// Largest difference of two logits, relative to their spread.
    tolerance: f32,
}

impl Pair {
    pub fn new(config: &Config, dtype: impl Fn(&str) -> Dtype, kernels: Kernels, limit: Option<u64>) -> Self {
        let exact = GpuOptions { kv: KvType::F32, f16: false, ..GpuOptions::new(150) };
        let options = GpuOptions { kernels, binding_limit: limit, ..exact };
        Self::with_options(config, dtype, options, 1e-3)
    }

    pub fn with_options(
        config: &Config,
        dtype: impl Fn(&str) -> Dtype,
        options: GpuOptions,
        tolerance: f32,
    ) -> Self {
        let core = random::core(config, SEED, dtype);
        let tensors: Vec<_> = core.iter().map(|(t, _)| t.clone()).collect();
        let mut gpu = pollster::block_on(GpuBackend::new(&tensors, config, options)).unwrap();
        let mut cpu = CpuBackend::new(&tensors, config, options.capacity);
        for (id, (_, planes)) in core.iter().enumerate() {
            // In pieces and backwards, as a stream could come.
            for (i, piece) in planes.chunks(1000).enumerate().rev() {
                gpu.write(id, i * 1000, piece).unwrap();
            }
            cpu.write(id, 0, planes).unwrap();
        }
        Self { config: config.clone(), gpu, cpu, steps: 0, tolerance }
    }

    fn both(&mut self, tokens: &[u32], position: usize, want: Want<'_>) -> [Output; 2] {
        let rows: Vec<f32> = tokens.iter().flat_map(|t| random::rows(&self.config, *t, SEED)).collect();
        let step = Step { tokens, position, rows: &rows, want };
        // Rows come at once, or late, or for another step than the one that was begun.
        let begun = match self.steps % 3 {
            0 => None,
            1 => Some(tokens),
            _ => Some(&[7u32][..]),
        };
        self.steps += 1;
        if let Some(begun) = begun {
            pollster::block_on(self.gpu.begin(begun, position)).unwrap();
        }
        [pollster::block_on(self.gpu.forward(step)), pollster::block_on(self.cpu.forward(step))]
            .map(Result::unwrap)
    }

    fn same_logits(&mut self, tokens: &[u32], position: usize) {
        let [Output::Logits(gpu), Output::Logits(cpu)] = self.both(tokens, position, Want::Logits) else {
            panic!("logits were wanted");
        };
        assert_eq!(gpu.len(), tokens.len() * self.config.vocab_size);
        assert_eq!(gpu.len(), cpu.len());
        let (min, max) = cpu.iter().fold((f32::MAX, f32::MIN), |(a, b), l| (a.min(*l), b.max(*l)));
        for (i, (g, c)) in gpu.iter().zip(&cpu).enumerate() {
            let error = (g - c).abs();
            assert!(error <= self.tolerance * (max - min), "position {position}, logit {i}: {g} for {c}");
        }
    }

    fn same_candidates(&mut self, tokens: &[u32], position: usize, penalty: Penalty<'_>) {
        let [Output::Candidates(gpu), Output::Candidates(cpu)] =
            self.both(tokens, position, Want::Candidates(penalty))
        else {
            panic!("candidates were wanted");
        };
        assert_eq!(gpu.top.len(), cpu.top.len());
        assert!((gpu.log_sum_exp - cpu.log_sum_exp).abs() < self.tolerance);
        for (g, c) in gpu.top.iter().zip(&cpu.top) {
            assert!((g.1 - c.1).abs() < self.tolerance, "{g:?} for {c:?}");
        }
        assert_eq!(gpu.top[0].0, cpu.top[0].0);
    }

    /// Everything that a session does.
    pub fn same(&mut self) {
        let vocab = self.config.vocab_size as u32;
        let tokens: Vec<u32> = (0..120).map(|i| (i * i * 31 + 7) % vocab).collect();
        self.same_logits(&tokens[..45], 0);
        for i in 45..48 {
            self.same_logits(&tokens[i..=i], i);
        }
        assert_eq!(self.both(&tokens[48..81], 48, Want::Nothing), [Output::Nothing, Output::Nothing]);
        let penalty = Penalty { tokens: &tokens[..20], factor: 1.4 };
        let mut distinct = penalty.tokens.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let penalty = Penalty { tokens: &distinct, ..penalty };
        self.same_candidates(&tokens[81..83], 81, penalty);
        self.same_candidates(&tokens[83..84], 83, penalty);
        // The end of the conversation is written anew.
        self.same_logits(&tokens[10..14], 20);
        self.same_candidates(&tokens[14..15], 24, Penalty::default());
    }
}

#[test]
fn equals_the_cpu_with_serial_kernels() {
    Pair::new(&tiny(), |_| Dtype::Q4, Kernels::Serial, None).same();
    Pair::new(&odd(), mixed, Kernels::Serial, None).same();
}

#[test]
fn equals_the_cpu_with_parallel_kernels() {
    Pair::new(&tiny(), |_| Dtype::Q4, Kernels::Parallel, None).same();
    Pair::new(&odd(), mixed, Kernels::Parallel, None).same();
}

#[test]
fn equals_the_cpu_where_bindings_are_small() {
    // Room for 93 positions and 13 tokens; matrices are split, gate and up at different rows.
    let limit = Some(12_000);
    for kernels in [Kernels::Serial, Kernels::Parallel] {
        let mut pair = Pair::new(&tiny(), mixed, kernels, limit);
        assert_eq!(pair.gpu.capacity(), 93);
        pair.same();
    }
}

#[test]
fn vocabularies_smaller_than_the_candidates() {
    let config = Config { vocab_size: 77, stem_layers: Vec::new(), ..tiny() };
    Pair::new(&config, |_| Dtype::Q8, Kernels::Auto, None).same();
}

#[test]
fn a_context_of_several_tiles_and_parts_of_attention() {
    let config = Config { context_length: 1600, n_layers: 2, stem_layers: vec![0], ..tiny() };
    for kernels in [Kernels::Serial, Kernels::Parallel] {
        for (kv, tolerance) in [(KvType::F32, 1e-3), (KvType::F16, 1e-2)] {
            let options = GpuOptions { kernels, kv, f16: false, ..GpuOptions::new(1600) };
            let mut pair = Pair::with_options(&config, |_| Dtype::Q8, options, tolerance);
            let tokens: Vec<u32> = (0..1600).map(|i| (i * i * 31 + 7) % 300).collect();
            for (i, chunk) in tokens[..1500].chunks(125).enumerate() {
                pair.both(chunk, i * 125, Want::Nothing);
            }
            // In one part, six, four and six.
            pair.same_logits(&tokens[1500..1520], 1500);
            pair.same_logits(&tokens[1520..1521], 1520);
            pair.same_logits(&tokens[1521..1528], 1521);
            pair.same_logits(&tokens[1528..1530], 1528);
            pair.same_candidates(&tokens[700..701], 700, Penalty::default());
            // Parts of any size.
            pair.gpu.part = 100;
            pair.same_logits(&tokens[701..702], 701);
        }
    }
}

#[test]
fn tokens_whose_commands_were_recorded_during_the_one_before() {
    for kernels in [Kernels::Serial, Kernels::Parallel] {
        let mut pair = Pair::new(&tiny(), |_| Dtype::Q4, kernels, None);
        // One part more every seven positions, and then those commands are for other steps.
        pair.gpu.part = 7;
        for position in 0..40 {
            // The rows of some are late; others read several tokens.
            pair.steps = usize::from(position % 11 == 10);
            let tokens = [position as u32 * 37 % 300, 5];
            let n = if position % 13 == 12 { 2 } else { 1 };
            pair.same_candidates(&tokens[..n], position, Penalty::default());
        }
    }
}
