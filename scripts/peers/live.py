#!/usr/bin/env python3
"""live.py MMX SHARED WORK LLAMA_SERVER OLLAMA_HOME VLLM_PYTHON
`mmx verify` against running servers of what mmx exported: llama-server, Ollama (whose store is opened too) and vLLM. LLAMA_SERVER,
OLLAMA_HOME or VLLM_PYTHON may be `-`: left out."""
import json, os, socket, subprocess, sys, time, urllib.request

sys.path.insert(0, os.path.dirname(__file__))
from check import SHARED, WORK, check, export, finish, gguf_of, mmx

LLAMA_SERVER, OLLAMA, VLLM = sys.argv[4:7]
WHERE = os.path.join(WORK, "live")


def model():
    """A small Qwen3 whose heads vLLM's CPU attention takes, after some steps on chats: random weights write bytes that are no
    UTF-8, which some servers' readers of answers refuse."""
    config = dict(model_type="qwen3", architectures=["Qwen3ForCausalLM"], vocab_size=640, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
                  num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=512, rope_theta=1e6, rms_norm_eps=1e-6, hidden_act="silu",
                  tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0, torch_dtype="float32")
    os.makedirs(WHERE, exist_ok=True)
    path = os.path.join(WHERE, "config.json")
    json.dump(config, open(path, "w"))
    golden = os.path.join(SHARED, "golden-2026")
    out = os.path.join(WHERE, "run")
    settings = ["--max-steps", 200, "--batch-size", 8, "--accum", 1, "--epochs", 1000, "--lr", 5e-3, "--max-seq-len", 128, "--threads", 1, "--device", "cpu", "--seed", 1, "--dtype", "f32"]
    mmx("train", "sft", "--config", path, "--tokenizer", golden, "--data", os.path.join(golden, "sft.jsonl"), "--out", out, *settings)
    return out


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def started(command, url, log, seconds=60, **env):
    file = open(os.path.join(WHERE, log), "w")
    server = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **env})
    for _ in range(10 * seconds):
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return server
        except OSError:
            time.sleep(0.1)
        if server.poll() is not None:
            break
    server.kill()
    raise RuntimeError(f"{command[0]} does not start: " + open(file.name).read()[-2000:])


def row_of(report, kind):
    return next(row for row in report["rows"] if row["engine"] == kind)


def words(row):
    lacking = "; ".join(row["not_returned"]) or "nothing"
    far = "-" if row["max_abs_diff"] is None else f"{row['max_abs_diff']:.1e}"
    return f"{row['tokens']} tokens, top-1 {100 * row['top1_agreement']:.0f} %, log-probabilities {far}, ids {row['tokens_equal']}, not returned: {lacking}"


def compared(path, url, server):
    """What `mmx verify` says of an OpenAI-compatible server of `path`, which is ended then."""
    try:
        time.sleep(0.5)
        row = row_of(mmx("verify", RUN, path, "--engine", f"openai:{url}"), "openai")
    finally:
        server.terminate()
        server.wait()
    assert row["max_abs_diff"] is not None and row["tokens_equal"], row
    return words(row)


RUN = model()
PATHS = export(RUN, "--hf", "f32", "--gguf", "f16", "--gguf", "q8_0", "--gguf", "q4_0", "--ollama", out=os.path.join(WHERE, "export"))

for kind in ("f16", "q8_0", "q4_0") if LLAMA_SERVER != "-" else ():

    @check(f"mmx verify with llama-server, {kind}")
    def _(kind=kind):
        port = free_port()
        gguf = gguf_of(PATHS, kind)
        url = f"http://127.0.0.1:{port}"
        command = [LLAMA_SERVER, "-m", gguf, "--jinja", "-c", "512", "-t", "1", "--port", str(port)]
        return compared(gguf, url, started(command, f"{url}/v1/models", "llama.log"))


if OLLAMA != "-":

    @check("mmx verify with Ollama, and its store opened by a model's name")
    def _():
        host = f"127.0.0.1:{free_port()}"
        home = os.path.join(WHERE, "ollama-home")
        os.makedirs(home, exist_ok=True)
        env = {"OLLAMA_HOST": host, "HOME": home, "OLLAMA_MODELS": os.path.join(WHERE, "ollama-models"), "OLLAMA_NO_CLOUD": "1"}
        server = started([os.path.join(OLLAMA, "bin", "ollama"), "serve"], f"http://{host}/api/version", "ollama.log", **env)
        facts = []
        try:
            for kind in ("f16", "q8_0"):
                name = f"me/live:{kind}"
                folder = os.path.join(WHERE, "export")
                own = f"Modelfile-{kind}" if os.path.exists(os.path.join(folder, f"Modelfile-{kind}")) else "Modelfile"  # the first type's
                mmx("ollama", "create", name, folder, "--modelfile", own, env=env)
                stored = mmx("inspect", f"ollama:{name}", env=env)["path"]
                assert os.path.basename(stored).startswith("sha256-"), stored
                report = mmx("verify", gguf_of(PATHS, kind), f"ollama:{name}", "--engine", f"ollama:{name}", env=env)
                equal = [row for row in report["rows"] if row["path"] == stored]  # Ollama's own copy, which it may have written anew
                assert len(equal) == 2 and all(row["ok"] and row["tokens_equal"] for row in equal), report
                row = row_of(report, "ollama")
                assert row["ok"], row
                facts.append(f"{kind}: {words(row)}")
        finally:
            server.terminate()
            server.wait()
        return "; ".join(facts)


if VLLM != "-":

    @check("mmx verify with vLLM, the exported folder in float32")
    def _():
        port = free_port()
        folder = os.path.join(WHERE, "export", "hf-f32")
        url = f"http://127.0.0.1:{port}"
        settings = ["--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "256", "--enforce-eager", "--max-num-seqs", "2"]
        env = dict(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1", VLLM_NO_USAGE_STATS="1")
        vllm = os.path.join(os.path.dirname(VLLM), "vllm")
        command = [vllm, "serve", folder, "--host", "127.0.0.1", "--port", str(port), *settings]
        return compared(folder, f"{url}#tiny", started(command, f"{url}/health", "vllm.log", seconds=600, **env))


finish()
