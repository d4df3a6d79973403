#!/usr/bin/env bash
# ModelScope's client in $MMX_CACHE, installed once. Prints its Python.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/env.sh
MODELSCOPE=1.40.2 MODELSCOPE_HUB=0.5.1
venv=$MMX_CACHE/modelscope-$MODELSCOPE
if [ ! -e "$venv/installed" ]; then
  say "installing modelscope $MODELSCOPE (once)"
  python3 -m venv --clear "$venv" >&2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "modelscope==$MODELSCOPE" "modelscope-hub==$MODELSCOPE_HUB" numpy >&2
  touch "$venv/installed"
fi
echo "$venv/bin/python"
