# shellcheck shell=bash
# Sourced after env.sh by the scripts that ask the real Transformers: installs it once into $MMX_CACHE and sets $python
# to a Python that has it, the same torch as the build, jinja2 and gguf.

TRANSFORMERS=5.24.0
python=$MMX_CACHE/peers-$TRANSFORMERS/bin/python
if ! "$python" -c 'import transformers, torch, jinja2, gguf' 2>/dev/null; then
  say "installing transformers $TRANSFORMERS (once)"
  need_debian python3 python3
  venv_beside_torch "$MMX_CACHE/peers-$TRANSFORMERS"
  "$python" -m pip install --quiet --disable-pip-version-check "transformers==$TRANSFORMERS" jinja2 gguf numpy safetensors >&2 ||
    missing "transformers $TRANSFORMERS" "$python -m pip install transformers==$TRANSFORMERS jinja2 gguf"
fi
