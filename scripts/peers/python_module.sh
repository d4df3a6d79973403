#!/usr/bin/env bash
# What the tests of the Python module and of the notebook need, in $MMX_CACHE, installed once. Prints its Python.
set -euo pipefail
cd "$(dirname "$0")/../.."
MMX_NO_TRAIN=1 . scripts/env.sh
PACKAGES="numpy==2.4.6 mypy==2.4.1 nbclient==0.11.0 nbformat==5.10.4 ipykernel==7.4.0"
venv=$MMX_CACHE/module-$(tr -c 'a-z0-9.\n' '-' <<<"$PACKAGES" | cut -c1-80)
if [ ! -e "$venv/installed" ]; then
  say "installing $PACKAGES (once)"
  # shellcheck disable=SC2086 # one package a word
  { python3 -m venv --clear "$venv" && "$venv/bin/python" -m pip install --quiet --disable-pip-version-check $PACKAGES; } >&2 ||
    missing "the Python packages numpy, mypy and nbclient" "python3 -m venv $venv && $venv/bin/pip install $PACKAGES"
  touch "$venv/installed"
fi
echo "$venv/bin/python"
