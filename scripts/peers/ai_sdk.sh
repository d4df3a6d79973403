#!/usr/bin/env bash
# The AI SDK of npm against `mmx serve`: ai_sdk.sh URL NAME. Installs it once.
set -euo pipefail
cd "$(dirname "$0")/../.."
MMX_NO_TRAIN=1 . scripts/env.sh
PACKAGES="ai@7.0.173 @ai-sdk/openai@4.0.118 @ai-sdk/anthropic@4.0.105 zod@4.6.7"
need_debian node nodejs
need_debian npm npm
modules=$MMX_CACHE/ai-sdk-7.0.173
[ -d "$modules/node_modules/ai" ] || {
  say "installing $PACKAGES from npm (once)"
  mkdir -p "$modules"
  # shellcheck disable=SC2086 # one package a word
  npm install --silent --no-audit --no-fund --prefix "$modules" $PACKAGES >&2
}
MODULES=$modules/node_modules node scripts/peers/ai_sdk.mjs "$1" "$2"
