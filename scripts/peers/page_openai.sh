#!/usr/bin/env bash
# OpenAI's npm package in a page in Chromium against `mmx serve --cors`: page_openai.sh MMX MODEL. Installs the package beside
# playwright-core once, and Debian's Chromium.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/env.sh
PLAYWRIGHT=1.65.1
OPENAI=6.49.0
need_debian chromium chromium
need_debian node nodejs
need_debian npm npm
modules=$MMX_CACHE/page-openai-$OPENAI
[ -d "$modules/node_modules/openai" ] || {
  say "installing openai $OPENAI and playwright-core $PLAYWRIGHT from npm (once)"
  mkdir -p "$modules"
  npm install --silent --no-audit --no-fund --prefix "$modules" "openai@$OPENAI" "playwright-core@$PLAYWRIGHT" >&2
}
CHROMIUM=$(command -v chromium) MODULES=$modules/node_modules node scripts/peers/page_openai.mjs "$1" "$2"
