# shellcheck shell=bash
# Sourced by the other scripts, and by anyone who builds by hand: `. scripts/env.sh`.
# Finds (or installs) what the build needs and exports LIBTORCH. Everything it prints goes to stderr.
#
# MMX_CACHE        where private tools live (default ~/.cache/mmx)
# MMX_NO_INSTALL=1 install nothing: name what is missing and the command that fixes it
# MMX_NO_TRAIN=1   leave libtorch out (for builds with --no-default-features)
# MMX_NO_BUILD=1   nothing will be built: no compilers, no libtorch

TORCH_VERSION=2.11.0
MMX_CACHE=${MMX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mmx}

say() { printf '%s\n' "$*" >&2; }
# missing WHAT COMMAND: names a missing piece together with the command that fixes it, and stops
missing() { say "error: $1 is missing"; say; say "hint: $2"; exit 1; }
as_root() { [ "$(id -u)" = 0 ] && [ -z "${MMX_NO_INSTALL:-}" ]; }

# need_debian COMMAND-OR-FILE PACKAGE..: installs the packages unless the first argument is there
need_debian() {
  local probe=$1; shift
  command -v "$probe" >/dev/null 2>&1 && return
  [ "${probe#/}" != "$probe" ] && compgen -G "$probe" >/dev/null && return
  as_root && command -v apt-get >/dev/null || missing "$probe" "sudo apt-get install $*"
  say "installing $*"
  { apt-get install -y -qq "$@" || { apt-get update -qq && apt-get install -y -qq "$@"; }; } >&2 ||
    missing "$probe" "sudo apt-get update && sudo apt-get install $*"
}

# rust_target TRIPLE: Rust's std for another system, by rustup where rustup is
rust_target() {
  if ! command -v rustup >/dev/null || rustup target list --installed | grep -qx "$1"; then return; fi
  [ -z "${MMX_NO_INSTALL:-}" ] || missing "the Rust target $1" "rustup target add $1"
  rustup target add "$1" >&2 || missing "the Rust target $1" "rustup target add $1"
}

[ -z "${MMX_NO_BUILD:-}" ] || return 0
need_debian cc build-essential
need_debian cmake cmake
need_debian clang clang
need_debian '/usr/lib/llvm-*/lib/libclang*.so*' libclang-dev
if ! command -v cargo >/dev/null 2>&1; then
  [ -x "$HOME/.cargo/bin/cargo" ] && export PATH="$HOME/.cargo/bin:$PATH" ||
    missing "cargo (Rust 1.95 or newer)" "install Rust with rustup: https://rustup.rs"
fi

# torch_folder PYTHON: where its torch 2.11 lies, or nothing
torch_folder() {
  "$1" - "$TORCH_VERSION" 2>/dev/null <<'PY'
import importlib.metadata, importlib.util, os, sys
if importlib.metadata.version("torch").split("+")[0] == sys.argv[1]:
    print(os.path.dirname(importlib.util.find_spec("torch").origin))
PY
}

if [ -z "${MMX_NO_TRAIN:-}" ]; then
  venv=$MMX_CACHE/torch-$TORCH_VERSION
  if [ -n "${LIBTORCH:-}" ]; then
    found=$(cut -d+ -f1 "$LIBTORCH/build-version" 2>/dev/null || true)
    [ -z "$found" ] || [ "$found" = "$TORCH_VERSION" ] ||
      missing "libtorch $TORCH_VERSION (LIBTORCH=$LIBTORCH holds $found)" "unset LIBTORCH, or point it at libtorch $TORCH_VERSION"
  else
    LIBTORCH=$(torch_folder "$venv/bin/python" || true)
    [ -n "$LIBTORCH" ] || LIBTORCH=$(torch_folder python3 || true)
    if [ -z "$LIBTORCH" ]; then
      need_debian python3 python3
      [ -z "${MMX_NO_INSTALL:-}" ] ||
        missing "libtorch $TORCH_VERSION" "python3 -m venv $venv && $venv/bin/pip install torch==$TORCH_VERSION"
      say "installing torch $TORCH_VERSION into $venv (about 5 GB, once)"
      python3 -m venv "$venv" 2>/dev/null || { need_debian /usr/lib/python3/dist-packages/ensurepip/__init__.py python3-venv; python3 -m venv "$venv"; } >&2
      "$venv/bin/pip" install --quiet --disable-pip-version-check "torch==$TORCH_VERSION" numpy >&2 ||
        missing "torch $TORCH_VERSION" "$venv/bin/pip install torch==$TORCH_VERSION"
      LIBTORCH=$(torch_folder "$venv/bin/python")
    fi
  fi
  export LIBTORCH
  unset LIBTORCH_USE_PYTORCH
  # two small packages of headers that torch does not bring: with them the library for several GPUs is built
  # (src/train/build.rs); without, mmx trains on one
  headers=$(dirname "$LIBTORCH")/nvidia/cu13/include
  if [ -f "$LIBTORCH/lib/libtorch_cuda.so" ] && ! { [ -f "$headers/crt/host_config.h" ] && [ -f "$headers/nv/target" ]; }; then
    case $LIBTORCH in
      "$venv"/*)
        [ -n "${MMX_NO_INSTALL:-}" ] ||
          "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85 >&2 || true ;;
    esac
    [ -f "$headers/crt/host_config.h" ] || say "several GPUs at once: left out, CUDA's headers are not beside torch"
  fi
  say "libtorch $TORCH_VERSION: $LIBTORCH"
fi

# venv_beside_torch VENV: an empty virtual environment with the torch that is here already, rather than 5 GB once more
venv_beside_torch() {
  python3 -m venv --clear "$1" >&2 || missing "python3-venv" "sudo apt-get install python3-venv"
  local site; site=$("$1/bin/python" -c 'import site; print(site.getsitepackages()[0])')
  case $LIBTORCH in */site-packages/torch | */dist-packages/torch) dirname "$LIBTORCH" >"$site/torch.pth" ;; esac
  "$1/bin/python" -c 'import torch' 2>/dev/null ||
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check "torch==$TORCH_VERSION" >&2
}
