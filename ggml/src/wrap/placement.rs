//! Which devices there are, and where the layers of a model lie.
#![expect(unsafe_code, reason = "devices are C objects")]

use llama_cpp_sys_2 as sys;

use crate::error::{Error, Result};
use crate::wrap::cpu::kernels;
use crate::wrap::device::{Device, DeviceRef, Stream};
use crate::wrap::log;

/// The devices there are, the best first as ggml counts. The first call starts their drivers.
///
/// # Errors
/// No kernels for the CPU: nothing can be computed then.
pub fn devices() -> Result<Vec<Device>> {
    Ok(all()?.into_iter().map(DeviceRef::describe).collect())
}

fn all() -> Result<Vec<DeviceRef>> {
    kernels()?; // a dynamic build registers everything there
    let (found, _) = log::capture(|| {
        // SAFETY: indices below the count give static objects.
        unsafe {
            (0..sys::ggml_backend_dev_count())
                .filter_map(|i| DeviceRef::new(sys::ggml_backend_dev_get(i)))
                .filter(|device| {
                    let kind = sys::ggml_backend_dev_type(device.raw());
                    [sys::GGML_BACKEND_DEVICE_TYPE_GPU, sys::GGML_BACKEND_DEVICE_TYPE_IGPU]
                        .contains(&kind)
                })
                .collect()
        }
    });
    Ok(found)
}

impl DeviceRef {
    /// Finds the device of this name, or the first.
    pub(crate) fn find(name: Option<&str>) -> Result<Self> {
        let all = all()?;
        let known: Vec<String> = all.iter().map(|device| device.describe().name).collect();
        let at = match name {
            None => all.first(),
            Some(name) => {
                let at = known.iter().position(|known| known.eq_ignore_ascii_case(name));
                at.and_then(|at| all.get(at))
            }
        };
        at.copied().ok_or_else(|| Error::Request {
            message: format!(
                "device: expected {}, found {}",
                if known.is_empty() {
                    "one (mmx was built without cuda, metal and vulkan, or their drivers see none)"
                        .to_owned()
                } else {
                    format!("one of {}", known.join(", "))
                },
                name.unwrap_or("none")
            ),
        })
    }
}

/// The split of a model's layers between the CPU and a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Split {
    /// The device beside the CPU.
    pub(crate) device: DeviceRef,
    /// The first layer on it; the output matrix counts as the layer after the last.
    pub(crate) first_layer: usize,
}

/// A device and the CPU, between which ggml's scheduler divides graphs.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) device: Stream,
    pub(crate) cpu: Stream,
}

impl Pair {
    pub(crate) fn start(device: DeviceRef) -> Result<Self> {
        Ok(Self { device: device.start()?, cpu: kernels()?.device.start()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_named() {
        let message = DeviceRef::find(Some("Abacus7")).unwrap_err().to_string();
        assert!(message.ends_with("found Abacus7"), "{message}");
        for device in devices().unwrap() {
            let found = DeviceRef::find(Some(&device.name.to_lowercase())).unwrap();
            assert_eq!(found.describe().name, device.name);
        }
    }
}
