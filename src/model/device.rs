//! Where to compute: by name, or the best device present.

use tch::{Cuda, Device};

use crate::error::{Error, Result};

/// The device called `name` (`cpu`, `cuda`, `cuda:1`), or without a name the first CUDA device, else
/// the CPU.
///
/// # Errors
/// An unknown name, or a device that is not there.
pub fn pick(name: Option<&str>) -> Result<Device> {
    let found = Cuda::device_count();
    let device = match name {
        None | Some("auto") => Device::cuda_if_available(),
        Some("cpu") => Device::Cpu,
        Some("cuda") => Device::Cuda(0),
        Some(other) => match other.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
            Some(index) => Device::Cuda(index),
            None => {
                return Err(Error::usage(format!(
                    "--device: expected auto, cpu, cuda or cuda:N, found {other}"
                )));
            }
        },
    };
    match device {
        Device::Cuda(index) if index as i64 >= found => Err(Error::failed_with_hint(
            format!("device cuda:{index}: expected fewer than {found}, the CUDA devices found"),
            "leave --device out to use the best one present",
        )),
        device => Ok(device),
    }
}

/// The device in words, as commands name it.
pub fn describe(device: Device) -> String {
    match device {
        Device::Cpu => format!("cpu ({} threads)", tch::get_num_threads()),
        Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_a_device_that_is_not_there_or_unknown() {
        assert_eq!(pick(Some("cpu")).expect("cpu"), Device::Cpu);
        assert_eq!(pick(Some("tpu")).expect_err("unknown").exit_code(), 2);
        let error = pick(Some("cuda:99")).expect_err("nobody has a hundred").to_string();
        assert!(error.starts_with("device cuda:99: expected fewer than "), "{error}");
    }
}
