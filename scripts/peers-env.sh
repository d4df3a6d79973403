# Sourced after env.sh by the scripts that ask the real Transformers: installs it once into $MMX_CACHE and sets $python
# to a Python that has it, the same torch as the build, jinja2 and gguf.

TRANSFORMERS=5.24.0
python=$MMX_CACHE/peers-$TRANSFORMERS/bin/python
if ! "$python" -c 'import transformers, torch, jinja2, gguf' 2>/dev/null; then
  say "installing transformers $TRANSFORMERS (once)"
  need_debian python3 python3
  python3 -m venv --clear "$MMX_CACHE/peers-$TRANSFORMERS" >&2 || missing "python3-venv" "sudo apt-get install python3-venv"
  site=$("$python" -c 'import site; print(site.getsitepackages()[0])')
  # the torch that is here already, rather than 5 GB once more
  case $LIBTORCH in */site-packages/torch | */dist-packages/torch) dirname "$LIBTORCH" >"$site/torch.pth" ;; esac
  "$python" -c 'import torch' 2>/dev/null || "$python" -m pip install --quiet "torch==$TORCH_VERSION" >&2
  "$python" -m pip install --quiet --disable-pip-version-check "transformers==$TRANSFORMERS" jinja2 gguf numpy safetensors >&2 ||
    missing "transformers $TRANSFORMERS" "$python -m pip install transformers==$TRANSFORMERS jinja2 gguf"
fi
