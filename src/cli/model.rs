//! Opening a model for the subcommands that run one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use xylem::backend::Backend;
use xylem::bundle::reader::Rows;
use xylem::bundle::{Bundle, Manifest};
use xylem::convert::Base;
use xylem::cpu::{CpuBackend, KvType};
use xylem::device::Device;
use xylem::edits::{Edited, Instead, KnockOut, Knocked};
use xylem::engram::WithEngram;
use xylem::gpu::{GpuBackend, GpuOptions};
use xylem::session::Session;
use xylem::text::{Template, Tokenizer};

use super::{edit, progress};

/// The CPU reads so many tokens of a prompt at a time.
const CPU_CHUNK: usize = 128;

/// Prompts are read so many tokens at a time.
pub fn chunk(device: &Device) -> usize {
    match device {
        Device::Cpu(_) => CPU_CHUNK,
        Device::Gpu(backend) => backend.chunk(),
    }
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// All cores of the CPU.
    Cpu,
    /// The GPU, through Vulkan, Metal or Direct3D.
    Gpu,
}

/// A device for the model, with room for `context` positions at most; weights are zero until written.
pub fn device(manifest: &Manifest, kind: Kind, context: usize) -> Result<Device> {
    let (tensors, config) = (&manifest.core.tensors, &manifest.config);
    Ok(match kind {
        Kind::Cpu => {
            let mut backend = CpuBackend::new(tensors, config, context);
            backend.set_kv_type(KvType::default());
            Device::Cpu(Box::new(backend))
        }
        Kind::Gpu => {
            let made = GpuBackend::new(tensors, config, GpuOptions::new(context));
            Device::Gpu(Box::new(pollster::block_on(made)?))
        }
    })
}

/// A session and what turns text into its tokens.
#[derive(Debug)]
pub struct Model {
    /// The running model.
    pub session: Session<Device, Edited<Knocked<Rows>>>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template.
    pub template: Option<Template>,
    /// Of the bundle's manifest, none for a dense checkpoint.
    pub hash: Option<String>,
}

impl Model {
    /// The bundle in `dir`, with room for `context` positions at most.
    pub fn bundle(dir: &Path, kind: Kind, context: usize) -> Result<Self> {
        let bundle = Bundle::open(dir)?;
        let (manifest, tokenizer) = (bundle.manifest(), bundle.tokenizer()?);
        let template = bundle.template(&tokenizer)?;
        let mut device = device(manifest, kind, context)?;
        let bar = progress::bytes("Loading", manifest.core_bytes());
        bundle.load_core(&mut device, |done, _| bar.set_position(done))?;
        bar.finish_and_clear();
        let rows = Edited::new(Knocked::new(bundle.rows()?));
        let chunk = chunk(&device);
        let session = Session::new(device, rows, manifest.config.clone(), chunk);
        Ok(Self { session, tokenizer, template, hash: Some(manifest.hash()) })
    }

    /// The dense checkpoint in `path`, in single precision on the CPU.
    pub fn base(path: &Path, context: usize) -> Result<Self> {
        let base = Base::open(path)?;
        let tokenizer = Tokenizer::new(base.tokenizer_json(), base.config().bos_token)?;
        let source = base.chat_template();
        let template = source.map(|s| Template::for_model(s, &tokenizer, base.config())).transpose()?;
        let mut backend = CpuBackend::new(&base.tensors(), base.config(), context);
        base.load(&mut backend)?;
        let device = Device::Cpu(Box::new(backend));
        let rows = Edited::new(Knocked::new(WithEngram::new(None, 0, None)));
        let session = Session::new(device, rows, base.config().clone(), CPU_CHUNK);
        Ok(Self { session, tokenizer, template, hash: None })
    }

    /// Lays the edits in the file `path` over the rows.
    pub fn edit(&mut self, path: &Path) -> Result<()> {
        let edits = edit::read(path)?;
        let hash = self.hash.as_deref().context("a dense checkpoint has no rows to edit")?;
        let overlay =
            edits.overlay(hash, self.session.config()).with_context(|| path.display().to_string())?;
        self.session.rows_mut().set_overlay(overlay);
        Ok(())
    }

    /// Knocks out the rows of `layers`, see [`KnockOut::new`].
    pub fn knock_out(&mut self, instead: Instead, layers: Option<&[usize]>) -> Result<()> {
        let config = self.session.config().clone();
        let rows = self.session.rows_mut().inner_mut();
        let out = pollster::block_on(KnockOut::new(instead, layers, &config, rows.inner()))?;
        rows.set(Some(out));
        Ok(())
    }

    /// The chat template, or why there can be no chat.
    pub fn chat_template(&self) -> Result<&Template> {
        self.template.as_ref().context("this model brings no chat template; use `xylem generate`")
    }

    /// What computes, in words.
    pub fn backend_name(&self) -> String {
        let (kind, device) = self.session.backend().describe();
        format!("{kind}: {device}")
    }
}

/// What takes the place of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InsteadArg {
    /// Zeros.
    Zero,
    /// The mean row of the layer.
    Mean,
    /// The rows of another token.
    Shuffle,
    /// The STEM rows stay, and Engram layers add nothing.
    EngramOff,
}

impl From<InsteadArg> for Instead {
    fn from(instead: InsteadArg) -> Self {
        match instead {
            InsteadArg::Zero => Self::Zero,
            InsteadArg::Mean => Self::Mean,
            InsteadArg::Shuffle => Self::Shuffle,
            InsteadArg::EngramOff => Self::EngramOff,
        }
    }
}

/// Rows to knock out.
#[derive(Debug, clap::Args)]
pub struct Out {
    /// Knocks rows out: what is left is what the core knows.
    #[arg(long, value_enum, value_name = "INSTEAD")]
    pub knock_out: Option<InsteadArg>,
    /// Only of these layers: STEM layers, or for `engram-off` Engram layers.
    #[arg(long, value_name = "LAYERS", value_delimiter = ',', requires = "knock_out")]
    pub knock_out_layers: Option<Vec<usize>>,
}

impl Out {
    /// Knocks out what was asked for.
    pub fn apply(&self, model: &mut Model) -> Result<()> {
        match self.knock_out {
            Some(instead) => model.knock_out(instead.into(), self.knock_out_layers.as_deref()),
            None => Ok(()),
        }
    }
}

/// How the CPU stores keys and values.
#[derive(Debug, clap::Args)]
pub struct Kv {
    /// How the CPU backend stores keys and values: f32, f16 or q8. Less takes less memory and, behind long contexts, less time
    /// (docs/performance.md).
    #[arg(long, value_name = "TYPE")]
    kv_type: Option<KvType>,
}

impl Kv {
    /// Applies what was asked for to a device that holds no positions yet.
    pub fn apply(&self, device: &mut Device) -> Result<()> {
        if let Some(kind) = self.kv_type {
            device.cpu_mut().context("--kv-type is a choice of the CPU backend")?.set_kv_type(kind);
        }
        Ok(())
    }
}

/// Which model: a bundle or a dense checkpoint.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// Folder of the bundle.
    #[arg(long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// The dense checkpoint (GGUF) itself, on the CPU in single precision.
    #[arg(long, value_name = "FILE")]
    pub base: Option<PathBuf>,
}

impl Which {
    /// Opens it.
    pub fn open(&self, kind: Kind, context: usize) -> Result<Model> {
        match (&self.bundle, &self.base) {
            (Some(dir), _) => Model::bundle(dir, kind, context),
            (None, Some(path)) => Model::base(path, context),
            (None, None) => unreachable!("clap wants one of the two"),
        }
    }
}
