#!/usr/bin/env bash
# Installs Transformers 4.57 (beside the 5 of peers-env.sh) and mistral.rs once into $MMX_CACHE; prints the Python of each on a
# line of its own.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/env.sh
TRANSFORMERS_4=4.57.6
MISTRAL=0.9.5

four=$MMX_CACHE/peers-$TRANSFORMERS_4
if ! "$four/bin/python" -c 'import transformers, torch, jinja2' 2>/dev/null; then
  say "installing transformers $TRANSFORMERS_4 (once)"
  venv_beside_torch "$four"
  "$four/bin/python" -m pip install --quiet --disable-pip-version-check "transformers==$TRANSFORMERS_4" jinja2 numpy safetensors >&2 ||
    missing "transformers $TRANSFORMERS_4" "$four/bin/python -m pip install transformers==$TRANSFORMERS_4 jinja2"
fi

mistral=$MMX_CACHE/mistralrs-$MISTRAL
if ! "$mistral/bin/python" -c 'import mistralrs' 2>/dev/null; then
  say "installing mistralrs $MISTRAL (once)"
  python3 -m venv --clear "$mistral" >&2
  "$mistral/bin/python" -m pip install --quiet --disable-pip-version-check "mistralrs==$MISTRAL" >&2 ||
    missing "mistralrs $MISTRAL" "$mistral/bin/python -m pip install mistralrs==$MISTRAL"
fi
printf '%s\n' "$four/bin/python" "$mistral/bin/python"
