#!/usr/bin/env python3
"""events.py MMX SHARED WORK
TensorBoard's own reader on what mmx train writes: scalars equal to metrics.jsonl, texts, and a run that was resumed."""
import json, os, subprocess, sys, time

sys.path.insert(0, os.path.dirname(__file__))
from check import MMX, SHARED, WORK, check, finish
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RUN, DATA = os.path.join(WORK, "tb-run"), os.path.join(SHARED, "golden")
SIZE = {"tensors": 0, "scalars": 0}  # 0: keep all


def train(*more):
    return [
        MMX, "train", "sft", "--from", f"{DATA}/minimind2", "--tokenizer", DATA, "--data", f"{DATA}/sft.jsonl",
        "--val", f"{DATA}/sft.jsonl", "--batch-size", "1", "--accum", "1", "--epochs", "3", "--lr", "1e-3", "--max-seq-len", "96",
        "--device", "cpu", "--threads", "1", "--dtype", "f32", "--save-every", "4", "--out", RUN, *more,
    ]


def compare():
    """Every number of metrics.jsonl, by step and tag, and nothing else."""
    logged, texts = {}, {}
    for line in map(json.loads, open(os.path.join(RUN, "metrics.jsonl"))):
        for key, value in line.items():
            if isinstance(value, float) and key != "seconds":
                logged.setdefault(key, {})[line["step"]] = value
        if "samples" in line:
            texts[line["step"]] = [sample["text"] for sample in line["samples"]]
    board = EventAccumulator(os.path.join(RUN, "tb"), size_guidance=SIZE)
    board.Reload()
    tags = board.Tags()
    assert set(tags["scalars"]) == set(logged), f"tags {tags['scalars']}, logged {sorted(logged)}"
    for tag, expected in logged.items():
        found = {event.step: event.value for event in board.Scalars(tag)}
        assert found.keys() == expected.keys(), f"{tag}: steps {sorted(found)}, logged {sorted(expected)}"
        for step, value in expected.items():  # a float32 holds 24 bits
            assert abs(found[step] - value) <= abs(value) * 2**-24, f"{tag} at {step}: {found[step]}, logged {value}"
    assert tags["tensors"] == ["samples"], tags["tensors"]
    for event in board.Tensors("samples"):
        shown = [text.decode() for text in event.tensor_proto.string_val]
        assert len(shown) == 1, "one text, which every reader takes"
        parts = shown[0].split("\n\n---\n\n")
        assert len(parts) == len(texts[event.step]) > 0
        for text, expected in zip(parts, texts[event.step]):
            assert all(part in text for part in expected.split()), f"{expected!r} in {text!r}"
    assert board.SummaryMetadata("samples").plugin_data.plugin_name == "text"
    return f"{sum(map(len, logged.values()))} scalars, {len(texts)} steps with texts"


@check("tensorboard: a run killed, resumed and read")
def killed():
    child = subprocess.Popen(train(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "GOMP_SPINCOUNT": "1000"})
    log, deadline = os.path.join(RUN, "metrics.jsonl"), time.time() + 120
    while not os.path.exists(log) or open(log).read().count("\n") < 7:
        assert child.poll() is None and time.time() < deadline, child.stderr.read().decode()
        time.sleep(0.001)
    child.kill()
    child.wait()
    done = subprocess.run(train("--resume"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(os.listdir(os.path.join(RUN, "tb"))) == 2, "one file per session"
    return compare()


finish()
