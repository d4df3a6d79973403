#!/usr/bin/env python3
"""export.py MMX SHARED WORK JUDGE_LLAMA
Transformers, PEFT, torch and llama.cpp on adapters, shards, .pth files, YaRN, untied heads and theta 1e4."""
import json, os, subprocess, sys

sys.path.insert(0, os.path.dirname(__file__))
from check import SHARED, WORK, check, close, export, finish, gguf_of, mmx, mmx_logits

JUDGE = os.path.abspath(sys.argv[4])
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "judge"))
import numpy as np
import torch
from judgelib import gguf_generate, gguf_logits
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

torch.set_num_threads(2)
TOK = os.path.join(SHARED, "golden")


def golden(name):
    return os.path.join(SHARED, name)


def work(*parts):
    return os.path.join(WORK, *parts)


def load(folder):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info.get(key), f"{key}: {sorted(map(str, info[key]))[:4]}"
    return model.eval()


def transformers_logits(model, ids):
    with torch.no_grad():
        return model(torch.as_tensor(np.asarray(ids), dtype=torch.long)).logits.float().numpy()


IDS = load_file(golden("golden/minimind2/forward.safetensors"))["input_ids"].numpy()


@check("adapters: PEFT, MiniMind's .pth, GGUF, merged")
def _():
    from peft import PeftModel
    import peft

    tensors = load_file(golden("golden/train/lora-final.safetensors"))
    pth = work("lora_medical_64.pth")
    torch.save({key: value.half() for key, value in tensors.items()}, pth)
    base = golden("golden/minimind2")
    lora = work("lora")
    mmx("import", pth, "--base", base, "--tokenizer", TOK, "--out", lora)
    expected = mmx_logits(lora, IDS)
    paths = export(lora, "--adapter", "peft", "--adapter", "gguf", "--hf", "f32", "--gguf", "f32", out=work("lora-out"))
    plain = export(base, "--tokenizer", TOK, "--hf", "f32", "--gguf", "f32", out=work("base-out"))
    model = load(work("base-out/hf-f32"))
    before = transformers_logits(model, IDS)
    assert np.abs(before - expected).max() > 1e-2, "the adapters count"
    facts = [close(expected, transformers_logits(PeftModel.from_pretrained(model, work("lora-out/adapter-peft")), IDS), 1e-4, f"PEFT {peft.__version__}")]
    facts.append(close(expected, transformers_logits(load(work("lora-out/hf-f32")), IDS), 1e-4, "merged folder"))
    facts.append(close(expected, gguf_logits(JUDGE, gguf_of(paths), IDS.tolist()), 1e-4, "merged GGUF"))
    # a folder that PEFT itself saved comes in
    from peft import LoraConfig, get_peft_model

    own = get_peft_model(load(work("base-out/hf-f32")), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "down_proj"], init_lora_weights=False))
    own.save_pretrained(work("peft-own"))
    mmx("import", work("peft-own"), "--base", base, "--tokenizer", TOK, "--out", work("peft-in"))
    facts.append(close(transformers_logits(own, IDS), mmx_logits(work("peft-in"), IDS), 1e-4, "PEFT's own folder in mmx"))
    return ", ".join(facts)


for name in ("golden/minimind2", "golden/minimind2-moe", "golden/minimind3", "golden/minimind3-moe"):

    @check(f"{name}: shards in Transformers, .pth in torch")
    def _(name=name):
        out = work("shards", name)
        paths = export(golden(name), "--hf", "f32", "--shard-size", "200kB", "--pth", out=out)
        n = sum("-of-" in p for p in paths)
        assert n > 1, paths
        forward = load_file(golden(name + "/forward.safetensors"))
        ids, expected = forward["input_ids"].numpy(), forward["logits"].numpy()
        fact = close(expected, transformers_logits(load(os.path.join(out, "hf-f32")), ids), 1e-4, f"{n} shards")
        state = torch.load(next(p for p in paths if p.endswith(".pth")), weights_only=True)
        own = load_file(golden(name + "/model.safetensors"))
        tied = {"lm_head.weight": "model.embed_tokens.weight"}
        for key, value in state.items():
            assert torch.equal(value, own[key if key in own else tied[key]]), key
        assert set(own) <= set(state), set(own) - set(state)
        return f"{fact}, {len(state)} tensors of torch.load(weights_only=True) equal"


def variant(name, out, **keys):
    """A golden model with other keys in config.json, and a head of its own if untied."""
    os.makedirs(out)
    config = json.load(open(os.path.join(golden(name), "config.json")))
    config.update(keys)
    json.dump(config, open(os.path.join(out, "config.json"), "w"))
    tensors = load_file(os.path.join(golden(name), "model.safetensors"))
    if not config["tie_word_embeddings"]:
        table = tensors["model.embed_tokens.weight"]
        tensors["lm_head.weight"] = torch.randn(table.shape, generator=torch.Generator().manual_seed(7)) * 0.05
    save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})


VARIANTS = [("untied", dict(tie_word_embeddings=False)), ("theta 1e4", dict(rope_theta=10000.0))]
for name in ("golden/minimind2", "golden/minimind2-moe", "golden/minimind3", "golden/minimind3-moe"):
    for label, keys in VARIANTS:

        @check(f"{name}, {label}: mmx, Transformers and llama.cpp agree")
        def _(name=name, label=label, keys=keys):
            source, out = work("variant", name, label), work("variant-out", name, label)
            variant(name, source, **keys)
            paths = export(source, "--tokenizer", TOK, "--hf", "f32", "--gguf", "f32", out=out)
            expected = mmx_logits(source, IDS)
            assert np.abs(mmx_logits(golden(name), IDS) - expected).max() > 1e-2, "the change counts"
            facts = [close(expected, transformers_logits(load(os.path.join(out, "hf-f32")), IDS), 1e-4, "Transformers")]
            facts.append(close(expected, gguf_logits(JUDGE, gguf_of(paths), IDS.tolist()), 1e-4, "llama.cpp"))
            facts.append(close(expected, mmx_logits(gguf_of(paths), IDS, "ggml"), 1e-4, "runner"))
            return ", ".join(facts)


@check("YaRN beyond the original length: the reference, Transformers, llama.cpp and the runner")
def _():
    data = load_file(golden("golden-2026/minimind3/yarn.safetensors"))
    ids, expected = data["input_ids"].numpy(), data["logits_last_64"].numpy()
    ids = ids.reshape(1, -1)
    source, out = work("yarn"), work("yarn-out")
    variant("golden-2026/minimind3", source, inference_rope_scaling=True, max_position_embeddings=32768)
    paths = export(source, "--tokenizer", golden("golden-2026"), "--hf", "f32", "--gguf", "f32", out=out)
    last = lambda logits: np.asarray(logits).reshape(ids.shape[1], -1)[-64:]
    expected = expected.reshape(64, -1)
    facts = [f"{ids.shape[1]} tokens"]
    facts.append(close(expected, last(transformers_logits(load(os.path.join(out, "hf-f32")), ids)), 1e-4, "Transformers"))
    facts.append(close(expected, last(gguf_logits(JUDGE, gguf_of(paths), ids.tolist())), 1e-4, "llama.cpp"))
    facts.append(close(expected, last(mmx_logits(gguf_of(paths), ids, "ggml")), 1e-4, "runner"))
    return ", ".join(facts)


@check("YaRN with experts: mmx, Transformers, llama.cpp and the runner")
def _():
    ids = load_file(golden("golden-2026/minimind3/yarn.safetensors"))["input_ids"].numpy().reshape(1, -1)
    source, out = work("yarn-moe"), work("yarn-moe-out")
    variant("golden-2026/minimind3-moe-top2", source, inference_rope_scaling=True, max_position_embeddings=32768)
    paths = export(source, "--tokenizer", golden("golden-2026"), "--hf", "f32", "--gguf", "f32", out=out)
    expected = mmx_logits(source, ids)
    facts = [close(expected, transformers_logits(load(os.path.join(out, "hf-f32")), ids), 1e-4, "Transformers")]
    facts.append(close(expected, gguf_logits(JUDGE, gguf_of(paths), ids.tolist()), 1e-4, "llama.cpp"))
    facts.append(close(expected, mmx_logits(gguf_of(paths), ids, "ggml"), 1e-4, "runner"))
    return ", ".join(facts)


for family in ("minimind2", "minimind2-moe", "minimind3", "minimind3-moe"):

    @check(f"{family}: each rotary scaling at four times the trained length")
    def _(family=family):
        source, facts = golden(f"golden/{family}"), []
        ids = np.random.default_rng(7).integers(3, 500, (1, 256))
        for scaling in ("linear:4:64", "ntk:4:64", "yarn:4:64", "dynamic:4:64", "llama3:4:64"):
            kind = scaling.split(":")[0]
            out = work("rope", family, kind)
            # GGUF carries no base that follows the length, and Llama 3's bounds as a tensor that Qwen3's readers do not take
            refused = kind == "dynamic" or (kind == "llama3" and family.startswith("minimind3"))
            kinds = ["--hf", "f32"] if refused else ["--hf", "f32", "--gguf", "f32"]
            paths = export(source, "--tokenizer", TOK, "--rope-scaling", scaling, *kinds, out=out)
            folder = os.path.join(out, "hf-f32")
            expected = transformers_logits(load(folder), ids)
            facts.append(close(expected, mmx_logits(folder, ids, "native"), 1e-4, f"{kind} mmx"))
            if "--gguf" in kinds:
                facts.append(close(expected, gguf_logits(JUDGE, gguf_of(paths), ids.tolist()), 1e-4, "llama.cpp"))
                facts.append(close(expected, mmx_logits(gguf_of(paths), ids, "ggml"), 1e-4, "runner"))
        return ", ".join(facts)


@check("model cards: front matter as the hub reads it")
def _():
    from huggingface_hub import ModelCard

    words = ["--license", "apache-2.0", "--language", "no", "--language", "zh", "--base-model", "me/base", "--dataset", "me/data"]
    export(golden("golden/minimind2"), "--tokenizer", TOK, "--hf", "bf16", "--gguf", "q4_0", "--verify", *words, out=work("card"))
    for place, library in (("hf-bf16", "transformers"), (".", "gguf")):
        data = ModelCard.load(work("card", place, "README.md")).data
        assert (data.license, data.language, data.library_name) == ("apache-2.0", ["no", "zh"], library), data
        assert (data.base_model, data.datasets, data.pipeline_tag) == (["me/base"], ["me/data"], "text-generation"), data
    return ""


finish()
