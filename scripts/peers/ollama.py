#!/usr/bin/env python3
"""ollama.py MMX SHARED WORK OLLAMA_HOME
A real Ollama: a model made by `mmx ollama create` answers a chat with the runner's greedy text; and llama.cpp's own
llama-imatrix and llama-quantize on our files."""
import json, os, socket, subprocess, sys, time, urllib.request

sys.path.insert(0, os.path.dirname(__file__))
from check import MMX, SHARED, WORK, check, export, finish, gguf_of, mmx

HOME = os.path.abspath(sys.argv[4])
TOOLS = os.path.join(HOME, "lib", "ollama")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


host = f"127.0.0.1:{free_port()}"
env = {**os.environ, "OLLAMA_HOST": host, "HOME": os.path.join(WORK, "ollama-home"), "OLLAMA_MODELS": os.path.join(WORK, "ollama-models"), "OLLAMA_NO_CLOUD": "1"}
os.makedirs(env["HOME"], exist_ok=True)
log = open(os.path.join(WORK, "ollama.log"), "w")
server = subprocess.Popen([os.path.join(HOME, "bin", "ollama"), "serve"], env=env, stdout=log, stderr=log)


def api(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{host}{path}", data, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=120))


for _ in range(100):
    try:
        api("/api/version")
        VERSION = os.path.basename(HOME).removeprefix("ollama-")  # built as a Go module it does not know its own
        break
    except OSError:
        time.sleep(0.1)
else:
    sys.exit("FAIL  Ollama does not start: " + open(log.name).read()[-2000:])

N = 24
PROMPTS = ("1 2", "hello", "你好", "what is time", "那么 好", "3 + 4 = ?", "the end", "say it", "a b c", "春天")


def taught(name, tokenizer):
    """A golden model after some steps on chats: random weights write bytes that are no UTF-8, which llama-server's reader of
    answers refuses."""
    out = os.path.join(WORK, "ollama", name, "run")
    settings = ["--max-steps", 150, "--batch-size", 8, "--accum", 1, "--epochs", 1000, "--lr", 5e-3, "--max-seq-len", 128, "--threads", 1, "--device", "cpu", "--seed", 1]
    data = os.path.join(SHARED, tokenizer, "sft.jsonl")
    mmx("train", "sft", "--from", os.path.join(SHARED, name), "--tokenizer", os.path.join(SHARED, tokenizer), "--data", data, "--out", out, *settings)
    return out


def plain_answers(model):
    """Prompts, and the runner's greedy texts of at most N tokens."""
    for prompt in PROMPTS:
        out = mmx("run", model, "-p", prompt, "-n", N, "--greedy")
        text = out["text"]
        if text.strip() and text == text.strip() and not any(c in text for c in "\ufffd<>"):
            yield prompt, text


for name, tokenizer, types in (
    ("golden/minimind2", "golden", ("f32", "q8_0")),
    ("golden/minimind2-moe", "golden", ("f32",)),
    ("golden-2026/minimind3", "golden-2026", ("f32",)),
    ("golden-2026/minimind3-moe", "golden-2026", ("f32",)),
):

    @check(f"Ollama {VERSION}: {name}, created by mmx, answers with the runner's greedy text")
    def _(name=name, tokenizer=tokenizer, types=types):
        run, facts = taught(name, tokenizer), []
        for kind in types:
            out = os.path.join(WORK, "ollama", name, kind)
            paths = export(run, "--gguf", kind, "--ollama", out=out)
            model = name.replace("/", "-") + "-" + kind
            created = mmx("ollama", "create", model, out, env=env)
            assert created["sent"], created
            shown = api("/api/show", {"model": model})
            assert "<|im_end|>" in shown["parameters"], shown["parameters"]
            again = mmx("ollama", "create", model, out, env=env)
            assert not again["sent"], "the server has the file"
            options = {"temperature": 0, "num_predict": N, "seed": 1, "repeat_penalty": 1.0, "num_ctx": 512, "num_thread": 1}
            asked = list(plain_answers(gguf_of(paths, kind)))[:4]
            assert asked, "no prompt is answered with text"
            for prompt, expected in asked:
                body = {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": False, "options": options, "think": False}
                found = api("/api/chat", body)["message"]["content"]
                assert found == expected, f"{kind}, {prompt!r}: expected {expected!r}, found {found!r}"
            facts.append(f"{kind}: {len(asked)} chats, {asked[0][1][:24]!r}")
        return "; ".join(facts)


@check("llama-imatrix and llama-quantize: the same importance, and ours is taken")
def _():
    import numpy as np
    from gguf import GGUFReader

    out = os.path.join(WORK, "imatrix")
    paths = export(os.path.join(SHARED, "golden/minimind2"), "--tokenizer", os.path.join(SHARED, "golden"), "--gguf", "f32", out=out)
    full = gguf_of(paths)
    text = os.path.join(WORK, "text.txt")
    with open(text, "w") as f:
        for line in open(os.path.join(SHARED, "golden/pretrain.jsonl")):
            f.write(json.loads(line)["text"] + "\n")
    ours, theirs = os.path.join(out, "ours.gguf"), os.path.join(out, "theirs.gguf")
    mmx("imatrix", full, "--data", text, "--out", ours, "--chunk", 128, "--chunks", 4)
    run = [os.path.join(TOOLS, "llama-imatrix"), "-m", full, "-f", text, "-o", theirs, "-c", "128", "--chunks", "4", "-ngl", "0", "-t", "1", "--no-ppl", "--parse-special"]
    result = subprocess.run(run, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    read = lambda path: {t.name: np.array(t.data, np.float64) for t in GGUFReader(path).tensors}
    a, b = read(ours), read(theirs)
    assert set(a) == set(b), set(a) ^ set(b)
    worst = max((np.abs(a[k] - b[k]) / np.maximum(np.abs(b[k]), 1e-6 * np.abs(b[k]).max() + 1e-12)).max() for k in a)
    assert worst < 2e-2, f"largest relative difference {worst}"
    quantized = os.path.join(out, "theirs-q4_0.gguf")
    run = [os.path.join(TOOLS, "llama-quantize"), "--imatrix", ours, full, quantized, "q4_0"]
    result = subprocess.run(run, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    mine = os.path.join(out, "mine-q4_0.gguf")
    mmx("quantize", full, mine, "q4_0", "--imatrix", ours)
    one, two = ({t.name: (t.tensor_type, t.data.tobytes()) for t in GGUFReader(p).tensors} for p in (quantized, mine))
    assert one == two, [k for k in one if one[k] != two.get(k)]
    return f"{len(a) // 2} matrices, largest relative difference {worst:.1e}; {len(one)} tensors byte-equal"


server.terminate()
finish()
