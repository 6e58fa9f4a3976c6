//! An adapter and its device: how one is chosen, what is asked of it, and how its failures come to light.

use std::future::Future;
#[cfg(test)]
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::channel::oneshot;
use wgpu::{BufferUsages, DeviceType, ErrorFilter, Features, Limits, MapMode};

use crate::error::{Error, Result};

/// Storage buffers that the largest kernel binds; WebGPU guarantees as many.
const STORAGE_BUFFERS: u32 = 8;
/// What is asked for where the adapter has it: everything works without. Only measurements need timestamps.
const WANTED: Features = Features::TIMESTAMP_QUERY.union(Features::SHADER_F16);

/// A device with its queue.
#[derive(Debug, Clone)]
pub struct Gpu {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    /// The adapter in words.
    pub name: String,
    /// Whether the adapter is really the CPU.
    pub software: bool,
    /// Whether kernels may compute in f16.
    pub f16: bool,
    /// Largest binding (and buffer) in bytes.
    pub binding_limit: u64,
    /// Why the device can't be used any more.
    failure: Arc<Mutex<Option<String>>>,
    #[cfg(test)]
    pub counts: Arc<Counts>,
}

/// What has been made on a device and handed to it so far.
#[cfg(test)]
#[derive(Debug, Default)]
pub struct Counts {
    pub buffers: AtomicUsize,
    pub bind_groups: AtomicUsize,
    pub pipelines: AtomicUsize,
    pub submissions: AtomicUsize,
}

impl Gpu {
    /// Opens the best adapter, with bindings of `wanted` bytes or, if it has none so large, its largest.
    pub async fn open(wanted: u64) -> Result<Self> {
        let descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
        let instance = wgpu::Instance::new(descriptor);
        let adapter = instance
            .request_adapter(&wgpu::RequestAdapterOptions {
                power_preference: wgpu::PowerPreference::HighPerformance,
                ..Default::default()
            })
            .await
            .map_err(|e| Error::Gpu(no_adapter(&e)))?;
        let info = adapter.get_info();
        let has = adapter.limits();
        if has.max_storage_buffers_per_shader_stage < STORAGE_BUFFERS {
            return Err(Error::Gpu(format!(
                "{} has {} storage buffers a kernel, {STORAGE_BUFFERS} are needed",
                info.name, has.max_storage_buffers_per_shader_stage
            )));
        }
        let defaults = Limits::default();
        let binding_limit = wanted
            .max(defaults.max_storage_buffer_binding_size)
            .min(has.max_storage_buffer_binding_size)
            .min(has.max_buffer_size);
        let limits = Limits {
            max_storage_buffer_binding_size: binding_limit,
            max_buffer_size: binding_limit,
            ..defaults.or_worse_values_from(&has)
        };
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("xylem"),
                required_limits: limits,
                required_features: adapter.features() & WANTED,
                memory_hints: wgpu::MemoryHints::MemoryUsage,
                ..Default::default()
            })
            .await
            .map_err(|e| Error::Gpu(format!("{}: {e}", info.name)))?;
        let failure = Arc::new(Mutex::new(None));
        let lost = failure.clone();
        device.set_device_lost_callback(move |_, message| {
            note(&lost, format!("the device was lost: {message}"));
        });
        // Browsers only log such errors; natively they would end the process.
        #[cfg(not(target_arch = "wasm32"))]
        {
            let failure = failure.clone();
            device.on_uncaptured_error(Arc::new(move |error| note(&failure, error.to_string())));
        }
        let name = words(&info, &device);
        Ok(Self {
            software: is_software(&info, &name),
            f16: device.features().contains(Features::SHADER_F16),
            name,
            device,
            queue,
            binding_limit,
            failure,
            #[cfg(test)]
            counts: Arc::default(),
        })
    }

    /// Fails if the device has failed before.
    pub fn check(&self) -> Result<()> {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(reason) => Err(Error::Gpu(format!("{}: {reason}", self.name))),
            None => Ok(()),
        }
    }

    /// Runs `work`; the future tells whether the device refused any of it.
    pub fn guarded<T, F: FnOnce() -> T>(&self, work: F) -> (T, impl Future<Output = Result<()>> + use<T, F>) {
        let filters = [ErrorFilter::Internal, ErrorFilter::OutOfMemory, ErrorFilter::Validation];
        let scopes = filters.map(|f| self.device.push_error_scope(f));
        let value = work();
        let [a, b, c] = scopes;
        // The innermost scope is popped first.
        let errors = [c.pop(), b.pop(), a.pop()];
        let name = self.name.clone();
        let collect = async move {
            let found = futures::future::join_all(errors).await;
            // What is out of memory is also invalid later: the cause goes first.
            match found.into_iter().rev().flatten().next() {
                Some(error) => Err(Error::Gpu(format!("{name}: {error}"))),
                None => Ok(()),
            }
        };
        (value, collect)
    }

    /// A buffer of `bytes` that kernels read and write, zero at first.
    pub fn storage(&self, label: &str, bytes: u64) -> wgpu::Buffer {
        self.buffer(label, bytes, BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST)
    }

    /// A buffer of `bytes` of constants.
    pub fn uniform(&self, label: &str, bytes: u64) -> wgpu::Buffer {
        self.buffer(label, bytes, BufferUsages::UNIFORM | BufferUsages::COPY_DST)
    }

    /// A buffer of `bytes` that the CPU reads.
    pub fn readback(&self, bytes: u64) -> wgpu::Buffer {
        self.buffer("readback", bytes, BufferUsages::MAP_READ | BufferUsages::COPY_DST)
    }

    /// A buffer for `usage`.
    pub fn buffer(&self, label: &str, size: u64, usage: BufferUsages) -> wgpu::Buffer {
        let descriptor =
            wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        #[cfg(test)]
        self.counts.buffers.fetch_add(1, Ordering::Relaxed);
        self.device.create_buffer(&descriptor)
    }

    /// Hands the commands to the device.
    pub fn submit(&self, commands: wgpu::CommandBuffer) {
        #[cfg(test)]
        self.counts.submissions.fetch_add(1, Ordering::Relaxed);
        self.queue.submit([commands]);
    }

    /// Lets the device release what it has finished with; in browsers it does so by itself.
    pub fn poll(&self) -> Result<()> {
        let polled = self.device.poll(wgpu::PollType::Poll);
        polled.map(drop).map_err(|e| Error::Gpu(format!("{}: {e}", self.name)))
    }

    /// Reads a readback buffer into `words`, once all submitted work is done.
    pub async fn read_into(&self, buffer: &wgpu::Buffer, words: &mut Vec<u32>) -> Result<()> {
        let (sender, receiver) = oneshot::channel();
        // Unmaps also if this future is dropped while it waits.
        let unmap = Unmap(buffer);
        buffer.map_async(MapMode::Read, .., move |result| {
            // The receiver is gone if nobody waits any more.
            let _ = sender.send(result);
        });
        // In browsers the wait below is enough, and this does nothing.
        let polled = self.device.poll(wgpu::PollType::wait_indefinitely());
        polled.map_err(|e| Error::Gpu(format!("{}: {e}", self.name)))?;
        let mapped = receiver.await;
        self.check()?;
        let unreadable = |e: &dyn std::fmt::Display| Error::Gpu(format!("{}: readback: {e}", self.name));
        mapped.map_err(|e| unreadable(&e))?.map_err(|e| unreadable(&e))?;
        let view = buffer.get_mapped_range(..).map_err(|e| unreadable(&e))?;
        words.clear();
        words.extend(
            view.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])),
        );
        drop(view);
        drop(unmap);
        Ok(())
    }

    /// Reads a readback buffer, once all submitted work is done.
    pub async fn read(&self, buffer: &wgpu::Buffer) -> Result<Vec<u32>> {
        let mut words = Vec::new();
        self.read_into(buffer, &mut words).await?;
        Ok(words)
    }
}

struct Unmap<'a>(&'a wgpu::Buffer);

impl Drop for Unmap<'_> {
    fn drop(&mut self) {
        self.0.unmap();
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn no_adapter(error: &wgpu::RequestAdapterError) -> String {
    format!("no usable adapter: {error}")
}

/// wgpu would list the native backends that a browser lacks.
#[cfg(target_arch = "wasm32")]
fn no_adapter(_: &wgpu::RequestAdapterError) -> String {
    "the browser has no adapter for WebGPU".into()
}

/// Keeps the first failure.
fn note(failure: &Mutex<Option<String>>, reason: String) {
    log::error!("GPU: {reason}");
    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
}

/// Whether the adapter, which says that its name is `name`, computes on the CPU.
pub(crate) fn is_software(info: &wgpu::AdapterInfo, name: &str) -> bool {
    let name = name.to_lowercase();
    let known = ["swiftshader", "llvmpipe", "lavapipe", "basic render"];
    info.device_type == DeviceType::Cpu || known.iter().any(|k| name.contains(k))
}

/// The adapter in words.
fn words(info: &wgpu::AdapterInfo, device: &wgpu::Device) -> String {
    let name = match info.name.as_str() {
        "" => browser_name(device).unwrap_or_else(|| "unnamed adapter".into()),
        name => name.into(),
    };
    format!("{name} ({})", info.backend)
}

/// Most browsers tell no more than the vendor and the architecture, which wgpu does not pass on.
#[cfg(target_arch = "wasm32")]
fn browser_name(device: &wgpu::Device) -> Option<String> {
    use js_sys::Reflect;
    let info = Reflect::get(device.as_webgpu()?, &"adapterInfo".into()).ok()?;
    let known = ["vendor", "architecture"].map(|key| Reflect::get(&info, &key.into()).ok()?.as_string());
    let known: Vec<_> = known.into_iter().flatten().filter(|word| !word.is_empty()).collect();
    (!known.is_empty()).then(|| known.join(" "))
}

#[cfg(not(target_arch = "wasm32"))]
fn browser_name(_: &wgpu::Device) -> Option<String> {
    None
}
