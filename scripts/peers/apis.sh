#!/usr/bin/env bash
# Installs the official Python clients of OpenAI and Anthropic once; prints the path of a Python that has both.
set -euo pipefail
cd "$(dirname "$0")/../.."
MMX_NO_TRAIN=1 . scripts/env.sh
PACKAGES="openai==3.57.0 anthropic==2.14.0 pydantic==2.14.4"
clients=$MMX_CACHE/clients-apis-$(tr -c 'a-z0-9.\n' '-' <<<"$PACKAGES")
if ! "$clients/bin/python" -c 'import openai, anthropic, pydantic, numpy' 2>/dev/null; then
  say "installing $PACKAGES (once)"
  need_debian python3 python3
  # shellcheck disable=SC2086 # one package a word
  { python3 -m venv --clear "$clients" && "$clients/bin/python" -m pip install --quiet --disable-pip-version-check numpy $PACKAGES; } >&2 ||
    missing "the Python packages openai and anthropic" "python3 -m venv $clients && $clients/bin/pip install numpy $PACKAGES"
fi
printf '%s\n' "$clients/bin/python"
