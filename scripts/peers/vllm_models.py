#!/usr/bin/env python3
"""vllm_models.py MMX SHARED WORK
Random models whose heads vLLM's CPU attention takes (hidden 128, heads of 32), one of each family, through mmx; their
greedy continuation by Transformers, for vllm_greedy.py; and with each rotary scaling, after a prompt of three times the
trained length. Not `dynamic`: vLLM 0.32 takes one base for all lengths, and that of max_position_embeddings is the plain one.
Prints FOLDER=EXPECTED.json, one a line."""
import json, os, sys

sys.path.insert(0, os.path.dirname(__file__))
from check import SHARED, WORK, export, mmx
import torch
from transformers import AutoConfig, AutoModelForCausalLM

torch.set_num_threads(2)
SCALINGS = ("linear:4:64", "ntk:4:64", "yarn:4:64", "llama3:4:64")
SHAPE = dict(vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=512, rope_theta=1e6, bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.08)
MODELS = {
    "llama": dict(rms_norm_eps=1e-5, tie_word_embeddings=True),
    "granitemoeshared": dict(rms_norm_eps=1e-5, tie_word_embeddings=True, num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=256,
                             attention_multiplier=32**-0.5, embedding_multiplier=1.0, residual_multiplier=1.0, logits_scaling=1.0),
    "qwen3": dict(rms_norm_eps=1e-6, head_dim=32, tie_word_embeddings=False),
    "qwen3_moe": dict(rms_norm_eps=1e-6, head_dim=32, tie_word_embeddings=True, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=256,
                      norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[]),
}


def case(imported, name, prompt, *options):
    """Exports a model and prints its folder and what Transformers goes on with; the exported model."""
    out = os.path.join(WORK, "vllm", name)
    export(imported, "--hf", "f32", *options, out=out)
    folder = os.path.join(out, "hf-f32")
    exported = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        all_ids = exported.generate(
            torch.tensor([prompt]), max_new_tokens=24, min_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    where = os.path.join(out, "expected.json")
    json.dump({"prompt": prompt, "expected": all_ids[0].tolist()[len(prompt) :]}, open(where, "w"))
    print(f"{folder}={where}", flush=True)
    return exported


for kind, more in MODELS.items():
    torch.manual_seed(11)
    config = AutoConfig.for_model(kind, **SHAPE, **more)
    source = os.path.join(WORK, "vllm", kind, "source")
    model = AutoModelForCausalLM.from_config(config).float().eval()
    model.save_pretrained(source)
    imported = os.path.join(WORK, "vllm", kind, "imported")
    mmx("import", source, "--tokenizer", os.path.join(SHARED, "golden"), "--out", imported)
    short = [1, 77, 300, 45, 211, 90, 402, 13]
    exported = case(imported, kind, short)
    with torch.no_grad():
        ids = torch.tensor([short])
        assert torch.allclose(model(ids).logits, exported(ids).logits, atol=1e-5), kind
    long = torch.randint(3, 500, (192,), generator=torch.Generator().manual_seed(3)).tolist()
    for scaling in SCALINGS:
        case(imported, f"{kind}-{scaling.split(':')[0]}", long, "--rope-scaling", scaling)
