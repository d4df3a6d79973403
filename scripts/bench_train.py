"""What scripts/bench-train compares with: plain PyTorch training Transformers' Llama, as people write it.

    bench_train.py BATCH SEQ STEPS f32|bf16 [LENGTHS]

minimind2-small's dimensions, AdamW, gradient clipping, eager; samples padded to SEQ; bf16 is autocast over float32
weights. Prints one JSON object; only real tokens are counted. `bench_train.py peak` prints the highest matrix
product rate of this machine for both types, GFLOP/s.
"""

import json
import random
import sys
import time

import torch

WARM_UP = 2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALE = 4 if DEVICE == "cuda" else 1  # of the matrices that measure the rate of products


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak():
    rates = {}
    for name, kind in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        best = 0.0
        for m, k, n in ((2048, 512, 1408), (2048, 2048, 2048), (4096, 1024, 1024)):
            m, k, n = m * SCALE, k * SCALE, n * SCALE
            a, b = torch.randn(m, k, device=DEVICE).to(kind), torch.randn(k, n, device=DEVICE).to(kind)
            for _ in range(8):
                wait()
                begun = time.perf_counter()
                a @ b
                wait()
                best = max(best, 2e-9 * m * k * n / (time.perf_counter() - begun))
        rates[name] = best
    print(json.dumps(rates))


def main():
    batch, seq, steps = (int(x) for x in sys.argv[1:4])
    autocast = sys.argv[4] == "bf16"
    lengths = [int(x) for x in open(sys.argv[5])] if len(sys.argv) > 5 else [seq]
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=6400, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=2, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True, max_position_embeddings=32768, use_cache=False,
    )
    model = LlamaForCausalLM(config).train().to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    draw = random.Random(1)
    tokens, begun, loss = 0, time.perf_counter(), None
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            wait()
            tokens, begun = 0, time.perf_counter()
        x = torch.zeros(batch, seq, dtype=torch.int64)
        labels = torch.full((batch, seq), -100)
        mask = torch.zeros(batch, seq, dtype=torch.int64)
        for row in range(batch):
            n = min(seq, lengths[(step * batch + row) % len(lengths)])
            x[row, :n] = torch.tensor([draw.randrange(1, 6400) for _ in range(n)])
            labels[row, :n], mask[row, :n] = x[row, :n], 1
            tokens += n
        x, labels, mask = x.to(DEVICE), labels.to(DEVICE), mask.to(DEVICE)
        full = len(lengths) == 1
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            loss = model(input_ids=x, attention_mask=None if full else mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    wait()
    seconds = time.perf_counter() - begun
    print(json.dumps({
        "tokens_per_s": tokens / seconds, "ms_per_step": 1e3 * seconds / steps, "tokens_per_step": tokens / steps,
        "parameters": sum(p.numel() for p in model.parameters()), "threads": torch.get_num_threads(),
        "loss": loss.item(), "torch": torch.__version__,
    }))


if sys.argv[1:] == ["peak"]:
    peak()
else:
    main()
