#!/usr/bin/env bash
# Trackers of experiments that read TensorBoard's files (the last wandb that does), in $MMX_CACHE, installed once. Prints their Python.
set -euo pipefail
cd "$(dirname "$0")/../.."
MMX_NO_TRAIN=1 . scripts/env.sh
PACKAGES="wandb==0.29.0 swanlab==0.10.3 tensorboard==2.21.0"
venv=$MMX_CACHE/trackers-$(tr -c 'a-z0-9.\n' '-' <<<"$PACKAGES")
if [ ! -e "$venv/installed" ]; then
  say "installing $PACKAGES (once)"
  # shellcheck disable=SC2086 # one package a word
  { python3 -m venv --clear "$venv" && "$venv/bin/python" -m pip install --quiet --disable-pip-version-check numpy $PACKAGES; } >&2 ||
    missing "the Python packages wandb and swanlab" "python3 -m venv $venv && $venv/bin/pip install $PACKAGES"
  touch "$venv/installed"
fi
echo "$venv/bin/python"
