//! What goes wrong becomes an error, never a panic.

use crate::backend::{Backend, Penalty, Step, Want};
use crate::bundle::manifest::Tensor;
use crate::bundle::quant::Dtype;
use crate::bundle::random;
use crate::config::Config;
use crate::config::tests::tiny;
use crate::error::Error;
use crate::gpu::device::Gpu;
use crate::gpu::{GpuBackend, GpuOptions};

fn tensors(config: &Config) -> Vec<Tensor> {
    random::core(config, 1, |_| Dtype::Q4).into_iter().map(|(t, _)| t).collect()
}

fn backend() -> GpuBackend {
    pollster::block_on(GpuBackend::new(&tensors(&tiny()), &tiny(), GpuOptions::new(50))).unwrap()
}

fn forward(backend: &mut GpuBackend, tokens: &[u32], position: usize) -> Result<(), Error> {
    let rows = vec![0.5; tokens.len() * tiny().row_width()];
    let want = Want::Candidates(Penalty::default());
    pollster::block_on(backend.forward(Step { tokens, position, rows: &rows, want })).map(drop)
}

#[test]
fn a_lost_device_fails_every_step_from_then_on() {
    let mut backend = backend();
    forward(&mut backend, &[1, 2], 0).unwrap();
    // Leaves commands for the next one.
    forward(&mut backend, &[3], 2).unwrap();
    backend.gpu.device.destroy();
    for _ in 0..2 {
        let error = forward(&mut backend, &[1], 3).unwrap_err();
        assert!(matches!(error, Error::Gpu(_)), "{error}");
    }
    let error = backend.write(0, 0, &[0; 8]).and_then(|()| forward(&mut backend, &[1], 0)).unwrap_err();
    assert!(matches!(error, Error::Gpu(_)), "{error}");
}

#[test]
fn what_the_device_refuses_is_an_error() {
    let gpu = pollster::block_on(Gpu::open(0)).unwrap();
    let ((), errors) = gpu.guarded(|| drop(gpu.storage("too large", gpu.binding_limit + 4)));
    let error = pollster::block_on(errors).unwrap_err();
    assert!(matches!(error, Error::Gpu(_)), "{error}");
    // The scope took it: the device is still good.
    gpu.check().unwrap();
    drop(gpu.storage("also too large", gpu.binding_limit + 4));
    assert!(matches!(gpu.check(), Err(Error::Gpu(_))));
}

#[test]
fn wrong_arguments_are_refused() {
    let mut backend = backend();
    let last = tensors(&tiny()).len();
    assert!(backend.write(last, 0, &[0; 4]).is_err());
    assert!(backend.write(1, 96 * 4 - 4, &[0; 8]).is_err());
    assert!(backend.write(1, usize::MAX - 3, &[0; 8]).is_err());
    assert!(backend.write(1, 2, &[0; 4]).is_err());
    backend.write(1, 96 * 4 - 4, &[0; 4]).unwrap();
    let mut refuse =
        |tokens: &[u32], position| forward(&mut backend, tokens, position).unwrap_err().to_string();
    assert!(refuse(&[], 0).contains("0 tokens"));
    assert!(refuse(&[300], 0).contains("token 300"));
    assert!(refuse(&[1], 3).contains("holds 0 positions"));
    assert!(refuse(&[1; 51], 0).contains("51 tokens"));
}

#[test]
fn weights_that_are_not_finite_make_an_error() {
    let mut backend = backend();
    // Every gain of the last norm is NaN.
    let last_norm = tensors(&tiny()).len() - 1;
    backend.write(last_norm, 0, &[0xff; 96 * 4]).unwrap();
    let error = forward(&mut backend, &[1], 0).unwrap_err();
    assert!(error.to_string().contains("finite"), "{error}");
}

#[test]
fn tensors_of_another_model_are_refused() {
    let other = Config { hidden_size: 64, ..tiny() };
    let made = pollster::block_on(GpuBackend::new(&tensors(&tiny()), &other, GpuOptions::new(50)));
    assert!(made.unwrap_err().to_string().contains("tensors"));
    let small = GpuOptions { binding_limit: Some(64), ..GpuOptions::new(50) };
    let made = pollster::block_on(GpuBackend::new(&tensors(&tiny()), &tiny(), small));
    assert!(made.unwrap_err().to_string().contains("64 bytes"));
}

#[test]
fn software_is_refused_where_hardware_is_wanted() {
    let software = backend().is_software();
    let options = GpuOptions { hardware_only: true, ..GpuOptions::new(50) };
    let made = pollster::block_on(GpuBackend::new(&tensors(&tiny()), &tiny(), options));
    match made {
        Ok(backend) => assert!(!software && !backend.is_software()),
        Err(error) => assert!(software && error.to_string().contains("is software"), "{error}"),
    }
}
