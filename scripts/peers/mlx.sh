#!/usr/bin/env bash
# MLX for CPUs and mlx-lm in $MMX_CACHE, installed once. Prints its Python.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/env.sh
MLX=0.32.0 MLX_LM=0.32.0
venv=$MMX_CACHE/mlx-$MLX
if ! "$venv/bin/python" -c 'import mlx.core, mlx_lm' 2>/dev/null; then
  say "installing mlx $MLX (once)"
  python3 -m venv --clear "$venv" >&2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "mlx[cpu]==$MLX" "mlx-lm==$MLX_LM" >&2 ||
    missing "mlx $MLX" "$venv/bin/python -m pip install mlx[cpu]==$MLX mlx-lm==$MLX_LM"
fi
echo "$venv/bin/python"
