#!/usr/bin/env python3
"""doors.py MMX SHARED WORK PYTHON_457 PYTHON_MISTRAL
The doors people come in by: Transformers 4.57 (PYTHON_457) and 5 (this Python) with the snippets of their documentation on
an export of each family, what they saved on its way back into mmx, configurations that contradict themselves, named
templates, and mistral.rs on folder and GGUF. PYTHON_MISTRAL may be "" where its wheel does not install."""
import json, os, re, shutil, subprocess, sys

sys.path.insert(0, os.path.dirname(__file__))
from check import MMX, SHARED, WORK, check, close, export, finish, gguf_of, mmx, mmx_logits

PYTHON_457, PYTHON_MISTRAL = sys.argv[4:6]
import numpy as np

TEXTS = ["Ada has 3 apples", " 李华 有 12 个苹果，"]
CHAT = [{"role": "user", "content": "hello 你好"}]
TOOL = {"type": "function", "function": {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}}
NEW = 8
EOS = 2


def shared(name):
    return os.path.join(SHARED, name)


def work(*parts):
    return os.path.join(WORK, "doors", *parts)


def transformers(job, python=sys.executable):
    """Runs a job in a Python with Transformers; its answer."""
    out = subprocess.run([python, __file__, *sys.argv[1:4], "", "", json.dumps(job)], capture_output=True, text=True)
    if out.returncode:
        raise RuntimeError(out.stderr[-3000:])
    return json.loads(out.stdout.splitlines()[-1])


def answer(job):
    """In the other process: what Transformers makes of each folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, __version__

    torch.set_num_threads(2)
    found = {"version": __version__}
    for folder in job.get("use", []):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        options = dict(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
        here = {"ids": [tokenizer(text)["input_ids"] for text in TEXTS], "greedy": []}
        for text in TEXTS:
            # as the documentation has it: token_type_ids among the inputs end here
            here["greedy"].append(model.generate(**tokenizer(text, return_tensors="pt"), **options)[0].tolist())
        inputs = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        here["chat"] = inputs["input_ids"][0].tolist()
        here["chat_greedy"] = model.generate(**inputs, **options)[0].tolist()
        batch = tokenizer(TEXTS, return_tensors="pt", padding=True)  # on the side that the export names
        here["batch"] = model.generate(**batch, **options)[:, -NEW:].tolist()
        if folder in job.get("save", {}):
            model.save_pretrained(job["save"][folder])
            tokenizer.save_pretrained(job["save"][folder])
        found[folder] = here
    for folder in job.get("templates", []):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        render = lambda **more: tokenizer.apply_chat_template(CHAT, tokenize=False, **more)
        found[folder] = [render(), render(tools=[TOOL])]
    for folder, ids in job.get("logits", {}).items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            found[folder] = model(torch.tensor([ids])).logits[0].tolist()
    print(json.dumps(found))


if len(sys.argv) > 6:
    answer(json.loads(sys.argv[6]))
    sys.exit()

FAMILIES = ["golden/minimind2", "golden/minimind2-moe", "golden/minimind3", "golden/minimind3-moe",
            "golden-2026/minimind3", "golden-2026/minimind3-moe", "golden-2026/minimind3-moe-top2"]  # fmt: skip
PATHS = {name: export(shared(name), "--tokenizer", shared(name.split("/")[0]), "--hf", "f32", "--gguf", "f32", out=work(name)) for name in FAMILIES}
FOLDERS = {name: work(name, "hf-f32") for name in FAMILIES}
# one whose tokenizer adds bos and eos, as a base model's may
AROUND = work("around")
shutil.copytree(FOLDERS["golden/minimind2"], AROUND)
_own = json.load(open(os.path.join(AROUND, "tokenizer.json")))
_case = json.load(open(os.path.join(os.path.dirname(__file__), "../../tests/fixtures/cases/turn2/post-processors/post_processors.json")))
_own["post_processor"] = _case["bos-eos"]
json.dump(_own, open(os.path.join(AROUND, "tokenizer.json"), "w"))


def ids_of(model, text):
    return mmx("tokenizer", "show", model, text)["ids"]


def greedy_agrees(model, sequence):
    """Each of the last tokens is the likeliest one by mmx's own runner."""
    logits = mmx_logits(model, [sequence[:-1]], "ggml")[0][-NEW:]
    logits[:, EOS] = -np.inf  # min_new_tokens forbids it
    for row, token in zip(logits, sequence[-NEW:]):
        assert row[token] >= row.max() - 1e-4, f"{token} is not {row.argmax()}: {sequence}"


def used(folder, gguf, found):
    """What Transformers made of a folder, against mmx."""
    for i, text in enumerate(TEXTS):
        assert ids_of(folder, text) == ids_of(gguf, text) == found["ids"][i], text
        greedy_agrees(gguf, found["greedy"][i])
        assert found["batch"][i] == found["greedy"][i][-NEW:], "the same alone and in a batch"
    json.dump(CHAT, open(work("chat.json"), "w"))
    assert mmx("tokenizer", "show", gguf, "--chat", work("chat.json"))["ids"] == found["chat"]
    greedy_agrees(gguf, found["chat_greedy"])


for python in (sys.executable, PYTHON_457):
    label = "4.57" if python == PYTHON_457 else "5"
    saved = {folder: work("saved", label, name) for name, folder in FOLDERS.items()}
    saved[AROUND] = work("saved", label, "around")
    answers = {}

    @check(f"Transformers {label}: tokenizer, generate, chat template, batch; save_pretrained")
    def _():
        answers.update(transformers({"use": list(saved), "save": saved}, python))
        assert answers["version"].startswith(label), answers["version"]
        return f"{answers['version']}, {len(saved)} folders"

    for name in FAMILIES:

        @check(f"{name}: as Transformers {label} users use it, and back")
        def _(name=name):
            used(FOLDERS[name], gguf_of(PATHS[name]), answers[FOLDERS[name]])
            back = saved[FOLDERS[name]]
            # what came back runs, is exported and is equal
            paths = export(back, "--gguf", "f32", "--verify", out=back + "-out")
            rows = mmx("verify", back, gguf_of(paths), gguf_of(PATHS[name]))["rows"]
            assert all(row["ok"] and row["tokens_equal"] for row in rows), rows
            mmx("run", back, "-p", "hi", "-n", "2")
            for text in TEXTS:
                assert ids_of(back, text) == ids_of(gguf_of(paths), text) == ids_of(FOLDERS[name], text)
            read = lambda path: open(path, "rb").read()
            assert read(gguf_of(paths)) == read(gguf_of(PATHS[name])), "the bytes of the GGUF"
            return f"{len(rows)} rows of verify, the same GGUF"

    @check(f"Transformers {label}: a tokenizer that adds bos and eos, and back")
    def _():
        back = saved[AROUND]
        paths = export(back, "--gguf", "f32", out=back + "-out")
        for i, text in enumerate(TEXTS):
            expected = answers[AROUND]["ids"][i]
            assert expected[0] == 1 and expected[-1] == 2, expected
            assert ids_of(AROUND, text) == ids_of(back, text) == ids_of(gguf_of(paths), text) == expected


def variant(name, folder, change):
    """An export with another config.json."""
    shutil.copytree(FOLDERS[name], folder)
    path = os.path.join(folder, "config.json")
    config = json.load(open(path))
    change(config)
    json.dump(config, open(path, "w"))
    return folder


@check("configurations that contradict themselves are resolved as Transformers 5 does")
def _():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.0}
    plain = lambda theta: {"rope_type": "default", "rope_theta": theta}
    rows = [
        ("both thetas", {"rope_theta": 1e6, "rope_parameters": plain(1e4)}),
        ("rope_scaling and rope_parameters", {"rope_theta": 5e5, "rope_scaling": yarn, "rope_parameters": plain(1e6)}),
        ("theta in rope_parameters only", {"rope_theta": None, "rope_scaling": yarn, "rope_parameters": plain(1e6)}),
        ("rope_type and type", {"rope_theta": 1e6, "rope_parameters": None, "rope_scaling": {**yarn, "type": "default"}}),
        ("original length at the top", {"rope_theta": 1e6, "rope_parameters": None, "original_max_position_embeddings": 32, "rope_scaling": yarn}),
        ("factor left open", {"max_position_embeddings": 512, "rope_theta": 1e6, "rope_parameters": None, "rope_scaling": {**yarn, "factor": None}}),
        ("mscale", {"rope_theta": 1e6, "rope_parameters": None, "rope_scaling": {**yarn, "attention_factor": None, "mscale": 1.0, "mscale_all_dim": 0.5}}),
        ("head_dim and dtype", {"torch_dtype": "bfloat16", "dtype": "float32"}),
    ]  # fmt: skip
    folders = {}
    for name in ("golden/minimind2", "golden-2026/minimind3"):
        for what, keys in rows:

            def change(config, keys=keys):
                for key, value in keys.items():
                    config.pop(key, None)
                    if value is not None:
                        config[key] = value

            folders[variant(name, work("variant", name, what), change)] = what
    ids = [(7 * i + 3) % 500 for i in range(96)]
    found = transformers({"logits": {folder: ids for folder in folders}})
    worst = max(float(close(found[folder], mmx_logits(folder, [ids], "ggml")[0], 1e-4, what).split()[-1]) for folder, what in folders.items())
    return f"{len(folders)} configurations, {worst:.1e}"


@check("named templates are chosen as Transformers 4.57 and 5 choose, and again from what mmx exports")
def _():
    source, out = work("named"), work("named-out")
    shutil.copytree(FOLDERS["golden-2026/minimind3"], source)
    os.remove(os.path.join(source, "chat_template.jinja"))
    path = os.path.join(source, "tokenizer_config.json")
    settings = json.load(open(path))
    loop = "{% for m in messages %}{{ m.content }}{% endfor %}"
    settings["chat_template"] = [{"name": "default", "template": "D:" + loop}, {"name": "tool_use", "template": "T:{{ tools | tojson }}" + loop}]
    json.dump(settings, open(path, "w"))
    paths = export(source, "--hf", "f32", "--gguf", "f32", out=out)
    folders = [source, os.path.join(out, "hf-f32")]
    json.dump({"messages": CHAT, "tools": [TOOL]}, open(work("tools.json"), "w"))
    json.dump(CHAT, open(work("chat.json"), "w"))
    show = lambda model, chat: mmx("tokenizer", "show", model, "--chat", work(chat))["text"]
    own = [[show(model, "chat.json"), show(model, "tools.json")] for model in (*folders, gguf_of(paths))]
    assert own[0][0].startswith("D:") and own[0][1].startswith("T:"), own
    assert own[1] == own[0] and own[2] == own[0], own
    for python in (sys.executable, PYTHON_457):
        found = transformers({"templates": folders}, python)
        assert [found[folder] for folder in folders] == own[:2], found


if PYTHON_MISTRAL:
    MISTRAL = """
import json, sys
from mistralrs import CompletionRequest, Runner, Which
folder, file = sys.argv[1:3]
for which in (Which.Plain(model_id=folder), Which.GGUF(quantized_model_id=file.rsplit("/", 1)[0], quantized_filename=file.rsplit("/", 1)[1])):
    request = CompletionRequest(model="m", prompt="Ada has", max_tokens=8, temperature=0.0, top_k=1)
    print("TEXT", json.dumps(Runner(which=which).send_completion_request(request).choices[0].text))
"""
    for name in ("golden/minimind2", "golden/minimind3", "golden/minimind3-moe", "golden-2026/minimind3", "golden-2026/minimind3-moe"):

        @check(f"{name}: mistral.rs on folder and GGUF")
        def _(name=name):
            gguf = gguf_of(PATHS[name])
            out = subprocess.run([PYTHON_MISTRAL, "-c", MISTRAL, FOLDERS[name], gguf], capture_output=True, text=True, timeout=120)
            texts = [json.loads(line[5:]) for line in out.stdout.splitlines() if line.startswith("TEXT ")]
            assert len(texts) == 2, out.stdout[-500:] + out.stderr[-2000:]
            own = mmx("run", gguf, "--raw", "-p", "Ada has", "-n", "8", "--temperature", "0")["text"]
            for text in texts:  # it writes names of control tokens out
                assert re.sub(r"<\|.*?\|>", "", text) == own, (text, own)


finish()
