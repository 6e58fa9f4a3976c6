//! Timestamps around each operation. WebGPU takes them at the ends of passes only, so that each operation then has a pass
//! of its own, which costs time too: for measurements, not for use.

use std::cell::RefCell;

use wgpu::{BufferUsages, ComputePassDescriptor, ComputePassTimestampWrites, Features, QueryType};

use super::device::Gpu;
use super::shader::{Dispatch, Size};
use crate::error::Result;
use crate::plan::Plan;
use crate::trace::Times;

/// Timestamps of one submission: what WebGPU guarantees for a set of queries.
const QUERIES: u32 = 4096;
const BYTES: u64 = QUERIES as u64 * 8;

/// Lists of dispatches, each for such a size.
pub type Work<'a> = [(&'a [Dispatch], Size)];

/// Times the operations of steps.
#[derive(Debug)]
pub struct Clock {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    readback: wgpu::Buffer,
    ms_per_tick: f64,
    /// Operations of the step so far, and their milliseconds.
    pending: RefCell<Vec<(usize, f64)>>,
    times: Times,
}

impl Clock {
    /// A clock for `plan`; `None` if the adapter has no timestamps, or the plan is too long for them.
    pub fn new(gpu: &Gpu, plan: &Plan) -> Option<Self> {
        let fits = 2 * (plan.ops.len() + 1) <= QUERIES as usize;
        if !fits || !gpu.device.features().contains(Features::TIMESTAMP_QUERY) {
            return None;
        }
        let queries = gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("clock"),
            ty: QueryType::Timestamp,
            count: QUERIES,
        });
        Some(Self {
            queries,
            resolved: gpu.buffer("clock", BYTES, BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC),
            readback: gpu.readback(BYTES),
            ms_per_tick: f64::from(gpu.queue.get_timestamp_period()) / 1e6,
            pending: RefCell::default(),
            times: Times::new(plan),
        })
    }

    /// Gets ready for a step.
    pub fn begin(&mut self) {
        self.pending.get_mut().clear();
        self.times.begin();
    }

    /// Records `work`, each operation between two timestamps.
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder, work: &Work<'_>) {
        let mut query = 0;
        for (dispatches, size) in work {
            for operation in dispatches.chunk_by(|a, b| a.op == b.op) {
                let mut pass = encoder.begin_compute_pass(&ComputePassDescriptor {
                    label: None,
                    timestamp_writes: Some(ComputePassTimestampWrites {
                        query_set: &self.queries,
                        beginning_of_pass_write_index: Some(query),
                        end_of_pass_write_index: Some(query + 1),
                    }),
                });
                for dispatch in operation {
                    dispatch.record(&mut pass, *size);
                }
                query += 2;
            }
        }
        if query > 0 {
            encoder.resolve_query_set(&self.queries, 0..query, &self.resolved, 0);
            encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.readback, 0, u64::from(query) * 8);
        }
    }

    /// Reads the timestamps of `work`, which was recorded and submitted last.
    pub async fn read(&self, gpu: &Gpu, work: &Work<'_>) -> Result<()> {
        let words = gpu.read(&self.readback).await?;
        let ticks = |pair: &[u32]| u64::from(pair[0]) | u64::from(pair[1]) << 32;
        let operations = work.iter().flat_map(|(dispatches, _)| dispatches.chunk_by(|a, b| a.op == b.op));
        for (operation, words) in operations.zip(words.chunks_exact(4)) {
            // Browsers round, so that an end may come before its beginning.
            let spent = ticks(&words[2..]).saturating_sub(ticks(&words[..2]));
            self.pending.borrow_mut().push((operation[0].op, spent as f64 * self.ms_per_tick));
        }
        Ok(())
    }

    /// Takes what was read into the step's times.
    pub fn collect(&mut self) {
        for (op, ms) in self.pending.get_mut().drain(..) {
            self.times.add(op, ms);
        }
    }

    /// `[ops + 1]`, milliseconds of the last step.
    pub fn times(&self) -> &[f64] {
        self.times.read()
    }
}
