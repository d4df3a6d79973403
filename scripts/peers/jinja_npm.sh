#!/usr/bin/env bash
# Hugging Face's Jinja for JavaScript (transformers.js renders by it) in $MMX_CACHE, installed once. Prints the folder of modules.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/env.sh
JINJA=0.5.11
need_debian node nodejs
need_debian npm npm
home=$MMX_CACHE/jinja-npm-$JINJA
[ -d "$home/node_modules/@huggingface/jinja" ] || {
  say "installing @huggingface/jinja $JINJA from npm (once)"
  mkdir -p "$home"
  npm install --silent --no-audit --no-fund --prefix "$home" "@huggingface/jinja@$JINJA" >&2
}
echo "$home/node_modules"
