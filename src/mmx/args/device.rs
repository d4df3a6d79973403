//! `--gpu-layers` and `--device`: where the runner's layers are computed.

use mmx_ggml::devices;
use mmx_ggml::run::{LoadOptions, Model};

use crate::error::{Error, Result};
use crate::talk::{note, warning};
use mmx_models::open::Form;

/// The options that say where layers are computed.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct DeviceArgs {
    /// Layers computed on a GPU, counted from the end, the output matrix being the last; by default
    /// all where there is a GPU and mmx was built for it
    #[arg(long, value_name = "N")]
    gpu_layers: Option<usize>,
    /// The GPU, as `mmx doctor` names it, or cpu
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
}

impl DeviceArgs {
    /// Makes the options, of which those in `self` win over a file's.
    pub(crate) fn or(&self, gpu_layers: Option<usize>, device: Option<String>) -> Self {
        Self { gpu_layers: self.gpu_layers.or(gpu_layers), device: self.device.clone().or(device) }
    }

    /// Loads a model for the runner and says where its layers went, if not to the CPU.
    ///
    /// # Errors
    /// Layers for the CPU, a model the runner cannot load.
    pub(crate) fn load(&self, form: &Form) -> Result<Model> {
        self.load_with(form, true)
    }

    /// Loads a model, its weights in the file's order unless `repack`, and says where its layers
    /// went.
    ///
    /// # Errors
    /// Layers for the CPU, a model the runner cannot load.
    pub(crate) fn load_with(&self, form: &Form, repack: bool) -> Result<Model> {
        form.model.warnings.iter().for_each(|warning| warning!("{warning}"));
        let options = LoadOptions { repack, ..self.load_options()? };
        let model = Model::from_gguf(form.to_gguf()?, options)?;
        announce(model.placement());
        Ok(model)
    }

    /// The options to load a model with.
    ///
    /// # Errors
    /// Layers for the CPU.
    pub(crate) fn load_options(&self) -> Result<LoadOptions> {
        let usual = LoadOptions::default();
        let on_cpu = self.device.as_deref().is_some_and(|name| name.eq_ignore_ascii_case("cpu"));
        match (self.gpu_layers, &self.device) {
            (None | Some(0), _) if on_cpu => Ok(usual),
            (Some(layers), _) if on_cpu => {
                Err(Error::usage(format!("--gpu-layers {layers}: expected 0 with --device cpu")))
            }
            (None, None) if devices()?.is_empty() => Ok(usual),
            (layers, device) => Ok(LoadOptions {
                gpu_layers: layers.unwrap_or(usize::MAX),
                device: device.clone(),
                ..usual
            }),
        }
    }
}

/// Says where layers went, if not to the CPU.
pub(crate) fn announce(placement: Option<String>) {
    if let Some(placement) = placement {
        note!("{placement}");
    }
}
