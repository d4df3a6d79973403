//! The programs that open what mmx writes: which form each reads, the versions that were tried, and
//! what each cannot carry; which families it has is said in each family's own file. `doctor` and
//! [`check`](mod@super::check) read it here, docs/consumers says how each is used.

use mmx_converters::arch::{Config, Layout};

/// A form that a program reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// The Transformers folder.
    Folder,
    /// The GGUF.
    Gguf,
    /// Both.
    Both,
}

/// A program that opens what mmx writes.
#[derive(Debug)]
pub struct Consumer {
    /// Its name.
    pub name: &'static str,
    /// The versions that were tried; nothing for mmx itself, and for what was read in its sources.
    pub tried: Option<&'static str>,
    /// The form that it reads.
    pub reads: Reads,
    /// How it is asked for a text, where it is a Python package.
    pub asked: Option<Asked>,
    /// A remark on a model of a form that it reads, or the reason why it cannot carry it.
    own: fn(&Config) -> Result<String, String>,
}

/// How a Python package is asked: the function of `ask.py`, and the modules that it needs.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The function.
    pub function: &'static str,
    /// The modules; the first one's version is the program's.
    pub modules: &'static [&'static str],
}

impl Consumer {
    /// A remark on a model, or the reason why the program cannot carry it.
    ///
    /// # Errors
    /// The reason, a sentence.
    pub fn carries(&self, config: &Config) -> Result<String, String> {
        let layout = match self.reads {
            Reads::Folder => Layout::Transformers,
            Reads::Gguf | Reads::Both => Layout::Gguf,
        };
        config.check_carried_by(layout).map_err(|error| error.to_string())?;
        if !config.family.is_known_to(self.name) {
            return Err(match self.reads {
                Reads::Folder => format!("it has no {}", config.family.transformers_model_type()),
                Reads::Gguf | Reads::Both => format!("it has no {}", self.form(config)),
            });
        }
        (self.own)(config)
    }

    /// The class or architecture under which it runs a model.
    pub fn form(&self, config: &Config) -> &'static str {
        match self.reads {
            Reads::Folder => config.family.transformers_class(),
            Reads::Gguf | Reads::Both => config.family.gguf_arch(),
        }
    }
}

/// All of them, in the order in which they are shown.
#[rustfmt::skip]
pub static CONSUMERS: [Consumer; 16] = [
    python("Transformers", "5.24.0, 4.57.6", Reads::Folder, everything, "transformers", &["transformers", "torch"]),
    python("vLLM", "0.32.0", Reads::Folder, vllm, "vllm", &["vllm"]),
    program("llama.cpp", Some("b10488"), Reads::Gguf, everything),
    program("Ollama", Some("0.33.0"), Reads::Gguf, ollama),
    program("mmx", None, Reads::Gguf, everything),
    program("candle", None, Reads::Gguf, candle),
    python("mistral.rs", "0.9.5", Reads::Both, mistral_rs, "mistral_rs", &["mistralrs"]),
    python("Transformers of GGUF", "5.24.0", Reads::Gguf, gguf_loader, "transformers_gguf", &["transformers", "torch", "gguf"]),
    python("llama-cpp-python", "0.3.36", Reads::Gguf, everything, "llama_cpp_python", &["llama_cpp"]),
    program("TRL", Some("1.16.0"), Reads::Folder, everything),
    program("PEFT", Some("0.21.2"), Reads::Folder, everything),
    python("MLX", "0.32.2, 0.32.0", Reads::Folder, everything, "mlx", &["mlx_lm"]),
    python("CTranslate2", "4.8.5", Reads::Folder, everything, "ctranslate2", &["ctranslate2", "transformers", "torch"]),
    python("ONNX Runtime", "optimum-onnx 0.1.0", Reads::Folder, optimum, "onnx", &["optimum.onnxruntime"]),
    python("ONNX Runtime GenAI", "0.18.0", Reads::Folder, everything, "onnx_genai", &["onnxruntime_genai", "transformers", "torch"]),
    program("Open WebUI", Some("0.12.4"), Reads::Gguf, served),
];

const fn program(
    name: &'static str,
    tried: Option<&'static str>,
    reads: Reads,
    own: fn(&Config) -> Result<String, String>,
) -> Consumer {
    Consumer { name, tried, reads, asked: None, own }
}

const fn python(
    name: &'static str,
    tried: &'static str,
    reads: Reads,
    own: fn(&Config) -> Result<String, String>,
    function: &'static str,
    modules: &'static [&'static str],
) -> Consumer {
    Consumer { name, tried: Some(tried), reads, asked: Some(Asked { function, modules }), own }
}

fn everything(_: &Config) -> Result<String, String> {
    Ok(String::new())
}

fn ollama(_: &Config) -> Result<String, String> {
    Ok("through the GGUF; `mmx ollama create`".to_owned())
}

fn served(_: &Config) -> Result<String, String> {
    Ok("through `mmx serve`, by its OpenAI or its Ollama connection".to_owned())
}

/// Head sizes of vLLM's attention on CPUs. Source: vLLM 0.32;
/// docs/formats/transformers.md, "vLLM on a CPU".
const VLLM_CPU_HEADS: [usize; 11] = [32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512];

fn vllm(config: &Config) -> Result<String, String> {
    let head = config.head_dim;
    Ok(match VLLM_CPU_HEADS.contains(&head) {
        true => String::new(),
        false => format!("GPUs only: its attention on CPUs has no head size of {head}"),
    })
}

/// Read in its sources: docs/formats/gguf.md, "Other readers".
fn candle(_: &Config) -> Result<String, String> {
    Ok("its tokenizer adds a space before the text".to_owned())
}

fn mistral_rs(_: &Config) -> Result<String, String> {
    Ok("no IQ types; no adapters on llama".to_owned())
}

fn optimum(config: &Config) -> Result<String, String> {
    match &config.moe {
        Some(moe) if moe.num_experts_per_tok == 1 => {
            Err("its export of experts fails where a token takes only one of them".to_owned())
        }
        _ => Ok(String::new()),
    }
}

/// Widths that the loader takes for given, whatever the file says: of a Qwen3's heads and of a
/// Qwen3-MoE's experts. Source: Transformers 5.24, its map of GGUF keys has neither.
const GGUF_LOADER: (usize, usize) = (128, 768);

fn gguf_loader(config: &Config) -> Result<String, String> {
    let (arch, (head, expert)) = (config.family.gguf_arch(), GGUF_LOADER);
    let qwen3 = config.family.qk_norm();
    let experts = config.moe.as_ref().filter(|moe| qwen3 && moe.intermediate_size != expert);
    if qwen3 && config.head_dim != head {
        let found = config.head_dim;
        return Err(format!("it takes every {arch} for one with heads of {head}, found {found}"));
    }
    if let Some(moe) = experts {
        let found = moe.intermediate_size;
        return Err(format!(
            "it takes every {arch} for one with experts of {expert}, found {found}"
        ));
    }
    Ok("it computes in float32 what it reads".to_owned())
}

#[cfg(test)]
mod tests {
    use mmx_converters::arch::presets;

    use super::*;

    fn refusing(preset: &str) -> Vec<&'static str> {
        let config = presets::preset(preset).expect("a preset");
        CONSUMERS.iter().filter(|c| c.carries(&config).is_err()).map(|c| c.name).collect()
    }

    /// What was tried with each program: docs/consumers/README.md.
    #[test]
    fn each_program_refuses_the_families_it_was_seen_to_refuse() {
        assert_eq!(refusing("minimind2"), [""; 0]);
        assert_eq!(refusing("minimind3"), ["Transformers of GGUF"]);
        assert_eq!(
            refusing("minimind3-moe"),
            ["Transformers of GGUF", "CTranslate2", "ONNX Runtime", "ONNX Runtime GenAI"]
        );
        assert_eq!(
            refusing("minimind2-moe"),
            [
                "candle",
                "mistral.rs",
                "Transformers of GGUF",
                "MLX",
                "CTranslate2",
                "ONNX Runtime",
                "ONNX Runtime GenAI"
            ]
        );
        let carries = |name: &str, config: &Config| {
            CONSUMERS.iter().find(|c| c.name == name).expect("a row").carries(config).is_ok()
        };
        let mut two = presets::preset("minimind3-moe").expect("a preset");
        two.moe.as_mut().expect("experts").num_experts_per_tok = 2;
        assert!(carries("ONNX Runtime", &two));
        let mut config = presets::preset("minimind3").expect("a preset");
        config.head_dim = 128;
        assert!(carries("Transformers of GGUF", &config));
        two.head_dim = 128;
        assert!(!carries("Transformers of GGUF", &two));
        two.moe.as_mut().expect("experts").intermediate_size = 768;
        assert!(carries("Transformers of GGUF", &two));
    }

    #[test]
    fn what_is_asked_is_a_function_of_the_script() {
        let script = include_str!("ask.py");
        for asked in CONSUMERS.iter().filter_map(|c| c.asked) {
            assert!(script.contains(&format!("def {}():", asked.function)), "{}", asked.function);
        }
    }
}
