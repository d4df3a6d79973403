#!/usr/bin/env bash
# A tokenizer of 6400 tokens, as many as the presets have rows, for the benchmarks: trained once, on the texts and sources of
# this repository. Prints its folder in $MMX_CACHE.
#   scripts/bench-tokenizer.sh
set -euo pipefail
cd "$(dirname "$0")/.."
MMX_NO_TRAIN=1
# shellcheck source=scripts/env.sh
. scripts/env.sh
folder=$MMX_CACHE/bench-tokenizer
if [ ! -s "$folder/tokenizer.json" ]; then
  cargo build --quiet --release --no-default-features --bin mmx --example first_model_data >&2
  text=$(mktemp --suffix .jsonl); trap 'rm -f "$text"' EXIT
  git ls-files '*.md' '*.rs' | xargs target/release/examples/first_model_data text >"$text"
  target/release/mmx tokenizer train --data "$text" --vocab-size 6400 --out "$folder" >&2
fi
echo "$folder"
