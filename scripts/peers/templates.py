#!/usr/bin/env python3
"""templates.py MMX SHARED WORK PYTHON_457 LLAMA_SERVER NODE_MODULES
mmx's two chat templates, as an export carries them, by four engines: Jinja2 (Transformers 5 and, in PYTHON_457, 4.57),
minijinja (mmx), llama.cpp's own (LLAMA_SERVER, /apply-template), and @huggingface/jinja (in NODE_MODULES). Each makes the same
bytes of every conversation in tests/fixtures/templates, but for the differences listed here by name."""
import json, os, socket, subprocess, sys, time, urllib.error, urllib.request

sys.path.insert(0, os.path.dirname(__file__))
from check import MMX, SHARED, WORK, check, export, finish, gguf_of, mmx

PYTHON_457, LLAMA_SERVER, NODE_MODULES = sys.argv[4:7]
TEMPLATES = ("minimind2", "minimind3")
CONVERSATIONS = json.load(open(os.path.join(SHARED, "templates", "conversations.json")))

TRANSFORMERS = """
import json, sys
from transformers import AutoTokenizer
tokenizer, out = AutoTokenizer.from_pretrained(sys.argv[1]), []
for row in json.load(open(sys.argv[2])):
    more = {key: row[key] for key in ("open_thinking",) if key in row}
    out.append(tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=False, add_generation_prompt=row["add_generation_prompt"], **more))
print(json.dumps(out))
"""

# What the others are known to do otherwise: a conversation, the templates it shows in, and why. One that agrees is a failure, too.
BLANKS = "its lstrip, rstrip and strip take no argument: blanks go with the line breaks"
NUMBERS = "JSON.parse knows no 1.0, only 1"
JAVASCRIPT = {
    "line breaks and blanks around": (("minimind3",), BLANKS),
    "nothing but blanks": (("minimind3",), BLANKS),
    "thought in its own field, with blanks": (("minimind3",), BLANKS),
    "answer that begins with blanks after a thought": (("minimind3",), BLANKS),
    "tools with whole and broken numbers, nulls and booleans": (("minimind3",), NUMBERS),
    "several calls and results": (("minimind3",), NUMBERS),
    "arguments with 1.0": (("minimind3",), NUMBERS),
}
WHOLE = "it prints a float without a fraction as a whole number"
LLAMA = {
    "tools with whole and broken numbers, nulls and booleans": (("minimind3",), WHOLE),
    "several calls and results": (("minimind3",), WHOLE),
    "arguments with 1.0": (("minimind3",), WHOLE),
    "arguments as a string without blanks": (("minimind3",), "the server reads arguments that are a text, and writes them anew"),
}


def work(*parts):
    return os.path.join(WORK, "templates", *parts)


def python(interpreter, folder):
    rows = os.path.join(SHARED, "templates", "conversations.json")
    out = subprocess.run([interpreter, "-c", TRANSFORMERS, folder, rows], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-2000:]
    return json.loads(out.stdout.splitlines()[-1])


def node(folder):
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates.mjs")
    arguments = [os.path.join(folder, "chat_template.jinja"), os.path.join(SHARED, "templates", "conversations.json")]
    out = subprocess.run(["node", program, *arguments], capture_output=True, text=True, env={**os.environ, "MODULES": NODE_MODULES})
    assert out.returncode == 0, out.stderr[-2000:]
    return json.loads(out.stdout)


def llama(gguf):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    log = open(work("llama-server.log"), "w")
    # an answer at the end is an answer, not the beginning of one
    server = subprocess.Popen([LLAMA_SERVER, "-m", gguf, "--jinja", "--no-prefill-assistant", "-c", "512", "--port", str(port)], stdout=log, stderr=log)
    try:
        return [llama_one(port, row) for row in CONVERSATIONS]
    finally:
        server.kill()
        server.wait()


def llama_one(port, row):
    body = {key: row[key] for key in ("messages", "tools", "add_generation_prompt") if key in row}
    if "open_thinking" in row:
        body["chat_template_kwargs"] = {"open_thinking": row["open_thinking"]}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/apply-template", json.dumps(body).encode(), {"Content-Type": "application/json"})
    for _ in range(200):
        try:
            return json.load(urllib.request.urlopen(request, timeout=60))["prompt"]
        except urllib.error.HTTPError as error:
            if error.code != 503:  # 503: the model is being loaded
                return f"HTTP {error.code}: {error.read().decode()[:300]}"
        except OSError:
            pass
        time.sleep(0.05)
    raise RuntimeError("llama-server does not start: " + open(work("llama-server.log")).read()[-1000:])


def own(gguf):
    """mmx, of the conversations that its command line can say: answered next, and not thinking."""
    found = []
    for row in CONVERSATIONS:
        if not row["add_generation_prompt"] or "open_thinking" in row:
            found.append(None)  # converters/tests/templates.rs has them all
            continue
        json.dump({key: row[key] for key in ("messages", "tools") if row.get(key)}, open(work("chat.json"), "w"))
        found.append(mmx("tokenizer", "show", gguf, "--chat", work("chat.json"))["text"])
    return found


def agree(name, found, listed=()):
    assert len(found) == len(CONVERSATIONS) >= 40
    faults, differ = [], 0
    for row, text in zip(CONVERSATIONS, found):
        known = row["name"] in listed and name in listed[row["name"]][0]
        differ += known
        if text is None:
            continue
        if known and text == row[name]:
            faults.append(f"{row['name']}: listed as different, and the same")
        if not known and text != row[name]:
            faults.append(f"{row['name']}: expected {row[name]!r}\nfound {text!r}")
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults)
    counted = sum(text is not None for text in found)
    return f"{counted} conversations" + (f", {differ} differ as listed" if differ else "")


for name in TEMPLATES:
    tokenizer, out = work(name, "tokenizer"), work(name, "export")
    mmx("tokenizer", "train", "--data", os.path.join(SHARED, "golden", "pretrain.jsonl"), "--specials", name, "--vocab-size", 400, "--out", tokenizer)
    model = os.path.join(SHARED, "golden-2026" if name == "minimind3" else "golden", name)
    gguf, hf = gguf_of(export(model, "--tokenizer", tokenizer, "--hf", "f32", "--gguf", "f32", out=out)), os.path.join(out, "hf-f32")
    check(f"template {name}: Transformers 5's Jinja2")(lambda: agree(name, python(sys.executable, hf)))
    check(f"template {name}: Transformers 4.57's Jinja2")(lambda: agree(name, python(PYTHON_457, hf)))
    check(f"template {name}: mmx's minijinja")(lambda: agree(name, own(gguf)))
    check(f"template {name}: llama.cpp's own engine")(lambda: agree(name, llama(gguf), LLAMA))
    check(f"template {name}: @huggingface/jinja")(lambda: agree(name, node(hf), JAVASCRIPT))
finish()
