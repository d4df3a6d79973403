#!/usr/bin/env bash
# LangChain's ChatOllama with Ollama's own Python client in $MMX_CACHE, installed once. Prints the Python that has them.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/env.sh
CLIENTS="ollama==0.6.3 langchain-ollama==1.1.0 numpy==2.3.5"
home=$MMX_CACHE/clients-$(tr -c 'a-z0-9.\n' '-' <<<"$CLIENTS")
if ! "$home/bin/python" -c 'import langchain_ollama, numpy' 2>/dev/null; then
  say "installing $CLIENTS (once)"
  # shellcheck disable=SC2086
  { python3 -m venv --clear "$home" && "$home/bin/python" -m pip install --quiet --disable-pip-version-check $CLIENTS; } >&2 ||
    missing "the Python packages ollama and langchain-ollama" "python3 -m venv $home && $home/bin/pip install $CLIENTS"
fi
echo "$home/bin/python"
