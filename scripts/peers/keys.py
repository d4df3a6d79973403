#!/usr/bin/env python3
"""keys.py MMX SHARED WORK PYTHON_457
Key by key: what `mmx export --hf` writes beside the weights, and what Transformers 4.57 (PYTHON_457) and 5 (this Python) save
of the same architecture, built from their own classes, of the same tokenizer and the same sampling. Each difference stands in
DIFFERENCES with its reason; one that does not is a failure, as is a reason without a difference."""
import json, math, os, shutil, subprocess, sys

sys.path.insert(0, os.path.dirname(__file__))
from check import SHARED, WORK, check, export, finish

PYTHON_457 = sys.argv[4]
LLAMA, GRANITE, QWEN, QWEN_MOE = "LlamaForCausalLM", "GraniteMoeSharedForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"
FAMILIES = {"golden/minimind2": LLAMA, "golden/minimind2-moe": GRANITE, "golden/minimind3": QWEN, "golden/minimind3-moe": QWEN_MOE,
            "golden-2026/minimind3": QWEN, "golden-2026/minimind3-moe": QWEN_MOE, "golden-2026/minimind3-moe-top2": QWEN_MOE, "yarn": QWEN}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1.0}
# bos 1, eos 2 and pad 0 of every MiniMind vocabulary; mmx's own sampling where a model has none
SPECIALS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SAMPLING = {"do_sample": True, "temperature": 0.85, "top_p": 0.85}

ANY, MOE, BOTH = (LLAMA, GRANITE, QWEN, QWEN_MOE), (GRANITE, QWEN_MOE), ("4.57", "5")
# file, key, versions it differs from, classes, what is so ("ours": only mmx writes it; "theirs": only Transformers; "value"), why
DIFFERENCES = [
    ("config.json", "transformers_version", BOTH, ANY, "theirs", "no Transformers wrote it"),
    ("config.json", "torch_dtype", BOTH, ANY, "ours", "what dtype was called before 4.56, and what vLLM's older releases read"),
    ("config.json", "rope_theta", ("5",), ANY, "ours", "where every version before 5 looks, and MLX and mistral.rs"),
    ("config.json", "rope_parameters", ("4.57",), ANY, "ours", "where 5 looks"),
    ("config.json", "rope_scaling", ("4.57",), ANY, "theirs", "null is what is meant without it; 5 writes none"),
    ("config.json", "rope_scaling", ("5",), (QWEN,), "ours", "YaRN where 4.57 looks"),
    ("config.json", "rope_scaling", ("4.57",), (QWEN,), "value", "YaRN under `type`, too, as before 4.43"),
    ("config.json", "rope_parameters", ("5",), (QWEN,), "value", "YaRN under `type`, too, as before 4.43"),
    ("config.json", "position_embedding_type", ("4.57",), (GRANITE,), "theirs", "rope, which is what is meant without it; 5 has no such key"),
    ("config.json", "n_shared_experts", BOTH, (GRANITE,), "ours", "MiniMind's own key, by which mmx goes on training"),
    ("config.json", "seq_aux", BOTH, (GRANITE,), "ours", "MiniMind's own key, by which mmx goes on training"),
    ("config.json", "num_experts", BOTH, (GRANITE,), "ours", "TRL asks every mixture of experts for it by this name; num_local_experts is there too"),
    ("config.json", "max_window_layers", BOTH, (QWEN,), "value", "the layer from which windows would begin: none of a small model, where 28 is a constant of the class"),
    ("config.json", "max_window_layers", BOTH, (QWEN_MOE,), "ours", "mistral.rs refuses a Qwen3-MoE without it"),
    ("config.json", "num_experts", ("5",), (QWEN_MOE,), "ours", "as 4.57 spells it: MLX, mistral.rs and llama.cpp's converter read that; 5 reads both"),
    ("config.json", "num_local_experts", ("5",), (QWEN_MOE,), "theirs", "as 5 spells num_experts"),
    ("generation_config.json", "transformers_version", BOTH, ANY, "theirs", "no Transformers wrote it"),
    ("special_tokens_map.json", "", ("4.57",), ANY, "theirs", "says again what tokenizer_config.json says; 5 writes none"),
    ("tokenizer.json", "post_processor", ("5",), ANY, "value", "5 writes one that adds nothing; ours is the source's, byte for byte"),
    ("tokenizer_config.json", "chat_template", BOTH, ANY, "ours", "beside chat_template.jinja, for readers that know no such file"),
    ("tokenizer_config.json", "model_input_names", BOTH, ANY, "ours", "the general class has token_type_ids among them, which generate() of these models refuses"),
    ("tokenizer_config.json", "extra_special_tokens", ("4.57",), ANY, "theirs", "an empty object, which is what is meant without it"),
    ("tokenizer_config.json", "add_bos_token", ("5",), ANY, "ours", "what the post-processor does, for llama.cpp's converter; 5 keeps none of the general class"),
    ("tokenizer_config.json", "add_eos_token", ("5",), ANY, "ours", "what the post-processor does, for llama.cpp's converter; 5 keeps none of the general class"),
    ("tokenizer_config.json", "added_tokens_decoder", ("5",), ANY, "ours", "as 4 writes it; 5 takes tokenizer.json's"),
    ("tokenizer_config.json", "tokenizer_class", ("5",), ANY, "value", "TokenizersBackend is unknown to 4; PreTrainedTokenizerFast is known to both"),
    ("tokenizer_config.json", "backend", ("5",), ANY, "theirs", "says again what 5's class is"),
    ("tokenizer_config.json", "is_local", ("5",), ANY, "theirs", "how that process opened it"),
    ("tokenizer_config.json", "local_files_only", ("5",), ANY, "theirs", "how that process opened it"),
    ("tokenizer_config.json", "additional_special_tokens", ("5",), (QWEN, QWEN_MOE), "ours", "as 4 spells it; 5 reads both"),
    ("tokenizer_config.json", "extra_special_tokens", ("5",), (QWEN, QWEN_MOE), "theirs", "a list, which 4 cannot read"),
    ("tokenizer_config.json", "model_specific_special_tokens", ("5",), (QWEN, QWEN_MOE), "theirs", "5 gathers the source's image_token and others here once more"),
]  # fmt: skip

def work(*parts):
    return os.path.join(WORK, "keys", *parts)


def answer(job):
    """In the other process: Transformers' own files of each family."""
    import torch
    import transformers

    for one in job:
        kind = getattr(transformers, one["class"])
        model = kind(kind.config_class(**one["config"])).to(torch.float32)
        model.generation_config = transformers.GenerationConfig(**one["sampling"])
        tokenizer = transformers.AutoTokenizer.from_pretrained(one["tokenizer"])
        tokenizer.padding_side = "left"
        tokenizer.init_kwargs["padding_side"] = "left"
        model.save_pretrained(one["out"])
        tokenizer.save_pretrained(one["out"])
    print(json.dumps(transformers.__version__))


if len(sys.argv) > 5:
    answer(json.loads(sys.argv[5]))
    sys.exit()


def source(name):
    """The model's folder and its tokenizer's."""
    if name != "yarn":
        return os.path.join(SHARED, name), os.path.join(SHARED, name.split("/")[0])
    if not os.path.exists(work("yarn-source")):
        shutil.copytree(os.path.join(SHARED, "golden/minimind3"), work("yarn-source"))
        path = work("yarn-source", "config.json")
        own = json.load(open(path))
        json.dump(own | {"rope_scaling": YARN}, open(path, "w"))
    return work("yarn-source"), os.path.join(SHARED, "golden")


def architecture(name):
    """The model as Transformers' configuration class takes it."""
    own = json.load(open(os.path.join(source(name)[0], "config.json")))
    kind, config = FAMILIES[name], dict(SPECIALS)
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                "max_position_embeddings", "rms_norm_eps", "rope_theta", "tie_word_embeddings"):  # fmt: skip
        config[key] = own[key]
    if "rope_scaling" in own:
        config["rope_scaling"] = own["rope_scaling"]
    if kind == GRANITE:
        config |= {"num_local_experts": own["n_routed_experts"], "num_experts_per_tok": own["num_experts_per_tok"],
                   "shared_intermediate_size": own["n_shared_experts"] * own["intermediate_size"],
                   "router_aux_loss_coef": own["aux_loss_alpha"],
                   "attention_multiplier": 1 / math.sqrt(own["head_dim"])}  # fmt: skip
    else:
        config["head_dim"] = own["head_dim"]
    if kind == QWEN_MOE:
        for key in ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "router_aux_loss_coef"):
            config[key] = own[key]
    return config


def files(folder):
    return sorted(name for name in os.listdir(folder) if name.endswith((".json", ".jinja")))


def keys(folder, name):
    return json.load(open(os.path.join(folder, name))) if os.path.exists(os.path.join(folder, name)) else {}


def differences(ours, theirs):
    """(file, key, what, values) of each."""
    for name in sorted({*files(ours), *files(theirs)}):
        there = [os.path.exists(os.path.join(folder, name)) for folder in (ours, theirs)]
        if not all(there):
            yield name, "", "ours" if there[0] else "theirs", ""
        elif name.endswith(".jinja"):
            if open(os.path.join(ours, name)).read() != open(os.path.join(theirs, name)).read():
                yield name, "", "value", ""
        else:
            one, other = keys(ours, name), keys(theirs, name)
            for key in sorted({*one, *other}):
                if key not in other:
                    yield name, key, "ours", json.dumps(one[key])
                elif key not in one:
                    yield name, key, "theirs", json.dumps(other[key])
                elif one[key] != other[key]:
                    yield name, key, "value", f"{json.dumps(one[key])} and {json.dumps(other[key])}"


used = set()


def reason(file, key, version, kind, what):
    for row, (its_file, its_key, versions, classes, its_what, why) in enumerate(DIFFERENCES):
        if (its_file, its_key, its_what) == (file, key, what) and version in versions and kind in classes:
            used.add((row, version, kind))
            return why
    return None


OURS = {}
for name in FAMILIES:
    model, tokenizer = source(name)
    export(model, "--tokenizer", tokenizer, "--hf", "f32", out=work(name))
    OURS[name] = work(name, "hf-f32")

for version, python in (("5", sys.executable), ("4.57", PYTHON_457)):
    theirs = {name: work(version, name) for name in FAMILIES}
    job = [{"class": FAMILIES[name], "config": architecture(name), "sampling": SPECIALS | SAMPLING, "tokenizer": source(name)[1],
            "out": theirs[name]} for name in FAMILIES]  # fmt: skip

    @check(f"Transformers {version} saves its own of each architecture")
    def _():
        out = subprocess.run([python, __file__, *sys.argv[1:5], json.dumps(job)], capture_output=True, text=True)
        assert out.returncode == 0, out.stderr[-3000:]
        found = json.loads(out.stdout.splitlines()[-1])
        assert found.startswith(version), found
        return found

    for name, kind in FAMILIES.items():

        @check(f"{name}: key by key with what Transformers {version} saves")
        def _():
            found = list(differences(OURS[name], theirs[name]))
            unlisted = [row for row in found if reason(row[0], row[1], version, kind, row[2]) is None]
            assert not unlisted, "differences without a reason:\n" + "\n".join(f"{file} {key}: {what} {values[:200]}" for file, key, what, values in unlisted)
            return f"{len(found)} differences, each with its reason"


@check("each reason has its difference")
def _():
    rows = {(row, version, kind) for row, one in enumerate(DIFFERENCES) for version in one[2] for kind in one[3]}
    idle = [f"{DIFFERENCES[row][:2]} in {version} for {kind}" for row, version, kind in sorted(rows - used)]
    assert not idle, "\n".join(idle)
    return f"{len(DIFFERENCES)} reasons"


finish()
