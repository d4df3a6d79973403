#!/usr/bin/env bash
# lm-evaluation-harness in $MMX_CACHE, installed once beside the Transformers and torch of peers-env.sh, which it uses.
# Prints its Python.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/env.sh
. scripts/peers-env.sh
LM_EVAL=0.4.13
venv=$MMX_CACHE/lm-eval-$LM_EVAL
if ! "$venv/bin/python" -c 'import lm_eval.models.huggingface, datasets' >/dev/null 2>&1; then
  say "installing lm_eval $LM_EVAL (once)"
  python3 -m venv --clear "$venv" >&2
  site=$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')
  peers=$("$python" -c 'import site; print(site.getsitepackages()[0])')
  { echo "$peers"; cat "$peers/torch.pth" 2>/dev/null || true; } >"$site/peers.pth"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "lm_eval==$LM_EVAL" >&2 ||
    missing "lm_eval $LM_EVAL" "$venv/bin/pip install lm_eval==$LM_EVAL"
fi
# what its clients of servers need besides
if ! "$venv/bin/python" -c 'import aiohttp, tenacity, requests' >/dev/null 2>&1; then
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "lm_eval[api]==$LM_EVAL" >&2 ||
    missing "lm_eval[api] $LM_EVAL" "$venv/bin/pip install lm_eval[api]==$LM_EVAL"
fi
echo "$venv/bin/python"
