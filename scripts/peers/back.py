#!/usr/bin/env python3
"""back.py MMX SHARED WORK PYTHON_TRL PYTHON_MLX
The way back: an export of each family (the golden models, and one made as scripts/run makes its own) opened by other programs and
saved again, then opened by every engine of mmx and exported once more. Where nothing was trained the GGUF comes out as the same
bytes. Transformers' plain save_pretrained is in doors.py; here are shards, half precision, resized and padded vocabularies, a GGUF
opened by Transformers, MLX, and what TRL (SFT, DPO) and PEFT (adapters, merged) trained for two steps. PYTHON_TRL or PYTHON_MLX may
be "" where they do not install."""
import json, os, shutil, subprocess, sys

sys.path.insert(0, os.path.dirname(__file__))
from check import MMX, SHARED, WORK, check, close, export, finish, gguf_of, mmx, mmx_logits

PYTHON_TRL, PYTHON_MLX = sys.argv[4:6]
HERE = os.path.dirname(os.path.abspath(__file__))
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(2)
TEXTS = ["Ada has 3 apples", " 李华 有 12 个苹果，", "<|im_start|>user\nhello<|im_end|>\n"]
IDS = [1, 5, 77, 200, 301, 4, 9, 12]
GOLDEN = ["golden/minimind2", "golden/minimind2-moe", "golden/minimind3", "golden/minimind3-moe",
          "golden-2026/minimind3", "golden-2026/minimind3-moe", "golden-2026/minimind3-moe-top2"]  # fmt: skip


def work(*parts):
    return os.path.join(WORK, "back", *parts)


def first_model():
    """A model as scripts/run trains it, after two steps; its tokenizer has fewer entries than the embedding rows."""
    text = work("text.jsonl")
    os.makedirs(work(), exist_ok=True)
    with open(text, "w") as out:
        for name in ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "ARCHITECTURE.md"):
            for paragraph in open(os.path.join(HERE, "../..", name)).read().split("\n\n"):
                out.write(json.dumps({"text": paragraph}) + "\n")
    tokenizer, run = work("tokenizer"), work("run")
    mmx("tokenizer", "train", "--data", text, "--vocab-size", 1024, "--out", tokenizer)
    settings = ["--max-steps", 2, "--batch-size", 2, "--accum", 1, "--lr", 2e-3, "--max-seq-len", 64, "--seed", 1, "--threads", 1, "--device", "cpu"]
    mmx("train", "pretrain", "--config", os.path.join(HERE, "../first-model.json"), "--tokenizer", tokenizer, "--data", text, "--out", run, *settings)
    return run


MODELS = [*GOLDEN, "first"]
PATHS = {name: export(os.path.join(SHARED, name), "--tokenizer", os.path.join(SHARED, name.split("/")[0]), "--hf", "f32", "--gguf", "f32", out=work(name)) for name in GOLDEN}
PATHS["first"] = export(first_model(), "--hf", "f32", "--gguf", "f32", out=work("first"))
FOLDERS = {name: work(name, "hf-f32") for name in MODELS}
GGUFS = {name: gguf_of(PATHS[name]) for name in MODELS}


def ids_of(model, text):
    return mmx("tokenizer", "show", model, text)["ids"]


def returned(folder, out, like=None):
    """Every engine on what came back and on its GGUF; `like`: the export it was made from and still equals, byte for byte."""
    gguf = gguf_of(export(folder, "--gguf", "f32", out=out))
    report = mmx("verify", folder, gguf)  # the folder by native is what the rows are held to
    rows = report["rows"]
    assert all(row["ok"] and row["tokens_equal"] for row in rows), rows
    assert {row["engine"] for row in rows} == {"ggml", "llama.cpp"}, rows
    for text in TEXTS:
        assert ids_of(folder, text) == ids_of(gguf, text), text
    if like:
        assert open(gguf, "rb").read() == open(like, "rb").read(), f"{gguf} and {like}: other bytes"
    return gguf


def logits_agree(expected, model, gguf):
    """The logits that the program computed of IDS, and every engine's."""
    worst = 0.0
    for path, engine in ((model, "native"), (model, "ggml"), (gguf, "ggml"), (gguf, "llama.cpp")):
        found = mmx_logits(path, [IDS], engine)[0]
        worst = max(worst, float(close(expected, found, 1e-4, engine).split()[-1]))
    return f"logits within {worst:.1e}"


def transformers_logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].tolist()


for name in MODELS:

    @check(f"{name}: saved by Transformers in shards, and back")
    def _():
        back = work("shards", name)
        AutoModelForCausalLM.from_pretrained(FOLDERS[name], dtype=torch.float32).save_pretrained(back, max_shard_size="200KB")
        AutoTokenizer.from_pretrained(FOLDERS[name]).save_pretrained(back)
        shards = sum(file.endswith(".safetensors") for file in os.listdir(back))
        assert shards > 1, os.listdir(back)
        returned(back, back + "-out", GGUFS[name])
        return f"{shards} shards, the same GGUF"

    @check(f"{name}: a vocabulary that was resized and padded afterwards")
    def _():
        back = work("resized", name)
        tokenizer = AutoTokenizer.from_pretrained(FOLDERS[name])
        model = AutoModelForCausalLM.from_pretrained(FOLDERS[name], dtype=torch.float32)
        before = model.get_input_embeddings().num_embeddings
        tokenizer.add_tokens(["<new_word>", "新词"])
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]}, replace_extra_special_tokens=False)
        model.resize_token_embeddings(max(len(tokenizer), before), pad_to_multiple_of=64)
        model.save_pretrained(back)
        tokenizer.save_pretrained(back)
        gguf = returned(back, back + "-out")
        text = "hello <new_word> 新词<|new|> end"
        expected = tokenizer(text)["input_ids"]
        assert ids_of(back, text) == ids_of(gguf, text) == expected
        assert {tokenizer.convert_tokens_to_ids(t) for t in ("<new_word>", "新词", "<|new|>")} <= set(expected), expected
        rows = model.get_input_embeddings().num_embeddings
        assert rows % 64 == 0 and rows >= len(tokenizer)
        return f"{before} to {rows} rows, {len(tokenizer)} tokens; " + logits_agree(transformers_logits(back), back, gguf)


@check("a folder saved in bfloat16 by Transformers")
def _():
    for name in ("golden/minimind2", "golden/minimind3-moe"):
        back = work("half", name)
        AutoModelForCausalLM.from_pretrained(FOLDERS[name], dtype=torch.bfloat16).save_pretrained(back)
        AutoTokenizer.from_pretrained(FOLDERS[name]).save_pretrained(back)
        logits_agree(transformers_logits(back), back, returned(back, back + "-out"))


@check("a GGUF opened by Transformers and saved as a folder")
def _():
    name = "golden/minimind2"
    back = work("gguf", name)
    where, file = os.path.split(GGUFS[name])
    model = AutoModelForCausalLM.from_pretrained(where, gguf_file=file, dtype=torch.float32)
    # floats by now, but marked as quantized, and so not to be saved
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(back)
    AutoTokenizer.from_pretrained(where, gguf_file=file).save_pretrained(back)
    gguf = returned(back, back + "-out")
    return logits_agree(transformers_logits(FOLDERS[name]), back, gguf)


if PYTHON_MLX:
    MLX = """
import json, sys
import mlx.core as mx
from mlx_lm import load
from mlx_lm.utils import save
for source, out, quantized in json.loads(sys.argv[1]):
    model, tokenizer, config = load(source, return_config=True)
    if quantized:
        from mlx_lm.utils import quantize_model
        model, config = quantize_model(model, config, group_size=32, bits=4)
    save(out, source, model, tokenizer, config)
"""

    def mlx(*jobs):
        out = subprocess.run([PYTHON_MLX, "-c", MLX, json.dumps(jobs)], capture_output=True, text=True)
        assert out.returncode == 0, out.stderr[-2000:]

    for name in MODELS:
        if name == "golden/minimind2-moe":
            continue  # mlx-lm 0.32 has no granitemoeshared

        @check(f"{name}: saved by MLX, and back")
        def _():
            back = work("mlx", name)
            mlx([FOLDERS[name], back, False])
            returned(back, back + "-out", GGUFS[name])
            return "the same GGUF"

    @check("a folder that MLX quantized is refused by that name")
    def _():
        back = work("mlx-4bit")
        mlx([FOLDERS["golden/minimind2"], back, True])
        for arguments in (["run", back, "-p", "hi"], ["export", back, "--gguf", "q8_0"], ["import", back, "--out", work("mlx-import")], ["inspect", back]):
            out = subprocess.run([MMX, *arguments], capture_output=True, text=True)
            assert out.returncode == 1 and "found one quantized by MLX (4 bits)" in out.stderr, out.stderr


if PYTHON_TRL:
    TRAINED = [("sft", name) for name in MODELS] + [("dpo", name) for name in MODELS]
    TRAINED += [("lora", name) for name in MODELS]  # all linear layers, which are joined tensors and stacks of mixtures, too
    TRAINED += [("merged", name) for name in ("golden/minimind2", "golden/minimind2-moe", "golden/minimind3", "golden-2026/minimind3-moe-top2", "first")]
    logits = {}

    @check("TRL: SFT, DPO, adapters, and adapters merged by PEFT, two steps each")
    def _():
        job = {"ids": IDS, "train": [(kind, FOLDERS[name], work("trl", kind, name)) for kind, name in TRAINED]}
        out = subprocess.run([PYTHON_TRL, os.path.join(HERE, "back_trl.py"), json.dumps(job)], capture_output=True, text=True)
        assert out.returncode == 0, out.stderr[-3000:]
        logits.update(json.loads(out.stdout.splitlines()[-1]))
        return f"{len(logits)} trainings"

    for kind, name in TRAINED:

        @check(f"{name}: trained by TRL ({kind}), and back")
        def _():
            back = work("trl", kind, name)
            expected = logits[back]
            moved = abs(torch.tensor(expected) - torch.tensor(transformers_logits(FOLDERS[name]))).max()
            assert moved > 1e-3, "nothing was trained"
            if kind == "lora":  # what PEFT keeps, as it lies there, and imported
                imported = back + "-imported"
                mmx("import", back, "--out", imported)
                close(expected, mmx_logits(back, [IDS], "ggml")[0], 1e-4, "adapters as they lie there")
                back = imported
            return logits_agree(expected, back, returned(back, back + "-out"))


finish()
