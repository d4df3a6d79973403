#!/usr/bin/env bash
# TRL with Transformers 5 and PEFT in $MMX_CACHE, installed once. Prints its Python.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/env.sh
TRL=1.16.0 TRANSFORMERS=5.24.0 PEFT=0.21.2 DATASETS=5.2.0
venv=$MMX_CACHE/trl-$TRL
if ! "$venv/bin/python" -c 'import trl, peft, transformers, torch, datasets' 2>/dev/null; then
  say "installing trl $TRL (once)"
  venv_beside_torch "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "trl==$TRL" "transformers==$TRANSFORMERS" "peft==$PEFT" "datasets==$DATASETS" jinja2 numpy safetensors >&2 ||
    missing "trl $TRL" "$venv/bin/python -m pip install trl==$TRL transformers==$TRANSFORMERS peft==$PEFT datasets==$DATASETS"
fi
echo "$venv/bin/python"
