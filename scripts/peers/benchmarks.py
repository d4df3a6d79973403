#!/usr/bin/env python3
"""benchmarks.py MMX SHARED WORK
`mmx eval --choice` against lm-evaluation-harness, by the harness' own task files on small made sets: each benchmark in the
layout that its authors publish and in the Parquet files of a hub, without and with examples, and in the chat template. Equal
are prompts, log-likelihoods (1e-3) and which questions are right."""
import csv, json, os, random, sys

sys.path.insert(0, os.path.dirname(__file__))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of so small a model more threads wait for each other
from check import SHARED, WORK, check, export, finish, gguf_of, mmx

HERE = os.path.join(WORK, "benchmarks")
N = 8  # questions of a set
rng = random.Random(20)
HAN = ["床前", "明月光", "光,速", "上 海", "因为\n所以", "“甲”", "一个很长的答案，有标点。", "\"乙\"", "3.5", "中庸"]
LATIN = ["the sun", "tea ", "a long answer, with commas", "gravity pulls", "ice", "\"yes\"", "3.5", "It's wet"]


def path(*parts):
    out = os.path.join(HERE, *parts)
    os.makedirs(os.path.dirname(out), exist_ok=True)
    return out


def write_csv(name, rows, keys):
    """`keys`: heading -> key of the rows; a heading that is empty numbers them."""
    with open(path(name), "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(keys)
        writer.writerows([row[key] if key else i for key in keys.values()] for i, row in enumerate(rows))


def write_lines(name, rows):
    with open(path(name), "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_parquet(name, rows):
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    Dataset.from_list(rows).to_parquet(path(name))
    return path(name)


def without(rows, *keys):
    return [{key: value for key, value in row.items() if key not in keys} for row in rows]


def lettered(question="question", answer="answer", **more):
    def row(i):
        text = f"{rng.choice(['什么是', ' 下列', '谁写'])} {i}{rng.choice(['？', ' 是? ', '：'])}{rng.choice(HAN)}"
        return {**more, question: text, **dict(zip("ABCD", rng.sample(HAN, 4))), answer: rng.choice("ABCD")}

    return [row(i) for i in range(N)]


def sentence(i):
    return f"{rng.choice(['Why is', 'Which of these is', ' How does'])} thing {i} so?{rng.choice(['', ' '])}"


def choices(stem, prefix):
    def row(i):
        n = rng.choice([3, 4, 5])
        labels = [str(k + 1) for k in range(n)] if i % 3 == 1 else list("ABCDE")[:n]
        return {"id": f"{prefix}{i}", stem: sentence(i), "choices": {"text": rng.sample(LATIN, n), "label": labels}, "answerKey": rng.choice(labels)}

    return [row(i) for i in range(N)]


def nested(rows, stem):
    """AllenAI's own form of the same questions."""
    pairs = lambda row: [{"text": text, "label": label} for text, label in zip(row["choices"]["text"], row["choices"]["label"])]
    return [{"id": row["id"], "question": {"stem": row[stem], "choices": pairs(row)}, "answerKey": row["answerKey"]} for row in rows]


def goals():
    return [{"goal": sentence(i), "sol1": rng.choice(LATIN), "sol2": rng.choice(LATIN), "label": rng.randrange(2)} for i in range(N)]


def scenes():
    marks = ["", " [title]", "[header] ", " [step] ", "  "]
    part = lambda: f"{rng.choice(LATIN)}{rng.choice(marks)}{rng.choice(LATIN)}"
    keys = lambda i: {"ind": i, "activity_label": rng.choice(["Tea", "Sumo "]), "ctx_a": part() + ".", "ctx_b": rng.choice(["", "then HE", "ßa"])}
    return [{**keys(i), "ctx": "", "endings": [part() for _ in range(4)], "label": str(rng.randrange(4))} for i in range(N)]


def social():
    names = ["answerA", "answerB", "answerC"]
    return [{"context": sentence(i), "question": sentence(i), **dict(zip(names, rng.sample(LATIN, 3))), "label": str(rng.randrange(1, 4))} for i in range(N)]


class Set:
    """A made set: the harness' task and its splits, and what mmx is given: the published layout and a hub's."""

    def __init__(self, name, task, splits, asked, published, hub):
        self.name, self.task, self.splits, self.asked = name, task, splits, asked
        self.published, self.hub = os.path.join(HERE, published), os.path.join(HERE, hub)
        self.files = {split: write_parquet(f"{hub}/{split}-00000-of-00001.parquet", rows) for split, rows in splits.items()}


SETS = []
parts = {"val": lettered(id=0, explanation="因为"), "dev": lettered(id=0, explanation="因为")}
for split, rows in parts.items():
    heads = ["id", "question", "A", "B", "C", "D", "answer"] + ["explanation"] * (split == "dev")
    write_csv(f"ceval/{split}/law_{split}.csv", rows, {head: head for head in heads})
SETS.append(Set("C-Eval", "ceval/ceval-valid_law.yaml", parts, "val", "ceval", "hub-ceval/law"))

for name, task, subject, first in (("CMMLU", "cmmlu/cmmlu_agronomy.yaml", "agronomy", True), ("A-CLUE", "aclue/aclue_ancient_phonetics.yaml", "ancient_phonetics", False)):
    parts = {split: lettered("Question", "Answer") for split in ("test", "dev")}
    for split, rows in parts.items():
        keys = {"": None} if first else {}
        keys |= {head: head for head in ("Question", "A", "B", "C", "D", "Answer")}
        write_csv(f"{name}/{split}/{subject}.csv", rows, keys)
    SETS.append(Set(name, task, parts, "test", name, f"hub-{name}/{subject}"))

parts = {split: lettered() for split in ("test", "train")}
for split, rows in parts.items():
    write_csv(f"tmmlu/data/accounting_{split}.csv", rows, {head: head for head in ("question", "A", "B", "C", "D", "answer")})
SETS.append(Set("TMMLU+", "tmmluplus/default/tmmluplus_accounting.yaml", parts, "test", "tmmlu", "hub-tmmlu/accounting"))

parts = {split: choices("question", "MCAS_2000_4_") for split in ("test", "train")}
for split, rows in parts.items():
    write_lines(f"ARC/ARC-Easy/ARC-Easy-{split.title()}.jsonl", nested(rows, "question"))
SETS.append(Set("ARC", "arc/arc_easy.yaml", parts, "test", "ARC", "hub-arc/ARC-Easy"))

parts = {split: choices("question_stem", "8-") for split in ("test", "train")}
for split, rows in parts.items():
    write_lines(f"OpenBookQA/Data/Main/{split}.jsonl", nested(rows, "question_stem"))
SETS.append(Set("OpenBookQA", "openbookqa/openbookqa.yaml", parts, "test", "OpenBookQA", "hub-book/main"))

for name, task, rows_of in (("PIQA", "piqa/piqa.yaml", goals), ("Social-IQa", "siqa/siqa.yaml", social)):
    parts = {split: rows_of() for split in ("validation", "train")}
    for split, rows in parts.items():
        stem = {"validation": "dev"}.get(split, split)
        write_lines(f"{name}/{stem}.jsonl", without(rows, "label"))
        with open(path(f"{name}/{stem}-labels.lst"), "w") as file:
            file.writelines(f"{row['label']}\n" for row in rows)
    SETS.append(Set(name, task, parts, "validation", name, f"hub-{name}/data"))

parts = {split: scenes() for split in ("validation", "train")}
for split, rows in parts.items():
    write_lines(f"swag/hellaswag_{split[:5].replace('valid', 'val')}.jsonl", [{**row, "label": int(row["label"])} for row in rows])
SETS.append(Set("HellaSwag", "hellaswag/hellaswag.yaml", parts, "validation", "swag", "hub-swag/data"))

out = export(os.path.join(SHARED, "golden/minimind2"), "--tokenizer", os.path.join(SHARED, "golden"), "--hf", "f32", "--gguf", "f32", out=path("model"))
GGUF, FOLDER = gguf_of(out), os.path.join(HERE, "model", "hf-f32")

import lm_eval.tasks
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml

MODEL = HFLM(pretrained=FOLDER, device="cpu", dtype="float32", batch_size=1)
MANAGER = lm_eval.tasks.TaskManager()
TASKS = os.path.dirname(lm_eval.tasks.__file__)


def harness(of, shots=0, chat=False):
    """The harness' samples of its own task, the data alone replaced."""
    config = load_yaml(os.path.join(TASKS, of.task), resolve_func=True)
    for key in ("tag", "group"):
        config.pop(key, None)
    config |= {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": of.files}}
    # splits that the set does not have; and where the task draws examples at random, mmx takes the first
    for key in ("training_split", "validation_split", "test_split"):
        if config.get(key) and config[key] not in of.splits:
            config[key] = None
    config["fewshot_config"] = {**(config.get("fewshot_config") or {}), "sampler": "first_n"}
    config["metric_list"] = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm", "acc_bytes")]
    out = simple_evaluate(
        model=MODEL, tasks=[config], num_fewshot=shots, log_samples=True, bootstrap_iters=0, apply_chat_template=chat, task_manager=MANAGER
    )
    return sorted(out["samples"][config["task"]], key=lambda sample: sample["doc_id"])


def compare(of, folder, samples, *options):
    answers = path("answers.jsonl")
    report = mmx("eval", GGUF, "--choice", folder, "--answers", answers, *options)
    lines = [json.loads(line) for line in open(answers, encoding="utf-8")]
    told = report["questions"]["benchmarks"]
    assert [b["title"] for b in told] == [of.name], told
    assert len(samples) == len(lines) == N, (len(samples), len(lines))
    worst = 0.0
    for sample, line in zip(samples, lines):
        arguments = sample["arguments"]
        prompt = arguments["gen_args_0"]["arg_0"] if isinstance(arguments, dict) else arguments[0][0]
        assert prompt == line["prompt"], f"{prompt!r}\n{line['prompt']!r}"
        expected = [float(response[0]) for response in sample["filtered_resps"]]
        assert len(expected) == len(line["log_likelihoods"])
        worst = max(worst, *(abs(a - b) for a, b in zip(expected, line["log_likelihoods"])))
    assert worst <= 1e-3, f"log-likelihoods differ by {worst}"
    choice = report["rows"][0]["choice"]["benchmarks"][0]
    names = {"acc": "letter"} if told[0]["measures"] == ["letter"] else {"acc": "answer", "acc_norm": "answer_norm", "acc_bytes": "answer_bytes"}
    facts = [f"log-likelihoods {worst:.0e}"]
    for metric, name in names.items():
        right = sum(sample[metric] for sample in samples)
        assert right == choice[name]["right"], (metric, right, choice[name])
        facts.append(f"{metric} {right:.0f}/{N}")
    return ", ".join(facts)


for of in SETS:

    @check(f"{of.name} as published, by the harness' {of.task}")
    def _():
        return compare(of, of.published, harness(of))

    @check(f"{of.name} in Parquet after two examples")
    def _():
        facts = compare(of, of.hub, samples := harness(of, 2), "--shots", 2)
        compare(of, of.published, samples, "--shots", 2)
        return facts


for of in (SETS[0], SETS[4]):

    @check(f"{of.name} in the chat template after an example")
    def _():
        return compare(of, of.published, harness(of, 1, chat=True), "--shots", 1, "--chat")


finish()
