#!/usr/bin/env python3
"""muon.py MMX SHARED WORK
Eight steps of pretraining with --optimizer muon beside torch.optim.Muon and torch.optim.AdamW over Transformers' model, from the
same weights on the same batches: the losses, and how far each weight has moved. torch's iteration is in bfloat16, mmx's on a CPU in
float32: within 5 % of the way of each matrix."""
import json, os, sys

sys.path.insert(0, os.path.dirname(__file__))
from check import SHARED, WORK, check, export, finish, mmx

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
LR, ADAM_LR, DECAY, WARMUP = 0.01, 0.004, 0.1, 2


def trained(golden, name):
    """The trace, batches and checkpoint of mmx."""
    folder, at = os.path.join(SHARED, golden), lambda file: os.path.join(WORK, f"muon-{name}-{file}")
    mmx("train", "pretrain", "--from", os.path.join(folder, name), "--tokenizer", folder, "--data", os.path.join(folder, "pretrain.jsonl"),
        "--optimizer", "muon", "--lr", LR, "--adam-lr", ADAM_LR, "--weight-decay", DECAY, "--schedule", "linear", "--warmup", WARMUP,
        "--pack", "off", "--shuffle", "off", "--batch-size", 4, "--accum", 1, "--epochs", 1, "--max-seq-len", 96, "--threads", 1,
        "--dtype", "f32", "--device", "cpu", "--trace", at("trace.json"), "--dump-batches", at("batches"), "--out", at("run"))  # fmt: skip
    return json.load(open(at("trace.json")))["steps"], load_file(at("batches")), at("run")


def opened(model, golden, name):
    """Transformers' model of what mmx exports."""
    files = export(model, "--tokenizer", os.path.join(SHARED, golden), "--hf", "f32", out=os.path.join(WORK, name))
    return AutoModelForCausalLM.from_pretrained(next(os.path.dirname(path) for path in files if path.endswith("config.json")))


def compared(golden, name):
    steps, batches, run = trained(golden, name)
    ours = {n: v.detach() for n, v in opened(run, golden, f"muon-{name}-end").named_parameters()}
    model = opened(os.path.join(SHARED, golden, name), golden, f"muon-{name}-start").train()
    before = {n: v.detach().clone() for n, v in model.named_parameters()}
    hidden = [v for n, v in model.named_parameters() if v.ndim == 2 and "embed_tokens" not in n and "lm_head" not in n]
    others = [v for v in model.parameters() if not any(v is h for h in hidden)]
    optimizers = [
        (LR, torch.optim.Muon(hidden, lr=LR, weight_decay=DECAY, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw")),
        (ADAM_LR, torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)),
    ]
    off = 0.0
    for step, found in enumerate(steps):
        x, y, mask = (batches[f"{step}.{part}"] for part in ("x", "y", "mask"))
        entropy = F.cross_entropy(model(x).logits.float().flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
        loss = (entropy * mask).sum() / mask.sum()
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = (step + 1) / WARMUP if step < WARMUP else (len(steps) - step) / (len(steps) - WARMUP)
        for peak, optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
            optimizer.step()
        off = max(off, abs(found["loss"] / loss.item() - 1))
    away = {n: ((v.detach() - ours[n]).norm() / (v.detach() - before[n]).norm()).item() for n, v in model.named_parameters()}
    worst = max(away, key=away.get)
    assert len(steps) >= 6 and off < 0.01 and away[worst] < 0.05, (len(steps), off, worst, away[worst])
    return f"losses {off:.1e} apart, {worst} by {away[worst]:.3f} of its way"


for golden, name in (("golden", "minimind2"), ("golden-2026", "minimind3")):
    check(f"{golden}/{name}: torch.optim.Muon")(lambda: compared(golden, name))
finish()
