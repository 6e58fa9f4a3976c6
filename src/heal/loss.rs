//! The loss and its gradient in the student's last states, in slices, so that no more logits than a slice's are ever held.
//!
//! At each position `KL(p_base ‖ p_student) − c · ln p_student(next)`, the second term where the text is given; its gradient
//! in the student's logits is `(1 + c) p_student − p_base − c · onehot(next)`. (Source of distillation on full
//! distributions: Hinton et al., arXiv 1503.02531.)

use burn_tensor::{IndexingUpdateOp, Int, Tensor, TensorData, activation};
use multiversion::multiversion;
use rayon::prelude::*;

use super::batch::Compared;
use super::device::on_cpu;
use super::student::{indices, values};
use crate::cpu::kernels::exp;
use crate::error::Result;

/// Positions whose logits are computed at once.
const SLICE: usize = 256;

/// What comes of comparing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// Sum of the positions' weights.
    pub weight: f64,
    /// Weighted sum of KL(base ‖ student), in nats.
    pub kl: f64,
    /// Weighted sum of −ln p_student(next), over the positions that have a next token.
    pub nll: f64,
    /// The same of the base.
    pub base_nll: f64,
    /// Weight of the positions that have a next token.
    pub nll_weight: f64,
    /// Weight of the positions where both have the same first choice.
    pub same: f64,
}

impl Sums {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.weight += other.weight;
        self.kl += other.kl;
        self.nll += other.nll;
        self.base_nll += other.base_nll;
        self.nll_weight += other.nll_weight;
        self.same += other.same;
    }

    /// The mean of the loss, with `c` times the text's own cross-entropy.
    pub fn loss(&self, c: f64) -> f64 {
        (self.kl + c * self.nll) / self.weight.max(f64::MIN_POSITIVE)
    }
}

/// A position, as the rows of logits need it.
#[derive(Debug, Clone, Copy)]
struct Position {
    weight: f32,
    exchange: [u32; 2],
    next: Option<u32>,
}

/// Figures of one position, before they are weighted.
#[derive(Debug, Clone, Copy)]
struct Figures {
    kl: f32,
    nll: f32,
    base_nll: f32,
    same: bool,
}

/// Compares the states of student and base (both `[compared, hidden]`, normalised, not tracked) under `head`
/// `[vocab, hidden]`, with `c` times the text's own cross-entropy. Without the base's states that is all of the loss.
///
/// Gives the sums and, if `with_gradient`, the gradient of the mean loss in the student's states.
///
/// # Errors
/// [`Error::Gpu`](crate::Error::Gpu) if the device fails.
pub fn compare(
    student: &Tensor<2>,
    base: Option<&Tensor<2>>,
    head: &Tensor<2>,
    compared: &[Compared],
    c: f32,
    with_gradient: bool,
) -> Result<(Sums, Option<Tensor<2>>)> {
    let total: f32 = compared.iter().map(|p| p.weight).sum();
    let mut sums = Sums::default();
    let mut gradients = Vec::new();
    // A GPU keeps its logits; where tensors lie in memory, one pass over them does all.
    let figures_and_slope = if on_cpu(&student.device()) { on_host } else { on_device };
    for (at, slice) in compared.chunks(SLICE).enumerate() {
        let logits = |states: &Tensor<2>| {
            states.clone().narrow(0, at * SLICE, slice.len()).matmul(head.clone().transpose())
        };
        let positions: Vec<Position> =
            slice.iter().map(|p| Position { weight: p.weight, exchange: p.exchange, next: p.next }).collect();
        let scale = 1.0 / total;
        let (figures, slope) = figures_and_slope(logits(student), base.map(logits), &positions, c, scale)?;
        for (p, f) in positions.iter().zip(figures) {
            let w = f64::from(p.weight);
            sums.weight += w;
            sums.kl += w * f64::from(f.kl);
            sums.same += if f.same { w } else { 0.0 };
            if p.next.is_some() {
                sums.nll += w * f64::from(f.nll);
                sums.base_nll += w * f64::from(f.base_nll);
                sums.nll_weight += w;
            }
        }
        if with_gradient {
            gradients.push(slope.matmul(head.clone()));
        }
    }
    Ok((sums, with_gradient.then(|| Tensor::cat(gradients, 0))))
}

/// Figures and weighted slopes in the student's logits, by tensor operations. Without a base the student takes its place:
/// from itself it does not diverge.
fn on_device(
    student: Tensor<2>,
    base: Option<Tensor<2>>,
    positions: &[Position],
    c: f32,
    scale: f32,
) -> Result<(Vec<Figures>, Tensor<2>)> {
    let (n, device) = (positions.len(), student.device());
    let column = |f: &dyn Fn(&Position) -> f32| {
        let column: Vec<f32> = positions.iter().map(f).collect();
        Tensor::<2>::from_data(TensorData::new(column, [n, 1]), &device)
    };
    let next: Tensor<2, Int> =
        indices(positions.iter().map(|p| p.next.unwrap_or(0)), &device).reshape([n, 1]);
    let given = column(&|p| if p.next.is_some() { c } else { 0.0 });
    let ls = activation::log_softmax(student, 1);
    let lb = match base {
        None => ls.clone(),
        Some(base) => {
            let exchanged = indices(positions.iter().flat_map(|p| p.exchange), &device).reshape([n, 2]);
            let two = base.clone().gather(1, exchanged.clone());
            let (a, b) = (two.clone().narrow(1, 0, 1), two.narrow(1, 1, 1));
            // Adding the difference to each exchanges them, and to one and the same token adds nothing.
            let change = Tensor::cat(vec![b.clone() - a.clone(), a - b], 1);
            activation::log_softmax(base.scatter(1, exchanged, change, IndexingUpdateOp::Add), 1)
        }
    };
    let p = lb.clone().exp();
    let kl = (p.clone() * (lb.clone() - ls.clone())).sum_dim(1);
    let nll = ls.clone().gather(1, next.clone()).neg();
    let base_nll = lb.clone().gather(1, next.clone()).neg();
    let same = ls.clone().argmax(1).equal(lb.argmax(1)).float();
    let slope = ls.exp() * (given.clone() + 1.0) - p;
    let slope = slope.scatter(1, next, given.neg(), IndexingUpdateOp::Add);
    let slope = slope * column(&|p| p.weight * scale);
    let figures = values(Tensor::cat(vec![kl, nll, base_nll, same], 1))?;
    let figures =
        figures.chunks_exact(4).map(|f| Figures { kl: f[0], nll: f[1], base_nll: f[2], same: f[3] > 0.5 });
    Ok((figures.collect(), slope))
}

/// The same in one pass over the logits.
fn on_host(
    student: Tensor<2>,
    base: Option<Tensor<2>>,
    positions: &[Position],
    c: f32,
    scale: f32,
) -> Result<(Vec<Figures>, Tensor<2>)> {
    let ([n, vocab], device) = (student.dims(), student.device());
    let mut student = values(student)?;
    let Some(base) = base else {
        let figures = student.par_chunks_exact_mut(vocab).zip(positions).map(|(z, p)| alone(z, p, c, scale));
        let figures = figures.collect();
        return Ok((figures, Tensor::from_data(TensorData::new(student, [n, vocab]), &device)));
    };
    let mut base = values(base)?;
    let rows = student.par_chunks_exact_mut(vocab).zip(base.par_chunks_exact_mut(vocab)).zip(positions);
    let figures = rows.map(|((zs, zb), p)| {
        let [a, b] = p.exchange.map(|id| id as usize);
        zb.swap(a, b);
        let next = p.next.map(|id| id as usize);
        let logits = next.map(|id| (zs[id], zb[id]));
        let c = if next.is_some() { c } else { 0.0 };
        let row = slopes(zs, zb, 1.0 + c, p.weight * scale);
        if let Some(next) = next {
            zs[next] -= c * p.weight * scale;
        }
        let nll = logits.map_or((0.0, 0.0), |(s, b)| (row.log_sums[0] - s, row.log_sums[1] - b));
        Figures { kl: row.kl, nll: nll.0, base_nll: nll.1, same: row.same }
    });
    let figures = figures.collect();
    Ok((figures, Tensor::from_data(TensorData::new(student, [n, vocab]), &device)))
}

/// Figures of a row of the student's `logits` without a base's, which its slopes replace.
fn alone(logits: &mut [f32], p: &Position, c: f32, scale: f32) -> Figures {
    let Some(next) = p.next.map(|id| id as usize) else {
        logits.fill(0.0);
        return Figures { kl: 0.0, nll: 0.0, base_nll: 0.0, same: true };
    };
    let (logit, scale) = (logits[next], c * p.weight * scale);
    let nll = softmax(logits, scale) - logit;
    logits[next] -= scale;
    Figures { kl: 0.0, nll, base_nll: nll, same: true }
}

struct RowFigures {
    kl: f32,
    // ln Σ eᶻ of student and base.
    log_sums: [f32; 2],
    same: bool,
}

/// Lanes in which a row is summed.
const LANES: usize = 8;

/// The largest of a row.
#[inline(always)]
fn largest(z: &[f32]) -> f32 {
    let mut lanes = [f32::MIN; LANES];
    let (chunks, rest) = z.as_chunks::<LANES>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(l, z)| *l = if *z > *l { *z } else { *l });
    }
    lanes.iter().chain(rest).fold(f32::MIN, |m, z| if *z > m { *z } else { m })
}

/// Replaces logits by `scale` times their probabilities. Gives ln Σ eᶻ.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
fn softmax(logits: &mut [f32], scale: f32) -> f32 {
    let most = largest(logits);
    let mut sum = 0f64;
    for part in logits.chunks_mut(64 * LANES) {
        let (chunks, rest) = part.as_chunks_mut::<LANES>();
        let mut lanes = [0f32; LANES];
        for z in chunks {
            for lane in 0..LANES {
                z[lane] = exp(z[lane] - most);
                lanes[lane] += z[lane];
            }
        }
        for z in rest {
            *z = exp(*z - most);
            sum += f64::from(*z);
        }
        // Sums of a part are exact enough in f32, those of all parts less so.
        sum += lanes.iter().map(|v| f64::from(*v)).sum::<f64>();
    }
    let scale = (f64::from(scale) / sum) as f32;
    logits.iter_mut().for_each(|z| *z *= scale);
    (sum.ln() + f64::from(most)) as f32
}

/// Replaces the student's logits by `scale · (total · p_student − p_base)`, and the base's by its probabilities.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
fn slopes(student: &mut [f32], base: &mut [f32], total: f32, scale: f32) -> RowFigures {
    let (ms, mb) = (largest(student), largest(base));
    let first = |z: &[f32], m: f32| z.iter().position(|z| *z == m);
    let same = first(student, ms) == first(base, mb);
    // Σ e^(zs − ms), Σ e^(zb − mb), Σ e^(zb − mb) ((zb − mb) − (zs − ms)).
    let mut sums = [[0f32; LANES]; 3];
    let (mut s, mut b, mut d) = (0f64, 0f64, 0f64);
    for (zs, zb) in student.chunks_mut(64 * LANES).zip(base.chunks_mut(64 * LANES)) {
        let (zs8, zs1) = zs.as_chunks_mut::<LANES>();
        let (zb8, zb1) = zb.as_chunks_mut::<LANES>();
        for (zs, zb) in zs8.iter_mut().zip(zb8) {
            for lane in 0..LANES {
                let (x, y) = (zs[lane] - ms, zb[lane] - mb);
                let (es, eb) = (exp(x), exp(y));
                sums[0][lane] += es;
                sums[1][lane] += eb;
                sums[2][lane] += eb * (y - x);
                (zs[lane], zb[lane]) = (es, eb);
            }
        }
        for (zs, zb) in zs1.iter_mut().zip(zb1) {
            let (x, y) = (*zs - ms, *zb - mb);
            let (es, eb) = (exp(x), exp(y));
            s += f64::from(es);
            b += f64::from(eb);
            d += f64::from(eb * (y - x));
            (*zs, *zb) = (es, eb);
        }
        // Sums of a part are exact enough in f32, those of all parts less so.
        for (sum, lanes) in [&mut s, &mut b, &mut d].into_iter().zip(&mut sums) {
            *sum += lanes.iter().map(|v| f64::from(*v)).sum::<f64>();
            *lanes = [0.0; LANES];
        }
    }
    let (of_student, of_base) = ((f64::from(total * scale) / s) as f32, (f64::from(scale) / b) as f32);
    for (zs, zb) in student.iter_mut().zip(base.iter()) {
        *zs = *zs * of_student - *zb * of_base;
    }
    let log_sums = [(s.ln() + f64::from(ms)) as f32, (b.ln() + f64::from(mb)) as f32];
    // Σ p (ln p − ln q), with ln p = y − ln b and ln q = x − ln s.
    RowFigures { kl: (d / b + s.ln() - b.ln()) as f32, log_sums, same }
}

#[cfg(test)]
mod tests {
    use burn_tensor::Device;

    use super::*;
    use crate::bundle::random::weights;
    use crate::convert::recipe::Matrix;
    use crate::heal::student::{download, upload};

    fn states(name: &str, n: usize, width: usize) -> Tensor<2> {
        let mut values = weights(name, &[n, width], 1);
        values.iter_mut().for_each(|v| *v *= 3.0);
        upload(&Matrix { rows: n, width, values }, &Device::flex())
    }

    fn compared() -> Vec<Compared> {
        let at = |i: u32, weight, exchange, next| Compared { told: i, read: i, weight, exchange, next };
        vec![
            at(0, 1.0, [0, 0], Some(5)),
            at(1, 0.25, [3, 40], None),
            at(2, 1.0, [0, 0], None),
            at(3, 0.5, [7, 7], Some(1000)),
        ]
    }

    #[test]
    fn one_pass_and_tensor_operations_agree() {
        let (student, base, head) = (states("s", 4, 32), states("b", 4, 32), states("h", 1001, 32));
        let logits = |t: &Tensor<2>| t.clone().matmul(head.clone().transpose());
        let positions: Vec<Position> = compared()
            .iter()
            .map(|p| Position { weight: p.weight, exchange: p.exchange, next: p.next })
            .collect();
        for base in [Some(&base), None] {
            let (a, da) = on_host(logits(&student), base.map(logits), &positions, 0.3, 0.7).unwrap();
            let (b, db) = on_device(logits(&student), base.map(logits), &positions, 0.3, 0.7).unwrap();
            for ((a, b), p) in a.iter().zip(&b).zip(&positions) {
                assert!((a.kl - b.kl).abs() < 1e-4 * b.kl.abs().max(1.0), "{a:?} {b:?}");
                assert_eq!(a.same, b.same);
                if p.next.is_some() {
                    assert!(
                        (a.nll - b.nll).abs() < 1e-4 && (a.base_nll - b.base_nll).abs() < 1e-4,
                        "{a:?} {b:?}"
                    );
                }
            }
            let (da, db) = (download(&da).unwrap().values, download(&db).unwrap().values);
            assert!(da.iter().any(|v| v.abs() > 0.01));
            assert!(da.iter().zip(&db).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }

    #[test]
    fn the_gradient_is_the_losss() {
        let (student, base, head) = (states("s", 4, 8), states("b", 4, 8), states("h", 1001, 8));
        let c = 0.4;
        for base in [Some(&base), None] {
            let loss = |states: &Tensor<2>| {
                compare(states, base, &head, &compared(), c, false).unwrap().0.loss(f64::from(c))
            };
            let (sums, gradient) = compare(&student, base, &head, &compared(), c, true).unwrap();
            assert!((sums.weight - 2.75).abs() < 1e-6 && (sums.nll_weight - 1.5).abs() < 1e-6);
            let (gradient, at) = (download(&gradient.unwrap()).unwrap(), download(&student).unwrap());
            let step = 1e-2;
            for i in 0..at.values.len() {
                let moved = |by: f32| {
                    let mut at = at.clone();
                    at.values[i] += by;
                    loss(&upload(&at, &Device::flex()))
                };
                let expected = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
                let found = f64::from(gradient.values[i]);
                let close = (found - expected).abs() < 2e-3 * expected.abs().max(0.5);
                assert!(close, "{i}: {found} for {expected}");
            }
        }
    }

    #[test]
    fn a_copy_of_the_base_has_no_loss() {
        let (base, head) = (states("b", 4, 32), states("h", 1001, 32));
        let none: Vec<Compared> =
            compared().into_iter().map(|p| Compared { exchange: [0, 0], ..p }).collect();
        let (sums, gradient) = compare(&base, Some(&base), &head, &none, 0.0, true).unwrap();
        assert!(sums.kl.abs() < 1e-6 && (sums.same - sums.weight).abs() < 1e-9);
        assert!((sums.nll - sums.base_nll).abs() < 1e-6);
        assert!(download(&gradient.unwrap()).unwrap().values.iter().all(|v| v.abs() < 1e-6));
    }
}
