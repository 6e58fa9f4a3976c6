//! Kernels put together from the pieces in `shaders/`, and the dispatches that run them.
//!
//! A kernel is its constants, what it needs of the common pieces, and one file with its `main`; sizes are WGSL
//! constants, so that loops have known lengths. Equal kernels share a pipeline.
//!
//! What stands between `//$ for NAME in LIST` and `//$ end` is repeated, with each of the list in place of `$NAME`, before WGSL
//! sees it: an array that a loop indexes is not kept in registers everywhere, and neither are loads of different rounds of a loop
//! on their way together. The list is `a,b,c`, or `0..N` with a number or a constant of the kernel.
//!
//! | binding | what |
//! |---|---|
//! | 0 | the step's upload |
//! | 1 | the input |
//! | 2 | the norm's gain |
//! | 3 | the output |
//! | 4, 5 | keys and values; 4 is also the STEM index |
//! | 6, 7 | the weight's quants and scales |
//! | 8, 9 | those of the up-projection |
//!
//! Those of Engram layers have some of them otherwise, as `gpu::engram` says.
//!
//! No kernel has more than eight storage buffers, which is what WebGPU guarantees.

use std::collections::HashMap;
use std::fmt::Write as _;
#[cfg(test)]
use std::sync::atomic::Ordering;

use super::device::Gpu;
use crate::backend::{MAX_PENALIZED, MAX_STEP_TOKENS};
use crate::bundle::quant::Dtype;
use crate::config::Config;

/// The pieces of `shaders/`.
pub mod piece {
    macro_rules! pieces {
        ($($name:ident = $file:literal),* $(,)?) => {
            $(pub const $name: &str = include_str!(concat!("../../shaders/", $file));)*
        };
    }
    pieces! {
        ATTENTION = "attention.wgsl",
        ATTENTION_MERGE = "attention_merge.wgsl",
        ATTENTION_SERIAL = "attention_serial.wgsl",
        EMBED = "embed.wgsl",
        ENGRAM_CONV = "engram_conv.wgsl",
        ENGRAM_GATE = "engram_gate.wgsl",
        INPUT_ENGRAM = "input_engram.wgsl",
        INPUT_NORM = "input_norm.wgsl",
        INPUT_PLAIN = "input_plain.wgsl",
        KV_F16 = "kv_f16.wgsl",
        KV_F32 = "kv_f32.wgsl",
        MATMUL = "matmul.wgsl",
        MATMUL_F16 = "matmul_f16.wgsl",
        MATVEC = "matvec.wgsl",
        MATVEC_Q4 = "matvec_q4.wgsl",
        NO_UP = "no_up.wgsl",
        SERIAL = "serial.wgsl",
        STEP = "step.wgsl",
        STORE_ADD = "store_add.wgsl",
        STORE_GATE = "store_gate.wgsl",
        STORE_LOGITS = "store_logits.wgsl",
        STORE_PAIR = "store_pair.wgsl",
        STORE_ROPE = "store_rope.wgsl",
        TOKENS_ALL = "tokens_all.wgsl",
        TOKENS_HEAD = "tokens_head.wgsl",
        TOP_K = "top_k.wgsl",
        UNIT = "unit.wgsl",
        UP_DENSE = "up_dense.wgsl",
        UP_ROW = "up_row.wgsl",
        WEIGHT_F32 = "weight_f32.wgsl",
        WEIGHT_Q4 = "weight_q4.wgsl",
        WEIGHT_Q8 = "weight_q8.wgsl",
    }
}

/// How a kernel uses a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    Read,
    Write,
    Uniform,
}

/// A buffer at a kernel's binding `at`.
#[derive(Debug, Clone, Copy)]
pub struct Binding<'a> {
    pub at: u32,
    pub access: Access,
    pub buffer: &'a wgpu::Buffer,
    /// Where the bound range begins.
    pub offset: u64,
}

impl<'a> Binding<'a> {
    pub fn read(at: u32, buffer: &'a wgpu::Buffer) -> Self {
        Self { at, access: Access::Read, buffer, offset: 0 }
    }

    pub fn write(at: u32, buffer: &'a wgpu::Buffer) -> Self {
        Self { at, access: Access::Write, buffer, offset: 0 }
    }
}

/// The WGSL of one kernel, as it grows.
#[derive(Debug, Clone)]
pub struct Source {
    label: &'static str,
    text: String,
    constants: HashMap<String, usize>,
}

impl Source {
    /// A kernel for a model of these sizes.
    pub fn new(label: &'static str, config: &Config) -> Self {
        let mut source = Self { label, text: String::new(), constants: HashMap::new() };
        let c = config;
        for (name, value) in [
            ("MAX_TOKENS", MAX_STEP_TOKENS),
            ("MAX_PENALIZED", MAX_PENALIZED),
            ("VOCAB", c.vocab_size),
            ("HIDDEN", c.hidden_size),
            ("FFN", c.intermediate_size),
            ("N_HEADS", c.n_heads),
            ("N_KV_HEADS", c.n_kv_heads),
            ("HEAD_DIM", c.head_dim),
            ("Q_DIM", c.q_dim()),
            ("KV_DIM", c.kv_dim()),
            ("STEM_WIDTH", c.stem_width()),
            ("ROW_WIDTH", c.row_width()),
        ] {
            source = source.constant(name, value);
        }
        source.text += &format!("const EPS: f32 = {:?};\n", c.rms_norm_eps);
        source.piece(piece::STEP)
    }

    /// Lets the kernel compute in f16, which the adapter must have.
    pub fn f16(mut self) -> Self {
        self.text.insert_str(0, "enable f16;\n");
        self
    }

    /// Adds `const name: u32`.
    pub fn constant(mut self, name: &str, value: usize) -> Self {
        writeln!(self.text, "const {name}: u32 = {value}u;").expect("a String takes everything");
        self.constants.insert(name.to_owned(), value);
        self
    }

    /// Adds `const name: bool`.
    pub fn flag(mut self, name: &str, value: bool) -> Self {
        writeln!(self.text, "const {name}: bool = {value};").expect("a String takes everything");
        self
    }

    /// Adds a piece.
    pub fn piece(mut self, text: &str) -> Self {
        self.text.push('\n');
        unroll(text.lines(), &[], &self.constants, &mut self.text);
        self
    }

    /// Adds the reader `{name}_unit` of a weight whose planes are bound at `at` and `at + 1`; its first row in
    /// those buffers is row `first` of the tensor.
    pub fn weight(self, name: &str, dtype: Dtype, at: u32, first: usize) -> Self {
        let template = match dtype {
            Dtype::F32 => piece::WEIGHT_F32,
            Dtype::Q8 => piece::WEIGHT_Q8,
            Dtype::Q4 => piece::WEIGHT_Q4,
        };
        let text = template
            .replace("$quants", &at.to_string())
            .replace("$scales", &(at + 1).to_string())
            .replace("$w", name);
        self.constant(&format!("{name}_FIRST"), first).piece(&text)
    }
}

/// Appends `lines` to `out`, with the loops in their comments unrolled and `values` in place of the names of those around them.
fn unroll<'a>(
    lines: impl IntoIterator<Item = &'a str>,
    values: &[(String, String)],
    constants: &HashMap<String, usize>,
    out: &mut String,
) {
    let mut lines = lines.into_iter();
    while let Some(line) = lines.next() {
        let Some(head) = line.trim_start().strip_prefix("//$ for ") else {
            let filled = values.iter().fold(line.to_owned(), |line, (name, value)| line.replace(name, value));
            *out += &filled;
            out.push('\n');
            continue;
        };
        let mut depth = 1;
        let body: Vec<&str> = lines
            .by_ref()
            .take_while(|line| {
                let line = line.trim_start();
                depth += i32::from(line.starts_with("//$ for ")) - i32::from(line == "//$ end");
                depth > 0
            })
            .collect();
        let (name, list) = head.split_once(" in ").expect("for NAME in LIST");
        let each: Vec<String> = match list.strip_prefix("0..") {
            Some(end) => (0..end.parse().unwrap_or_else(|_| constants[end])).map(|n| n.to_string()).collect(),
            None => list.split(',').map(str::to_owned).collect(),
        };
        for value in each {
            let mut values = values.to_vec();
            values.push((format!("${name}"), value));
            unroll(body.iter().copied(), &values, constants, out);
        }
    }
}

/// How many workgroups a dispatch has: `x`, and in y one for each `tile` of the tokens it serves.
#[derive(Debug, Clone, Copy)]
pub struct Groups {
    pub x: usize,
    pub tile: usize,
}

/// What a dispatch is recorded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub tokens: usize,
    /// See [`super::step::parts`].
    pub parts: usize,
}

/// In which steps a dispatch runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum When {
    /// In all of them.
    #[default]
    Always,
    /// Where positions are in one part.
    Whole,
    /// Where they are in several, with workgroups of its own for each of these, in z.
    Parts,
    /// Where they are in several, once for all.
    Merge,
}

/// A recorded dispatch.
#[derive(Debug, Clone)]
pub struct Dispatch {
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    groups: Groups,
    when: When,
    /// Which operation of the plan it belongs to.
    pub op: usize,
}

impl Dispatch {
    /// The same, to run in such steps only.
    pub fn only(self, when: When) -> Self {
        Self { when, ..self }
    }

    /// Workgroups in z; none where it does not run.
    fn depth(&self, parts: usize) -> usize {
        match self.when {
            When::Always => 1,
            When::Whole => usize::from(parts == 1),
            When::Parts if parts > 1 => parts,
            When::Parts => 0,
            When::Merge => usize::from(parts > 1),
        }
    }

    /// Whether it runs where positions are in so many parts.
    pub fn runs(&self, parts: usize) -> bool {
        self.depth(parts) > 0
    }

    /// Records it, if it runs in steps of such a `size`.
    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>, size: Size) {
        if !self.runs(size.parts) {
            return;
        }
        let y = size.tokens.div_ceil(self.groups.tile);
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(self.groups.x as u32, y as u32, self.depth(size.parts) as u32);
    }
}

/// Makes dispatches, and pipelines where there is none yet for the kernel.
#[derive(Debug)]
pub struct Shaders<'a> {
    gpu: &'a Gpu,
    pipelines: HashMap<String, wgpu::ComputePipeline>,
}

impl<'a> Shaders<'a> {
    pub fn new(gpu: &'a Gpu) -> Self {
        Self { gpu, pipelines: HashMap::new() }
    }

    /// A dispatch of the kernel `source` on `bindings`.
    pub fn dispatch(&mut self, source: Source, bindings: &[Binding<'_>], groups: Groups) -> Dispatch {
        let device = &self.gpu.device;
        let label = Some(source.label);
        #[cfg(test)]
        self.gpu.counts.bind_groups.fetch_add(1, Ordering::Relaxed);
        let pipeline = self.pipelines.entry(source.text).or_insert_with_key(|text| {
            #[cfg(test)]
            self.gpu.counts.pipelines.fetch_add(1, Ordering::Relaxed);
            pipeline(device, label, text, bindings)
        });
        let entries: Vec<_> = bindings
            .iter()
            .map(|b| wgpu::BindGroupEntry {
                binding: b.at,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: b.buffer,
                    offset: b.offset,
                    size: None,
                }),
            })
            .collect();
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        Dispatch { pipeline: pipeline.clone(), bind_group, groups, when: When::Always, op: 0 }
    }
}

fn pipeline(
    device: &wgpu::Device,
    label: Option<&'static str>,
    text: &str,
    bindings: &[Binding<'_>],
) -> wgpu::ComputePipeline {
    let entries: Vec<_> = bindings
        .iter()
        .map(|b| wgpu::BindGroupLayoutEntry {
            binding: b.at,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: match b.access {
                    Access::Uniform => wgpu::BufferBindingType::Uniform,
                    access => wgpu::BufferBindingType::Storage { read_only: access == Access::Read },
                },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    let layout =
        device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
    let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label,
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label,
        source: wgpu::ShaderSource::Wgsl(text.into()),
    });
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label,
        layout: Some(&layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            // Kernels write all workgroup memory before they read it.
            zero_initialize_workgroup_memory: false,
            ..Default::default()
        },
        cache: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_in_comments_are_unrolled() {
        let text = "a\n  //$ for i in 0..N\n  //$ for c in x,y\n  $i.$c\n  //$ end\n  -\n  //$ end\nb";
        let mut out = String::new();
        unroll(text.lines(), &[], &HashMap::from([("N".to_owned(), 2)]), &mut out);
        assert_eq!(out, "a\n  0.x\n  0.y\n  -\n  1.x\n  1.y\n  -\nb\n");
        out.clear();
        unroll("//$ for i in 0..1\n$i\n//$ end".lines(), &[], &HashMap::new(), &mut out);
        assert_eq!(out, "0\n");
    }
}
