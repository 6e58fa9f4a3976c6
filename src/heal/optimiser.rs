//! AdamW (source: Loshchilov & Hutter, arXiv 1711.05101) with a clipped gradient, and the course of its rates.

use std::collections::BTreeMap;

use burn_tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use super::device::on_cpu;
use super::settings::{Optimiser, Rates};
use super::start::Group;
use super::student::{Tensors, upload, values};
use crate::convert::recipe::Matrix;
use crate::error::Result;

/// Values that one thread takes at once.
const CHUNK: usize = 1 << 14;

/// A tensor that is trained.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its values.
    pub value: Tensor<2>,
    /// Running mean of its gradient.
    pub first: Tensor<2>,
    /// Running mean of the gradient's square.
    pub second: Tensor<2>,
}

/// All that is trained, by name.
#[derive(Debug, Clone, Default)]
pub struct Parameters(pub BTreeMap<String, Parameter>);

impl Parameters {
    /// Parameters with these values on `device`, and no history.
    pub fn new(tensors: &BTreeMap<String, Matrix>, device: &Device) -> Self {
        let parameter = |m: &Matrix| {
            let zeros = Tensor::zeros([m.rows, m.width], device);
            Parameter { value: upload(m, device), first: zeros.clone(), second: zeros }
        };
        Self(tensors.iter().map(|(name, m)| (name.clone(), parameter(m))).collect())
    }

    /// The values, not tracked.
    pub fn values(&self) -> Tensors {
        self.0.iter().map(|(name, p)| (name.clone(), p.value.clone())).collect()
    }
}

/// How the rates go: up in the first steps, flat, then down to 0. `done` is the share of the run that is over.
pub fn course(settings: &Optimiser, step: u64, done: f64) -> f64 {
    let up = (step + 1) as f64 / settings.warm_up.max(1) as f64;
    let down = if settings.flat < 1.0 { (1.0 - done) / (1.0 - settings.flat) } else { 1.0 };
    up.min(down).clamp(0.0, 1.0)
}

/// The numbers of one update.
#[derive(Debug, Clone, Copy)]
struct Update {
    beta1: f32,
    beta2: f32,
    // The rate over 1 − β₁ᵗ, and 1 over √(1 − β₂ᵗ).
    rate: f32,
    root: f32,
    epsilon: f32,
    // Rate times weight decay.
    decay: f32,
    // What gradients are multiplied with.
    scale: f32,
}

/// Takes step number `step`, counted from 0, at `share` of the peak rates. Gives the gradient's norm before it is clipped.
///
/// # Errors
/// [`Error::Gpu`](crate::Error::Gpu) if the device fails.
pub fn step(
    parameters: &mut Parameters,
    gradients: Tensors,
    settings: &Optimiser,
    rates: &Rates,
    step: u64,
    share: f64,
) -> Result<f64> {
    let norm = norm(&gradients)?;
    let scale = if settings.clip > 0.0 && norm > settings.clip { settings.clip / norm } else { 1.0 };
    let t = step as f64 + 1.0;
    for (name, gradient) in gradients {
        let Some(parameter) = parameters.0.get_mut(&name) else { continue };
        let group = Group::of(&name);
        let rate = share * group.rate(rates);
        let decay = if group == Group::Core { settings.weight_decay } else { 0.0 };
        let update = Update {
            beta1: settings.beta1 as f32,
            beta2: settings.beta2 as f32,
            rate: (rate / (1.0 - settings.beta1.powf(t))) as f32,
            root: (1.0 / (1.0 - settings.beta2.powf(t)).sqrt()) as f32,
            epsilon: settings.epsilon as f32,
            decay: (rate * decay) as f32,
            scale: scale as f32,
        };
        if on_cpu(&parameter.value.device()) {
            on_host(parameter, gradient, update)?;
        } else {
            on_device(parameter, gradient, update);
        }
    }
    Ok(norm)
}

/// The length of all gradients, which lie on one device, as one vector.
fn norm(gradients: &Tensors) -> Result<f64> {
    let Some(first) = gradients.values().next() else { return Ok(0.0) };
    if !on_cpu(&first.device()) {
        // Read at once: a GPU is waited for only once.
        let sums = gradients.values().map(|gradient| gradient.clone().square().sum()).collect();
        return Ok(values(Tensor::cat(sums, 0))?.into_iter().map(f64::from).sum::<f64>().sqrt());
    }
    let mut squares = 0.0;
    for gradient in gradients.values() {
        let values = values(gradient.clone())?;
        // Chunks are summed in their order, so that the sum doesn't depend on the threads.
        let sums: Vec<f64> = values
            .par_chunks(CHUNK)
            .map(|chunk| chunk.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>())
            .collect();
        squares += sums.iter().sum::<f64>();
    }
    Ok(squares.sqrt())
}

/// By tensor operations.
fn on_device(p: &mut Parameter, gradient: Tensor<2>, u: Update) {
    let g = gradient.mul_scalar(u.scale);
    p.first = p.first.clone().mul_scalar(u.beta1) + g.clone().mul_scalar(1.0 - u.beta1);
    p.second = p.second.clone().mul_scalar(u.beta2) + g.square().mul_scalar(1.0 - u.beta2);
    let root = p.second.clone().sqrt().mul_scalar(u.root).add_scalar(u.epsilon);
    p.value = p.value.clone().mul_scalar(1.0 - u.decay) - p.first.clone().mul_scalar(u.rate) / root;
}

/// The same in one pass over memory.
fn on_host(p: &mut Parameter, gradient: Tensor<2>, u: Update) -> Result<()> {
    let (shape, device) = (p.value.dims(), p.value.device());
    // What is held elsewhere too would be copied.
    let take = |tensor: &mut Tensor<2>| {
        let whole = std::mem::replace(tensor, Tensor::empty([0, 0], &device));
        values(whole)
    };
    let (mut value, mut first, mut second) = (take(&mut p.value)?, take(&mut p.first)?, take(&mut p.second)?);
    let gradient = values(gradient)?;
    value
        .par_chunks_mut(CHUNK)
        .zip(first.par_chunks_mut(CHUNK))
        .zip(second.par_chunks_mut(CHUNK))
        .zip(gradient.par_chunks(CHUNK))
        .for_each(|(((value, first), second), gradient)| {
            for (((v, m), s), g) in value.iter_mut().zip(first).zip(second).zip(gradient) {
                let g = g * u.scale;
                *m = u.beta1 * *m + (1.0 - u.beta1) * g;
                *s = u.beta2 * *s + (1.0 - u.beta2) * g * g;
                *v = *v * (1.0 - u.decay) - u.rate * *m / (s.sqrt() * u.root + u.epsilon);
            }
        });
    let put = |values: Vec<f32>| Tensor::from_data(TensorData::new(values, shape), &device);
    (p.value, p.first, p.second) = (put(value), put(first), put(second));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heal::student::download;

    fn parameters(values: &[f32]) -> Parameters {
        let matrix = Matrix { rows: 1, width: values.len(), values: values.into() };
        Parameters::new(&[("blk.0.a.lora_a".to_owned(), matrix)].into(), &Device::flex())
    }

    fn gradient(values: &[f32]) -> Tensor<2> {
        upload(&Matrix { rows: 1, width: values.len(), values: values.into() }, &Device::flex())
    }

    fn value(p: &Parameters) -> Vec<f32> {
        p.0.values().flat_map(|p| download(&p.value).unwrap().values).collect()
    }

    #[test]
    fn steps_are_those_of_the_definition() {
        let settings = Optimiser { weight_decay: 0.1, clip: 2.0, ..Optimiser::default() };
        let rates = Rates { core: 0.01, ..Rates::default() };
        let mut p = parameters(&[1.0, -2.0, 0.5]);
        let gradients = [[3.0, 0.0, -4.0], [0.1, 0.2, 0.3], [-1.0, 0.5, 0.0]];
        let (mut m, mut v, mut x) = ([0f64; 3], [0f64; 3], [1.0, -2.0, 0.5f64]);
        for (t, g) in gradients.iter().enumerate() {
            let all = [("blk.0.a.lora_a".to_owned(), gradient(g))].into();
            let norm = step(&mut p, all, &settings, &rates, t as u64, 0.5).unwrap();
            let expected = g.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
            assert!((norm - expected).abs() < 1e-6);
            let clip = (2.0 / expected).min(1.0);
            let (b1, b2, t) = (settings.beta1, settings.beta2, t as i32 + 1);
            for i in 0..3 {
                let g = f64::from(g[i]) * clip;
                m[i] = b1 * m[i] + (1.0 - b1) * g;
                v[i] = b2 * v[i] + (1.0 - b2) * g * g;
                let (m, v) = (m[i] / (1.0 - b1.powi(t)), v[i] / (1.0 - b2.powi(t)));
                x[i] -= 0.005 * (m / (v.sqrt() + settings.epsilon) + 0.1 * x[i]);
            }
        }
        let found = value(&p);
        assert!(found.iter().zip(&x).all(|(f, x)| (f64::from(*f) - x).abs() < 1e-6), "{found:?} {x:?}");
    }

    #[test]
    fn one_pass_and_tensor_operations_agree() {
        let u =
            Update { beta1: 0.9, beta2: 0.98, rate: 0.1, root: 7.0, epsilon: 1e-8, decay: 0.01, scale: 0.5 };
        let mut both = [parameters(&[1.0, 2.0, -3.0]), parameters(&[1.0, 2.0, -3.0])];
        for g in [[0.5, -1.0, 0.0], [0.1, 2.0, 0.0]] {
            let [a, b] = &mut both;
            a.0.values_mut().for_each(|p| on_host(p, gradient(&g), u).unwrap());
            b.0.values_mut().for_each(|p| on_device(p, gradient(&g), u));
        }
        let [a, b] = both.map(|p| value(&p));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6), "{a:?} {b:?}");
    }

    #[test]
    fn rates_rise_and_fall() {
        let settings = Optimiser { warm_up: 4, flat: 0.5, ..Optimiser::default() };
        let at = |step, done| course(&settings, step, done);
        assert_eq!((at(0, 0.0), at(3, 0.1), at(9, 0.5), at(9, 0.75), at(9, 1.0)), (0.25, 1.0, 1.0, 0.5, 0.0));
        assert_eq!(course(&Optimiser { warm_up: 0, flat: 1.0, ..settings }, 0, 1.0), 1.0);
    }
}
