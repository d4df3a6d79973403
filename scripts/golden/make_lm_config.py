"""Models of MiniMind's first class (LMConfig, 2024 to April 2025), tiny and random, float32 on CPU: its state dict by torch.save, in float16,
and the logits of a naive forward pass that turns neighbouring elements of a head as complex numbers, as that class does.
usage: make_lm_config.py OUT_DIR (tests/fixtures/lm-config; made with torch 2.11.0)"""
import json, math, pathlib, sys
import torch, torch.nn.functional as F

torch.set_num_threads(1)
out = pathlib.Path(sys.argv[1])
VOCAB, HIDDEN, LAYERS = 64, 64, 1
ids = torch.arange(32) * 37 % VOCAB


def norm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight


def turn(x, theta):  # [seq, heads, head_dim]
    seq, _, dim = x.shape
    angles = torch.outer(torch.arange(seq).float(), theta ** -(torch.arange(0, dim, 2).float() / dim))
    turned = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.view_as_real(turned).flatten(2)


def network(x, w, name):
    return F.linear(F.silu(F.linear(x, w[f"{name}.w1.weight"])) * F.linear(x, w[f"{name}.w3.weight"]), w[f"{name}.w2.weight"])


def forward(w, heads, kv_heads, theta, experts):
    x, seq, dim = w["tok_embeddings.weight"][ids], len(ids), HIDDEN // heads
    for layer in range(LAYERS):
        p = f"layers.{layer}"
        h = norm(x, w[f"{p}.attention_norm.weight"])
        q, k, v = (F.linear(h, w[f"{p}.attention.w{n}.weight"]).view(seq, -1, dim) for n in "qkv")
        q, k = turn(q, theta), turn(k, theta)
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(dim) + torch.full((seq, seq), float("-inf")).triu(1)
        x = x + F.linear(torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(seq, -1), w[f"{p}.attention.wo.weight"])
        h = norm(x, w[f"{p}.ffn_norm.weight"])
        if not experts:
            x = x + network(h, w, f"{p}.feed_forward")
            continue
        chosen, which = F.linear(h, w[f"{p}.feed_forward.gate.weight"]).softmax(-1).topk(2)
        chosen = chosen / (chosen.sum(-1, keepdim=True) + 1e-20)
        mixed = network(h, w, f"{p}.feed_forward.shared_experts")
        for token in range(seq):
            for weight, expert in zip(chosen[token], which[token]):
                mixed[token] += weight * network(h[token], w, f"{p}.feed_forward.experts.{expert}")
        x = x + mixed
    return F.linear(norm(x, w["norm.weight"]), w["output.weight"])


def make(name, heads, kv_heads, theta, experts, masks):
    torch.manual_seed(5)
    ffn = 64 * -(-(8 * HIDDEN // 3) // 64) if not experts else 64
    shapes = {"tok_embeddings": (VOCAB, HIDDEN), "norm": (HIDDEN,)}
    for layer in range(LAYERS):
        p, kv = f"layers.{layer}", HIDDEN // heads * kv_heads
        shapes |= {f"{p}.attention_norm": (HIDDEN,), f"{p}.ffn_norm": (HIDDEN,), f"{p}.attention.wq": (HIDDEN, HIDDEN)}
        shapes |= {f"{p}.attention.wk": (kv, HIDDEN), f"{p}.attention.wv": (kv, HIDDEN), f"{p}.attention.wo": (HIDDEN, HIDDEN)}
        parts = [f"{p}.feed_forward"]
        if experts:
            shapes[f"{p}.feed_forward.gate"] = (experts, HIDDEN)
            parts = [f"{p}.feed_forward.experts.{e}" for e in range(experts)] + [f"{p}.feed_forward.shared_experts"]
        for part in parts:
            shapes |= {f"{part}.w1": (ffn, HIDDEN), f"{part}.w2": (HIDDEN, ffn), f"{part}.w3": (ffn, HIDDEN)}
    values = {k: torch.rand(s) + 0.5 if len(s) == 1 else 0.2 * torch.randn(s) for k, s in shapes.items()}
    w = {f"{k}.weight": v.half() for k, v in values.items()}
    w["output.weight"] = w["tok_embeddings.weight"]
    if masks:
        w |= {f"layers.{n}.attention.mask": torch.full((1, 1, 48, 48), float("-inf")).triu(1).half() for n in range(LAYERS)}
    torch.save(w, out / name)
    logits = forward({k: v.float() for k, v in w.items()}, heads, kv_heads, theta, experts)
    return {"file": name, "ids": ids.tolist(), "logits": [round(x, 6) for x in logits[-1].tolist()]}


out.mkdir(exist_ok=True)
rows = [make("full_sft_64.pth", 16, 8, 1e4, 0, True), make("rlhf_64.pth", 8, 2, 1e6, 0, False), make("rlhf_64_moe.pth", 8, 2, 1e6, 3, False)]
(out / "logits.json").write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]" + "\n")
