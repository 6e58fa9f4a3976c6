//! Where a run computes: on the CPU or, in builds with the feature `heal-gpu`, on a GPU.

use burn_tensor::Device;

use crate::error::Result;

/// A device, and what it is.
#[derive(Debug, Clone)]
pub struct Hardware {
    /// The training library's device.
    pub device: Device,
    /// Its name.
    pub name: String,
}

impl Hardware {
    /// The CPU.
    pub fn cpu() -> Self {
        Self { device: Device::flex(), name: "CPU".into() }
    }

    /// The GPU that the system prefers: `None` where all it has is software, and in builds without the feature `heal-gpu`.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) if there is one, but it can't be used.
    pub fn gpu() -> Result<Option<Self>> {
        #[cfg(feature = "heal-gpu")]
        let found = adapter()?.filter(|(_, software)| !software).map(|(place, _)| place);
        #[cfg(not(feature = "heal-gpu"))]
        let found = None;
        Ok(found)
    }
}

/// Whether the values of tensors on `device` lie in this process's memory.
pub fn on_cpu(device: &Device) -> bool {
    device.clone().inner() == Device::flex()
}

/// The adapter that the system prefers, if any, and whether it is software.
///
/// # Errors
/// [`Error::Gpu`](crate::Error::Gpu) if it can't be used.
#[cfg(feature = "heal-gpu")]
pub fn adapter() -> Result<Option<(Hardware, bool)>> {
    use std::sync::OnceLock;

    use burn_tensor::wgpu::WgpuInitError;

    type Found = std::result::Result<Option<(Hardware, bool)>, String>;
    // The library refuses to open a device a second time.
    static FOUND: OnceLock<Found> = OnceLock::new();
    let open = || match Device::wgpu_options().init_with_setup() {
        Err(WgpuInitError::AdapterUnavailable { .. }) => Ok(None),
        Err(e) => Err(e.to_string()),
        Ok((device, setup)) => {
            let info = setup.adapter.get_info();
            let software = crate::gpu::is_software(&info, &info.name);
            Ok(Some((Hardware { device, name: info.name }, software)))
        }
    };
    FOUND.get_or_init(open).clone().map_err(crate::error::Error::Gpu)
}
