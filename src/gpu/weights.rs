//! The core's tensors on the device: planes as stored, split by rows where a binding can't hold a whole one.

use std::ops::Range;

use super::device::Gpu;
use super::shader::Binding;
use crate::bundle::manifest::Tensor;
use crate::bundle::quant::Dtype;
use crate::error::{Error, Result};

/// More rows never go into one part, so that a dispatch has at most 65,535 workgroups of four rows or more.
const MAX_PART_ROWS: usize = 65_535 * 4;

/// A run of a tensor's rows.
#[derive(Debug)]
pub struct Part {
    /// Which rows. The first is even, since kernels compute rows in pairs.
    pub rows: Range<usize>,
    /// Their quants.
    pub quants: wgpu::Buffer,
    /// Their scales, unless the tensor is stored as f32.
    pub scales: Option<wgpu::Buffer>,
}

impl Part {
    /// Its planes, at binding `at` and the next one.
    pub fn bindings(&self, at: u32) -> impl Iterator<Item = Binding<'_>> {
        [Some(&self.quants), self.scales.as_ref()]
            .into_iter()
            .zip(at..)
            .filter_map(|(plane, at)| Some(Binding::read(at, plane?)))
    }
}

/// A tensor on the device.
#[derive(Debug)]
pub struct Weight {
    /// How it is stored.
    pub dtype: Dtype,
    /// Input width.
    pub width: usize,
    /// Its rows, in order.
    pub parts: Vec<Part>,
    bytes: usize,
}

impl Weight {
    /// Room for `tensor`, all zeros, in bindings of at most `limit` bytes.
    pub fn zeroed(gpu: &Gpu, tensor: &Tensor, limit: u64) -> Result<Self> {
        let width = tensor.shape.last().copied().unwrap_or(0);
        // A vector is one row.
        let rows = tensor.elements().checked_div(width).unwrap_or(0);
        let pair = tensor.dtype.planes(2 * width).into_iter().max().unwrap_or(0).max(1);
        let per_part = (limit as usize / pair * 2).min(MAX_PART_ROWS);
        if per_part == 0 && rows > 1 {
            return Err(Error::Gpu(format!(
                "two rows of {} have {pair} bytes, the adapter {} binds {limit} at once",
                tensor.name, gpu.name
            )));
        }
        let mut parts = Vec::new();
        for first in (0..rows).step_by(per_part.max(1)) {
            let part = first..rows.min(first + per_part.max(1));
            let [quants, scales] = tensor.dtype.planes(part.len() * width);
            let plane = |bytes: usize| gpu.storage(&tensor.name, bytes as u64);
            let scales = (scales > 0).then(|| plane(scales));
            parts.push(Part { rows: part, quants: plane(quants), scales });
        }
        Ok(Self { dtype: tensor.dtype, width, parts, bytes: tensor.bytes() })
    }

    /// Puts `bytes` at `offset` of the planes.
    ///
    /// # Errors
    /// [`Error::Invalid`] if they lie outside, or offset or length is no multiple of four.
    pub fn write(&self, queue: &wgpu::Queue, offset: usize, bytes: &[u8]) -> Result<()> {
        let end = offset.checked_add(bytes.len()).filter(|end| *end <= self.bytes);
        let (Some(end), true) = (end, offset.is_multiple_of(4) && bytes.len().is_multiple_of(4)) else {
            return Err(Error::invalid(
                format!("{} bytes at {offset} of a tensor", bytes.len()),
                format!("it has {}, written in words of four", self.bytes),
            ));
        };
        let quants = self.parts.iter().map(|p| &p.quants);
        let scales = self.parts.iter().filter_map(|p| p.scales.as_ref());
        let mut start = 0;
        for buffer in quants.chain(scales) {
            let size = buffer.size() as usize;
            let (from, to) = (offset.max(start), end.min(start + size));
            if from < to {
                queue.write_buffer(buffer, (from - start) as u64, &bytes[from - offset..to - offset]);
            }
            start += size;
        }
        Ok(())
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }
}
