"""Run by scripts/check-cuda: golden values through a built mmx on a device, then its speed beside PyTorch's."""

import argparse
import json
import math
import os
import struct
import subprocess
import sys
import tempfile

import torch

SHARED = "tests/fixtures"
MODELS = [
    "golden/minimind2", "golden/minimind2-moe", "golden/minimind3", "golden/minimind3-moe",
    "golden-2026/minimind3", "golden-2026/minimind3-moe", "golden-2026/minimind3-moe-top2",
]
MUON = ["--accum", "1", "--optimizer", "muon", "--lr", "0.01", "--adam-lr", "0.004", "--weight-decay", "0.1", "--schedule", "linear", "--warmup", "2"]
# stage, model, file of the trajectory, other options
RUNS = [
    ("pretrain", "golden/minimind2", "pretrain-minimind2-muon", MUON),
    ("pretrain", "golden-2026/minimind3", "pretrain-minimind3-muon", MUON),
    ("pretrain", "golden/minimind2", "pretrain-minimind2", ["--accum", "2", "--lr", "5e-4"]),
    ("pretrain", "golden/minimind2-moe", "pretrain-minimind2-moe", ["--accum", "2", "--lr", "5e-4"]),
    ("sft", "golden/minimind2", "sft-minimind2", ["--accum", "1", "--lr", "5e-4"]),
    ("pretrain", "golden-2026/minimind3", "pretrain-minimind3", ["--accum", "3", "--lr", "5e-4"]),
    ("pretrain", "golden-2026/minimind3-moe", "pretrain-minimind3-moe", ["--accum", "3", "--lr", "5e-4"]),
    ("dpo", "golden/minimind2", "dpo-sum-minimind2", ["--accum", "1", "--logps", "sum", "--lr", "1e-4"]),
    ("reason", "golden/minimind2", "reason-minimind2", ["--accum", "1", "--lr", "5e-4"]),
]
# What two devices do to the same batches: each has two of a batch's four rows, NCCL (on the CPU gloo) adds the gradients
TWO = [["--processes", "2"], ["--processes", "2", "--shard", "optimizer"]]
# Largest differences allowed. float32: a GPU's products sum in another order than the reference's CPU, over 8 steps
# whose differences feed each other (on the CPU 1e-5 holds; TF32 is off). bfloat16: 8 bits of mantissa in every
# product, 0.4 % each, of both signs.
# f32: largest difference; bf16: of the median position the mean difference, over the mean size (where two experts
# score alike bfloat16 may choose the other one, and that position is off altogether: 2 of 96 of minimind3-moe)
LOGITS = {"f32": 1e-4, "bf16": 0.05}
TRAJECTORY = {"f32": (1e-4, 1e-3, 1e-3), "bf16": (2e-2, 0.2, 2e-2)}  # loss, gradient norm, final weights; relative
# Muon's iteration is in bfloat16 on CUDA whatever the type: torch.optim.Muon ends 3 % of a matrix's way from float64
TRAJECTORY["muon f32"], TRAJECTORY["muon bf16"] = (1e-3, 1e-2, 1e-2), TRAJECTORY["bf16"]


def tensors(path):
    """Tensors of a safetensors file."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    kinds = {"F32": torch.float32, "I64": torch.int64}
    return {
        name: torch.frombuffer(bytearray(data[slice(*entry["data_offsets"])]), dtype=kinds[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


class Checks:
    def __init__(self, args):
        self.args, self.passed, self.failed = args, 0, 0

    def check(self, name, run):
        try:
            found, allowed = run()
            good = all(f <= a for f, a in zip(found, allowed))
            said = ", ".join(f"{f:.2e} of {a:.0e}" for f, a in zip(found, allowed))
        except (subprocess.CalledProcessError, OSError, KeyError) as error:
            good, said = False, f"{error} {getattr(error, 'stderr', '') or ''}"
        self.passed, self.failed = self.passed + good, self.failed + (not good)
        print(f"{'ok  ' if good else 'FAIL'}  {name}: {said}", flush=True)

    def mmx(self, *command):
        subprocess.run([self.args.mmx, *command], check=True, capture_output=True, text=True)

    def logits(self, model, dtype, folder):
        def run():
            golden, out = f"{SHARED}/{model}/forward.safetensors", f"{folder}/logits.safetensors"
            device = ["--engine", "native", "--device", self.args.device, "--dtype", dtype]
            self.mmx("logits", f"{SHARED}/{model}", "--ids", golden, "--out", out, *device)
            found, expected = tensors(out)["logits"], tensors(golden)["logits"]
            difference = (found - expected).abs()
            off = difference.max() if dtype == "f32" else difference.mean(-1).median() / expected.abs().mean()
            return [off.item()], [LOGITS[dtype]]

        self.check(f"logits {model} {dtype}", run)

    def trajectory(self, stage, model, name, options, dtype, folder, many=()):
        """`many`: the options of several processes, which share a batch's four rows."""
        rows = 4 // int(many[1]) if many else 4
        run_name = "-".join([name, dtype, *(option.strip("-") for option in many)])

        def run():
            where, recipe = model.split("/")[0], "2026" if "2026" in model else "2025"
            trace = f"{folder}/{run_name}.json"
            self.mmx(
                "train", stage, "--from", f"{SHARED}/{model}", "--tokenizer", f"{SHARED}/{where}",
                "--data", f"{SHARED}/{where}/{stage}.jsonl", "--recipe", recipe, "--pack", "off", "--shuffle", "off",
                "--batch-size", str(rows), "--epochs", "1", "--max-seq-len", "128" if recipe == "2025" else "160",
                "--dtype", dtype, "--device", self.args.device, "--trace", trace, "--out", f"{folder}/{run_name}",
                *options, *many,
            )
            found = json.load(open(trace))
            muon = name.endswith("-muon")
            golden = f"golden-muon/{name.removesuffix('-muon')}" if muon else f"{where}/train/{name}"
            expected = json.load(open(f"{SHARED}/{golden}.json"))
            if len(found["steps"]) != len(expected["steps"]):
                raise KeyError(f"expected {len(expected['steps'])} steps, found {len(found['steps'])}")

            def relative(key):
                pairs = [(a[key], b[key]) for a, b in zip(found["steps"], expected["steps"]) if b[key] is not None]
                return max(abs(a - b) / abs(b) if a is not None else math.inf for a, b in pairs)

            weights = max(abs(found["final"][n][key] - w[key]) / abs(w[key]) for n, w in expected["final"].items() for key in ("abs", "l2"))
            return [relative("loss"), relative("grad_norm"), weights], TRAJECTORY[f"muon {dtype}" if muon else dtype]

        said = f" {' '.join(many)}" if many else ""
        self.check(f"{stage} {name} {dtype}{said} (loss, norm, weights)", run)


def bench(args):
    """Training speed of both programs on full rows, and the share of the measured rate of products."""
    here = os.path.dirname(os.path.abspath(__file__))
    rates = json.loads(subprocess.run([sys.executable, f"{here}/bench_train.py", "peak"], check=True, capture_output=True, text=True).stdout)
    print(f"matrix products: {rates['f32'] / 1e3:.1f} (f32) and {rates['bf16'] / 1e3:.1f} (bf16) TFLOP/s")
    try:
        import transformers  # noqa: F401
        peer = True
    except ImportError:
        peer = False
        print("PyTorch's side is left out: transformers is not installed")
    for dtype in ("f32", "bf16"):
        size = ["32", "512", "20", dtype]
        ours = json.loads(subprocess.run([args.bench, "minimind2-small", *size], check=True, capture_output=True, text=True).stdout)
        per_token = 6 * ours["parameters"] + 6 * 2 * 8 * 512 * 512 / 2
        share = per_token * ours["tokens_per_s"] / 1e9 / rates[dtype]
        line = f"{dtype}: mmx {ours['tokens_per_s']:.0f} tokens/s, {share:.0%} of the rate of products"
        if peer:
            theirs = json.loads(subprocess.run([sys.executable, f"{here}/bench_train.py", *size], check=True, capture_output=True, text=True).stdout)
            line += f"; PyTorch {theirs['tokens_per_s']:.0f}, ratio {ours['tokens_per_s'] / theirs['tokens_per_s']:.2f}"
        print(line, flush=True)
        # experts: grouped products on compute capability 9.0 in bfloat16, batched tiles elsewhere
        mixture = json.loads(subprocess.run([args.bench, "minimind2-moe", *size], check=True, capture_output=True, text=True).stdout)
        print(f"{dtype}: mmx {mixture['tokens_per_s']:.0f} tokens/s of minimind2-moe", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mmx", required=True)
    parser.add_argument("--bench", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-bench", action="store_true")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("error: PyTorch finds no CUDA device here")
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
    print(f"torch {torch.__version__} on {name}")
    checks = Checks(args)
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("f32", "bf16"):
            for model in MODELS:
                checks.logits(model, dtype, folder)
            for run in RUNS:
                checks.trajectory(*run, dtype, folder)
        # each process takes the device of its number: a device asked for by number is one; the CPU is for all (gloo)
        found = {"cuda": torch.cuda.device_count(), "cpu": 2}.get(args.device, 1)
        if found < 2:
            print(f"training on two devices is left out: expected at least 2 CUDA devices, found {found}")
        else:
            for dtype in ("f32", "bf16"):
                for many in TWO:
                    for run in RUNS:
                        checks.trajectory(*run, dtype, folder, many)
    if not args.no_bench:
        bench(args)
    print(f"check-cuda: {checks.passed} passed, {checks.failed} failed")
    sys.exit(checks.failed > 0 or checks.passed == 0)


main()
