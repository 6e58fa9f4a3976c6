//! What a step makes anew: nothing but its commands.

use std::sync::atomic::Ordering;

use crate::backend::{Backend, Output, Penalty, Step, Want};
use crate::bundle::quant::Dtype;
use crate::bundle::random;
use crate::config::tests::tiny;
use crate::gpu::{GpuBackend, GpuOptions, Kernels};

const SEED: u64 = 3;

#[test]
fn a_token_is_one_submission_and_makes_nothing_on_the_device() {
    let config = tiny();
    let core = random::core(&config, SEED, |_| Dtype::Q4);
    let tensors: Vec<_> = core.iter().map(|(t, _)| t.clone()).collect();
    for kernels in [Kernels::Serial, Kernels::Parallel] {
        let options = GpuOptions { kernels, ..GpuOptions::new(100) };
        let mut gpu = pollster::block_on(GpuBackend::new(&tensors, &config, options)).unwrap();
        for (id, (_, planes)) in core.iter().enumerate() {
            gpu.write(id, 0, planes).unwrap();
        }
        // So small that the steps below have from one to five parts.
        gpu.part = 8;
        let counts = gpu.gpu.counts.clone();
        let made = || {
            [&counts.buffers, &counts.bind_groups, &counts.pipelines]
                .map(|count| count.load(Ordering::Relaxed))
        };
        let submissions = || counts.submissions.load(Ordering::Relaxed);
        let mut step = |tokens: &[u32], position, begun: bool| {
            let rows: Vec<f32> = tokens.iter().flat_map(|t| random::rows(&config, *t, SEED)).collect();
            if begun {
                pollster::block_on(gpu.begin(tokens, position)).unwrap();
            }
            let want = Want::Candidates(Penalty { tokens: &[1, 2], factor: 1.1 });
            let output =
                pollster::block_on(gpu.forward(Step { tokens, position, rows: &rows, want })).unwrap();
            assert!(matches!(output, Output::Candidates(_)));
            [gpu.upload.as_ptr(), gpu.words.as_ptr()]
        };
        step(&[5, 6, 7, 8, 9], 0, false);
        let (before, memory) = (made(), step(&[4], 5, false));
        assert!(before.iter().all(|count| *count > 10), "{before:?}");
        for position in 6..40 {
            // Rows that come late are worth a submission of their own: the first layers run meanwhile.
            let (late, already) = (position % 4 == 0, submissions());
            assert_eq!(step(&[position as u32], position, late), memory, "the step at {position}");
            assert_eq!(submissions() - already, 1 + usize::from(late), "the step at {position}");
        }
        assert_eq!(made(), before);
        assert!(gpu.work().readback_bytes <= 4096);
        assert_eq!(gpu.words.len() as u64 * 4, gpu.work().readback_bytes);
    }
}
