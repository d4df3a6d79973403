#!/usr/bin/env bash
# TRL with Transformers 5 and PEFT in $MMX_CACHE, installed once. Prints its Python.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/env.sh
TRL=1.16.0 TRANSFORMERS=5.24.0 PEFT=0.21.2 DATASETS=5.2.0
venv=$MMX_CACHE/trl-$TRL
if ! "$venv/bin/python" -c 'import trl, peft, transformers, torch, datasets' 2>/dev/null; then
  say "installing trl $TRL (once)"
  python3 -m venv --clear "$venv" >&2
  # the torch that is here already, rather than 5 GB once more
  site=$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')
  case $LIBTORCH in */site-packages/torch | */dist-packages/torch) dirname "$LIBTORCH" >"$site/torch.pth" ;; esac
  pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
  "$venv/bin/python" -c 'import torch' 2>/dev/null || "${pip[@]}" "torch==$TORCH_VERSION" >&2
  "${pip[@]}" "trl==$TRL" "transformers==$TRANSFORMERS" "peft==$PEFT" "datasets==$DATASETS" jinja2 numpy safetensors >&2 ||
    missing "trl $TRL" "$venv/bin/python -m pip install trl==$TRL transformers==$TRANSFORMERS peft==$PEFT datasets==$DATASETS"
fi
echo "$venv/bin/python"
