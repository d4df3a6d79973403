"""The measurements of scripts/bench-rl.

  bench_rl.py prompts BIG.jsonl WORK     tasks of 100 words for both: WORK/tasks.jsonl, WORK/reward.json
  bench_rl.py mmx PROGRAM WORK STEPS TYPE ROLLOUTS    one run of mmx-train grpo, the trainer in f32 or bf16, the runner in f32, bf16 or
                                         q8_0: a line of JSON
  bench_rl.py trl FOLDER WORK STEPS      one run of GRPOTrainer on a Transformers folder: a line of JSON
  bench_rl.py report WORK                all of them, side by side

The first step of a run is left out: it fills caches and allocates. CPU seconds are those of the other steps alone: no start, no models
that are opened, no row that is tried first. The reward is 1 for a text whose last letter is one of the first
half of the alphabet: of random text that differs from row to row, so that every group has something to learn."""
import json, os, pathlib, re, resource, shutil, statistics, subprocess, sys, time

GROUP, PROMPTS, NEW, PROMPT_WORDS, LONGEST = 8, 2, 256, 60, 384
RUNS = ("mmx", "mmx-q8_0", "mmx-bf16", "mmx-bf16-q8_0")
LAST = "[a-mA-M][^a-zA-Z]*$"


def prompts(big, work):
    texts = []
    for line in open(big):
        words = json.loads(line)["text"].split()
        if len(words) >= PROMPT_WORDS:
            texts.append(" ".join(words[:PROMPT_WORDS]))
        if len(texts) == 64:
            break
    with open(work / "tasks.jsonl", "w") as out:
        for text in texts:
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
            out.write(json.dumps({"conversations": turns}) + "\n")
    (work / "reward.json").write_text(json.dumps([{"type": "regex", "pattern": LAST}]))


def peak(who):
    return resource.getrusage(who).ru_maxrss * 1024


def cpu_of(process):
    """User and system seconds of a running process, by Linux's /proc."""
    fields = open(f"/proc/{process}/stat").read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def mmx(program, work, steps, dtype, rollouts):
    run = work / "run"
    shutil.rmtree(run, ignore_errors=True)
    command = [program, "grpo", "--from", work / "start", "--data", work / "tasks.jsonl", "--reward", work / "reward.json",
               "--group-size", GROUP, "--batch-size", PROMPTS, "--accum", 1, "--max-new-tokens", NEW, "--max-seq-len", LONGEST, "--kl-coef", 0,
               "--temperature", 1, "--lr", 1e-6, "--dtype", dtype, "--rollout-dtype", rollouts, "--device", "cpu", "--seed", 1,
               "--max-steps", steps + 1, "--out", run]  # fmt: skip
    said, log, spent = work / "said", run / "metrics.jsonl", []
    with open(said, "w") as out:
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=out)
        while process.poll() is None:
            done = log.read_text().count("\n") if log.exists() else 0
            if len(spent) < done:
                spent += [cpu_of(process.pid)] * (done - len(spent))
            time.sleep(0.005)
    if process.returncode:
        sys.exit(said.read_text())
    lines = [json.loads(line) for line in open(log)]
    seconds = [b["seconds"] - a["seconds"] for a, b in zip(lines, lines[1:])]
    ids = statistics.median(line["length"] for line in lines[1:]) * GROUP * PROMPTS
    cpu = [b - a for a, b in zip(spent, spent[1:])]
    return {
        "step_s": statistics.median(seconds),
        "rollout_s": statistics.median(line["rollout_s"] for line in lines[1:]),
        "handing_over_ms": 1e3 * statistics.median(line["handing_over_s"] for line in lines[1:]),
        "ids": ids,
        "cpu_s_per_step": statistics.median(cpu or [float("nan")]),
        "peak_bytes": peak(resource.RUSAGE_CHILDREN),
        "sampler_ratio": statistics.median(line["sampler_ratio"] for line in lines),
        "sampler_ratio_max": max(line["sampler_ratio_max"] for line in lines),
        "sampler_ratio_outside": statistics.median(line["sampler_ratio_outside"] for line in lines),
    }


def trl(folder, work, steps):
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.manual_seed(1)
    tasks = [json.loads(line)["conversations"][:-1] for line in open(work / "tasks.jsonl")]

    def reward(completions, **_):
        return [float(bool(re.search(LAST, turns[0]["content"]))) for turns in completions]

    marks, spent, generating = [], [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            marks.append(time.perf_counter())
            spent.append(time.process_time())

        def on_step_end(self, *_, **__):
            marks.append(time.perf_counter())
            spent.append(time.process_time())

    class Timed(GRPOTrainer):
        def _generate(self, *args, **more):
            begun = time.perf_counter()
            made = super()._generate(*args, **more)
            generating.append(time.perf_counter() - begun)
            return made

    config = GRPOConfig(output_dir=str(work / "trl"), max_steps=steps + 1, per_device_train_batch_size=GROUP * PROMPTS, num_generations=GROUP,
                        max_completion_length=NEW, beta=0.0, temperature=1.0, top_p=1.0, top_k=0, learning_rate=1e-6, report_to="none",
                        use_cpu=True, bf16=False, save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=1,
                        gradient_checkpointing=False)  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trainer = Timed(model=model, processing_class=AutoTokenizer.from_pretrained(folder), reward_funcs=reward, args=config,
                    train_dataset=Dataset.from_list([{"prompt": turns} for turns in tasks]), callbacks=[Clock()])  # fmt: skip
    trainer.train()

    def of_steps(marks):
        # on_step_begin, on_step_end of each step; a step ends where the next one's begins
        begins, last = marks[::2], marks[-1]
        return [b - a for a, b in zip(begins[1:], [*begins[2:], last])]

    seconds = of_steps(marks)
    return {
        "step_s": statistics.median(seconds),
        "rollout_s": statistics.median(generating[1:]),
        "ids": GROUP * PROMPTS * NEW,
        "cpu_s_per_step": statistics.median(of_steps(spent)),
        "peak_bytes": peak(resource.RUSAGE_SELF),
    }


def report(work):
    rows = {}
    for name in (*RUNS, "trl"):
        runs = [json.loads(line) for line in open(work / f"{name}.jsonl")]
        rows[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    print(f"{'':14}{'samples/s':>10}{'step s':>9}{'rollout s':>10}{'share':>7}{'ids/s':>8}{'weights ms':>11}{'CPU s':>7}{'peak MB':>9}")
    for name, row in rows.items():
        ids = row["ids"] / row["rollout_s"]
        over = f"{row['handing_over_ms']:11.1f}" if "handing_over_ms" in row else f"{'the same':>11}"
        print(f"{name:14}{GROUP * PROMPTS / row['step_s']:10.2f}{row['step_s']:9.2f}{row['rollout_s']:10.2f}{row['rollout_s'] / row['step_s']:7.0%}"
              f"{ids:8.0f}{over}{row['cpu_s_per_step']:7.2f}{row['peak_bytes'] / 1e6:9.0f}")  # fmt: skip
    theirs = rows["trl"]
    for name in RUNS:
        ours = rows[name]
        print(f"{name}: {theirs['step_s'] / ours['step_s']:.1f} times TRL's samples per second (in CPU seconds {theirs['cpu_s_per_step'] / ours['cpu_s_per_step']:.1f}), "
              f"{ours['peak_bytes'] / theirs['peak_bytes']:.0%} of its memory; old / sampled {ours['sampler_ratio']:.5f}, at most "
              f"{ours['sampler_ratio_max']:.3f}, {ours['sampler_ratio_outside']:.2%} outside 0.9 to 1.1")  # fmt: skip
    # 26M parameters: 2 operations each and token forward, 4 backward; prompts once for a group
    ours, flop = rows["mmx"], 2 * 25.8e6
    print(f"rollout: {ours['ids'] / ours['rollout_s'] * flop / 1e9:.0f} GFLOP/s; a step of 16 rows reads 104 MB of weights and multiplies 0.8 GFLOP "
          f"in about the same time again, so both bound it; training: {(ours['ids'] * 3 * flop) / max(ours['step_s'] - ours['rollout_s'], 1e-9) / 1e9:.0f} GFLOP/s of what was sampled, bound by "
          "multiplying; hand-over: 104 MB read, 117 MB written, bound by memory")  # fmt: skip


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["prompts", big, work]:
            prompts(big, pathlib.Path(work))
        case ["mmx", program, work, steps, dtype, rollouts]:
            print(json.dumps(mmx(program, pathlib.Path(work), int(steps), dtype, rollouts)))
        case ["trl", folder, work, steps]:
            print(json.dumps(trl(folder, pathlib.Path(work), int(steps))))
        case ["report", work]:
            report(pathlib.Path(work))
        case _:
            sys.exit(__doc__)
