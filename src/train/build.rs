//! Compiles kernel/bridge.cpp, optim/backward.cpp and distributed/c10d.cpp, and tells the programs'
//! build script where libtorch lies (DEP_MMX_TRAINING_LIBTORCH): torch-sys links libtorch but emits no rpath, and tells
//! its direct dependents only. The path is also where the CUDA part is found when a CUDA device is
//! asked for (model/device.rs).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::metadata=LIBTORCH={lib}");
        println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
        compile(std::path::Path::new(&lib));
    }
}

/// `lib`: libtorch's libraries; its headers lie beside them, unless LIBTORCH_INCLUDE says where.
fn compile(lib: &std::path::Path) {
    println!("cargo::rerun-if-env-changed=LIBTORCH_INCLUDE");
    let home = std::env::var_os("LIBTORCH_INCLUDE").map(std::path::PathBuf::from);
    let include = home.as_deref().or(lib.parent()).unwrap_or(lib).join("include");
    let of = |source: &str| {
        println!("cargo::rerun-if-changed={source}");
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++17")
            .file(source)
            .include(&include)
            .include(include.join("torch/csrc/api/include"))
            .warnings(false); // of libtorch's headers
        build
    };
    let mut bridge = of("kernel/bridge.cpp");
    // at::parallel_for is a template: without it the calls of this file run on one thread, as they
    // do on a Mac, whose compiler has no OpenMP
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("macos") {
        bridge.flag("-fopenmp");
        println!("cargo::rustc-link-lib=dylib=gomp"); // the one that libtorch has loaded
    }
    bridge.compile("mmx_bridge");
    of("optim/backward.cpp").compile("mmx_backward");
    println!("cargo::rerun-if-changed=distributed/gloo_types");
    println!("cargo::rerun-if-changed=distributed/c10d.h");
    of("distributed/c10d.cpp").include("distributed/gloo_types").compile("mmx_c10d");
    println!("cargo::rerun-if-changed=distributed/nccl.cpp");
    if lib.join("libtorch_cuda.so").is_file() {
        nccl(lib, of("distributed/nccl.cpp"));
    }
}

/// Builds libmmx_nccl.so where CUDA's headers are: those that PyPI's packages put beside torch, or
/// a toolkit's.
fn nccl(lib: &std::path::Path, mut build: cc::Build) {
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    let beside = lib.parent().and_then(|torch| torch.parent()).map(|site| site.join("nvidia"));
    let toolkit = std::env::var_os("CUDA_HOME").unwrap_or_else(|| "/usr/local/cuda".into());
    let folders: Vec<_> = [
        beside.as_ref().map(|nvidia| nvidia.join("cu13/include")),
        beside.as_ref().map(|nvidia| nvidia.join("nccl/include")),
        Some(std::path::Path::new(&toolkit).join("include")),
        Some("/usr/include".into()),
    ]
    .into_iter()
    .flatten()
    .filter(|folder| folder.is_dir())
    .collect();
    for header in ["cuda_runtime.h", "crt/host_config.h", "nv/target", "nccl.h"] {
        let places = || folders.iter().map(|folder| folder.join(header));
        // of a file that is not there cargo says each time that it has changed
        for place in places().filter(|place| place.is_file()) {
            println!("cargo::rerun-if-changed={}", place.display());
        }
        if !places().any(|place| place.is_file()) {
            println!(
                "cargo::warning=several GPUs at once: left out, since {header} is not found \
                 (pip install nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85 beside torch)"
            );
            return;
        }
    }
    let out = std::env::var("OUT_DIR").unwrap_or_default();
    let library = std::path::Path::new(&out).join("libmmx_nccl.so");
    build.includes(folders).flag("-fvisibility=hidden").pic(true);
    let objects = build.compile_intermediates();
    let mut link = build.get_compiler().to_command();
    link.arg("-shared").args(objects).arg("-o").arg(&library).arg("-L").arg(lib);
    link.args(["-Wl,--no-as-needed", "-ltorch_cuda", "-ltorch_cpu", "-lc10_cuda", "-lc10"]);
    let linked = link.status();
    assert!(linked.is_ok_and(|status| status.success()), "linking {}", library.display());
    // a release goes to machines without this folder, and names none of this one's
    println!("cargo::rerun-if-env-changed=MMX_NO_BUILD_PATHS");
    if std::env::var_os("MMX_NO_BUILD_PATHS").is_none() {
        println!("cargo::rustc-env=MMX_NCCL_FOLDER={out}");
    }
}
