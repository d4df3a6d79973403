"""What scripts/count-instructions counts and prints; started by it."""
import argparse, glob, json, os, re, shutil, subprocess, sys

TARGET = "aarch64-unknown-linux-gnu"
# of each of our sets: the CPU that qemu plays, and what ggml is compiled for (its best for such a CPU)
CPUS = {
    "neon": ("cortex-a72", "armv8-a"),
    "neon-dotprod": ("cortex-a76", "armv8.2-a+dotprod+fp16"),
    "neon-i8mm": ("max", "armv8.2-a+dotprod+fp16+i8mm"),
}
TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "q3_k_m", "q2_k", "iq4_nl", "iq4_xs"]
# functions that multiply matrices, ours (mangled) and ggml's
PRODUCTS = {
    "mmx": re.compile("quant_matmul|float_matmul"),
    "llama": re.compile("mul_mat|vec_dot|ggml_gem[mv]|tinyBLAS|sgemm|quantize_|fp32_to_(fp16|bf16)"),
}
PRESET = "minimind2-small"
STEPS = (1, 2)  # of the shorter and the longer run


def qemu(cpu, program, *arguments, plugin=None):
    command = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu", cpu]
    if plugin:
        command += ["-d", "plugin", "-D", os.devnull, "-plugin", plugin]
    return subprocess.run([*command, program, *map(str, arguments)], check=True, stdout=subprocess.PIPE).stdout


def flags(file):
    """What CMake compiled ggml's kernels with, by name."""
    return {name: value.split() for name, value in re.findall(r"^(C\w*) = *(.*)$", open(file).read(), re.M)}


def compile_ggml(work, name):
    """ggml's kernels for a set's instructions, as a library; cargo compiles them for armv8-a."""
    builds = glob.glob(f"{os.environ['CARGO_TARGET_DIR']}/{TARGET}/release/build/llama-cpp-sys-2-*/out/build/ggml/src/CMakeFiles/ggml-cpu.dir")
    if not builds:
        sys.exit("error: expected ggml's build beside the program's, found none")
    made = max(builds, key=os.path.getmtime)
    known, folder = flags(f"{made}/flags.make"), f"{work}/ggml-{name}"
    # source: the first of the folders that hold headers ends in ggml/src/..
    source = next(flag[2:-2] for flag in known["C_INCLUDES"] if flag.endswith("/ggml/src/."))
    os.mkdir(folder)
    for at, found in enumerate(glob.glob(f"{made}/**/*.o", recursive=True)):
        file = os.path.join(source, os.path.relpath(found, made).removesuffix(".o"))
        compiler, language = ("gcc", "C") if file.endswith(".c") else ("g++", "CXX")
        own = [re.sub("^-march=.*", f"-march={CPUS[name][1]}", flag) for part in ("DEFINES", "INCLUDES", "FLAGS") for flag in known[f"{language}_{part}"]]
        subprocess.run([f"aarch64-linux-gnu-{compiler}", *own, "-g0", "-c", file, "-o", f"{folder}/{at}.o"], check=True)
    subprocess.run(["aarch64-linux-gnu-ar", "rcs", f"{folder}/libggml-cpu-arm.a", *glob.glob(f"{folder}/*.o")], check=True)
    return folder


def build(work, name):
    """bench_run with ggml's kernels for a set; those that cargo compiled for armv8-a are not linked then."""
    command = ["cargo", "rustc", "--quiet", "--release", "--target", TARGET, "-p", "mmx-ggml", "--example", "bench_run"]
    if CPUS[name][1] != "armv8-a":
        command += ["--", "-L", f"native={compile_ggml(work, name)}", "-l", "static:+whole-archive,-bundle=ggml-cpu-arm"]
    subprocess.run(command, check=True)
    program = f"{work}/bench_run-{name}"
    shutil.copy(f"{os.environ['CARGO_TARGET_DIR']}/{TARGET}/release/examples/bench_run", program)
    return program


def count(work, cpu, program, engine, file, size):
    """Instructions of a token, in products and in all, and its weights."""
    totals = []
    for steps in STEPS:
        out = f"{work}/counts"
        said = qemu(cpu, program, "steps", engine, file, size, steps, plugin=f"{work}/count.so,out={out}")
        lines = [line.rstrip("\n").split(" ", 1) for line in open(out)]
        of = lambda wanted: sum(int(count) for count, name in lines if wanted(name))
        totals.append((of(PRODUCTS[engine].search), of(lambda name: True)))
    tokens = 2 * (STEPS[1] - STEPS[0]) * size  # each run steps twice
    return [(long - short) / tokens for short, long in zip(*totals)], json.loads(said)["weights"]


def main():
    parser = argparse.ArgumentParser(prog="scripts/count-instructions")
    several = lambda text: text.split(",")
    parser.add_argument("--types", type=several, default=TYPES)
    parser.add_argument("--cpus", type=several, default=list(CPUS), help=", ".join(CPUS))
    parser.add_argument("--sizes", type=several, default=["1", "32"], help="tokens of a step")
    parser.add_argument("--json", help="a file for all counts")
    parser.add_argument("work")
    arguments = parser.parse_args()
    work, report = arguments.work, []
    programs = {"neon": build(work, "neon")}  # the others take from it what does not depend on the set
    programs |= {name: build(work, name) for name in arguments.cpus if name != "neon"}
    for name in arguments.cpus:
        program, cpu = programs[name], CPUS[name][0]
        os.environ["MMX_CPU"] = name
        print(f"\n{name}: mmx / llama.cpp ({CPUS[name][1]}), instructions per 32 weights and token: products; all\n")
        print("| type |" + "".join(f" steps of {size} |" for size in arguments.sizes))
        print("|---|" + "---|" * len(arguments.sizes))
        for file_type in arguments.types:
            file = f"{work}/{file_type}.gguf"
            if not os.path.exists(file):
                qemu("max", program, "make", PRESET, file_type, "-", file)
            cells = []
            for size in map(int, arguments.sizes):
                found = {}
                for engine in PRODUCTS:
                    counts, weights = count(work, cpu, program, engine, file, size)
                    found[engine] = [32 * counted / weights for counted in counts]
                    if not found[engine][0]:
                        sys.exit(f"error: expected functions of {engine} that multiply matrices, found none ({name}, {file_type})")
                report.append({"cpu": name, "type": file_type, "size": size, **found})
                cells.append("; ".join(f"{ours:.1f} / {theirs:.1f} = **{theirs / ours:.2f}**" for ours, theirs in zip(found["mmx"], found["llama"])))
            print(f"| {file_type} | " + " | ".join(cells) + " |", flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(report, file, indent=1)


main()
