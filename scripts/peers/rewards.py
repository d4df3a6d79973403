#!/usr/bin/env python3
"""rewards.py MMX SHARED WORK PYTHON_TRL
TRL as the peer of learning from rewards: given the same rollouts and rewards, loss and gradient norm of `mmx train grpo --rollouts` are
those of its GRPOTrainer, in three settings: the mean of rows with a reference model that differs, DAPO's mean of tokens with more room
above, and Dr. GRPO's sum, whose advantages are not divided. The ratios reach beyond both clips."""
import json, os, random, subprocess, sys

sys.path.insert(0, os.path.dirname(__file__))
from check import SHARED, WORK, check, close, export, finish, mmx

PYTHON_TRL = sys.argv[4]
HERE = os.path.dirname(os.path.abspath(__file__))
GROUP, GROUPS, MAX_NEW = 4, 2, 24
# name: what mmx is told, what TRL is told; its own default weighs the divergence by the ratio (DeepSeek-V3.2), GRPO's does not
SETTINGS = {
    "grpo": (["--loss", "grpo", "--kl-coef", 0.2, "--epsilon", 0.2, "--epsilon-high", 0.2], dict(loss_type="grpo", beta=0.2, epsilon=0.2, use_bias_correction_kl=False)),
    "dapo": (["--loss", "dapo", "--kl-coef", 0, "--epsilon", 0.2, "--epsilon-high", 0.28], dict(loss_type="dapo", beta=0.0, epsilon=0.2, epsilon_high=0.28)),
    "dr_grpo": (["--loss", "dr_grpo", "--kl-coef", 0, "--epsilon", 0.2, "--epsilon-high", 0.2],
                dict(loss_type="dr_grpo", beta=0.0, epsilon=0.2, scale_rewards="none")),
}  # fmt: skip


def work(*parts):
    return os.path.join(WORK, "rewards", *parts)


def rollouts():
    """Rows of made-up ids; the log-probabilities lie around those of an even distribution, some far off."""
    draw = random.Random(5)
    rows = []
    for group in range(GROUPS):
        prompt = [draw.randrange(40, 300) for _ in range(5 + 4 * group)]
        for row in range(GROUP):
            ids = [draw.randrange(40, 300) for _ in range(MAX_NEW - 5 * row)]
            # the longest is cut off, the others end with a stop id
            ids = ids if row == 0 else [*ids, 2]
            rows.append({"step": 0, "group": group, "prompt_ids": prompt, "response_ids": ids, "mask": [1] * len(ids),
                         "logps": [-5.9 + draw.gauss(0, 0.3) for _ in ids], "reward": draw.uniform(-1, 1),
                         "finish": "length" if row == 0 else "stop"})  # fmt: skip
    return rows


os.makedirs(work(), exist_ok=True)
model, tokenizer = os.path.join(SHARED, "golden-2026/minimind3"), os.path.join(SHARED, "golden-2026")
export(model, "--tokenizer", tokenizer, "--hf", "f32", out=work("start"))
# a reference of the same dimensions that differs: the start after some steps of something else
mmx("train", "sft", "--from", model, "--tokenizer", tokenizer, "--data", os.path.join(tokenizer, "sft.jsonl"), "--max-steps", 3, "--batch-size", 2,
    "--accum", 1, "--lr", 1e-3, "--max-seq-len", 64, "--dtype", "f32", "--device", "cpu", "--seed", 1, "--out", work("reference-run"))  # fmt: skip
export(work("reference-run"), "--hf", "f32", out=work("reference"))
rows = rollouts()
with open(work("rollouts.jsonl"), "w") as out:
    out.writelines(json.dumps(row) + "\n" for row in rows)
job = {"folder": work("start", "hf-f32"), "reference": work("reference", "hf-f32"), "rows": rows, "group": GROUP, "max_new": MAX_NEW,
       "settings": {name: of_trl for name, (_, of_trl) in SETTINGS.items()}}  # fmt: skip
told = subprocess.run([PYTHON_TRL, os.path.join(HERE, "rewards_trl.py"), json.dumps(job)], stdout=subprocess.PIPE, text=True)
theirs = json.loads(told.stdout.splitlines()[-1]) if told.returncode == 0 else {}


def compare(name, of_mmx):
    @check(f"TRL: loss and gradient norm, {name}")
    def _():
        trace = work(f"{name}.json")
        mmx("train", "grpo", "--from", job["folder"], "--reference", job["reference"], "--rollouts", work("rollouts.jsonl"), "--batch-size", GROUPS,
            "--group-size", GROUP, "--accum", 1, "--max-new-tokens", MAX_NEW, "--importance-sampling", "off", "--temperature", 1, "--lr", 1e-6,
            "--max-seq-len", 64, "--dtype", "f32", "--device", "cpu", "--seed", 1, "--trace", trace, "--out", work(f"run-{name}"), *of_mmx)  # fmt: skip
        [ours] = json.load(open(trace))["steps"]
        # float32 sums in another order: 1e-5 of a loss of some tenths, 1e-4 of a norm
        return ", ".join(
            f"{key} {ours[key]:.6f} ({close([theirs[name][key]], [ours[key]], limit, 'off by')})"
            for key, limit in (("loss", 1e-5), ("grad_norm", 1e-4 * theirs[name]["grad_norm"]))
        )


for name, (of_mmx, _) in SETTINGS.items():
    compare(name, of_mmx)
finish()
