#!/usr/bin/env python3
"""eval.py MMX SHARED WORK LLAMA_PERPLEXITY
`mmx eval` against the programs whose numbers it gives: llama-perplexity on the same text and settings, and
lm-evaluation-harness on the exported Transformers folder and as a client of `mmx serve`, its tasks written as C-Eval's,
CMMLU's and ARC's are."""
import csv, json, math, os, random, re, subprocess, sys

sys.path.insert(0, os.path.dirname(__file__))
from check import SHARED, WORK, check, export, finish, gguf_of, mmx, serve

PERPLEXITY = os.path.abspath(sys.argv[4])
HERE = os.path.join(WORK, "eval")
os.makedirs(HERE, exist_ok=True)


def write(name, text):
    path = os.path.join(HERE, name)
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    return path


def texts(name, key):
    with open(os.path.join(SHARED, name), encoding="utf-8") as file:
        return [json.loads(line)[key] for line in file]


GGUFS = {}
FOLDERS = {}
for name in ("golden/minimind2", "golden-2026/minimind3-moe"):
    out = os.path.join(HERE, name.replace("/", "-"))
    kinds = ("f32", "f16", "q8_0", "q4_0")
    tokenizer = os.path.join(SHARED, name.split("/")[0])
    paths = export(os.path.join(SHARED, name), "--tokenizer", tokenizer, "--hf", "f32", *sum((["--gguf", k] for k in kinds), []), out=out)
    GGUFS[name] = {kind: gguf_of(paths, kind) for kind in kinds}
    FOLDERS[name] = os.path.join(out, "hf-f32")

# marks of a chat in the text are text to both programs
TEXT = "\n".join(texts("golden/pretrain.jsonl", "text") * 3) + "\nHe wrote <|im_end|> there.\n\n"
FILE = write("text.txt", TEXT)

for name, files in GGUFS.items():
    for n_ctx in (64, 128):

        @check(f"{name}: perplexity in chunks of {n_ctx}, llama-perplexity's")
        def _(name=name, files=files, n_ctx=n_ctx):
            facts = []
            for kind, path in files.items():
                # exact keys and values, no flash attention: what is compared is the measuring, not the rounding
                settings = ["-c", n_ctx, "-b", 512, "-fa", "off", "-ctk", "f32", "-ctv", "f32", "-t", 1, "--no-repack", "-ngl", 0]
                command = [PERPLEXITY, "-m", path, "-f", FILE, *map(str, settings)]
                for _ in range(10):  # a thread writes its log, and its end may cut the last lines off
                    out = subprocess.run(command, capture_output=True, text=True, check=True)
                    log = out.stdout + out.stderr
                    found = re.search(r"Final estimate: PPL = ([0-9.]+) \+/- ([0-9.]+)", log)
                    if found:
                        break
                assert found, log[-2000:]
                expected, error = map(float, found.groups())
                row = {}
                # llama.cpp in mmx is another build, which reads one chunk at a time: sums in another order, and
                # activations rounded to 16 or 8 bits. That may send a token to another expert: some 4e-4.
                limit = 1e-5 if kind == "f32" else 5e-3 if "moe" in name else 5e-4
                for engine in ("llama.cpp", "ggml"):
                    report = mmx("eval", path, "--ppl", FILE, "--chunks", "--ctx", n_ctx, "--engine", engine, "--threads", 1)
                    row = report["rows"][0]["perplexity"]
                    far = abs(row["ppl"] / expected - 1)
                    assert far <= limit, f"{kind} in {engine}: {row['ppl']} for {expected}"
                    assert abs(row["stderr"] / error - 1) < 1e-2, (row, error)
                    facts.append(f"{kind} {engine} {far:.0e}")
                chunks = int(re.search(r"over (\d+) chunks", log).group(1))
                assert row["tokens"] == chunks * (n_ctx - 1 - n_ctx // 2), (row, chunks)
            return ", ".join(facts)


# questions: made up, but in the layouts that the harness' own tasks read
rng = random.Random(7)
WORDS = ["床", "前明月", "光,速", "上 海", "tea", "3.5", "the sea", "\"yes\"", "因为", "一个很长的答案，有标点。", "ok", "N/A"]


def question(i):
    return f"{rng.choice(['什么是', '下列', 'Which is'])} {i}{rng.choice(['？', ' 是? ', '：“甲”'])}{rng.choice(WORDS)}"


def csv_rows(n, first):
    rows = []
    for i in range(n):
        rows.append({first: i, "Question": question(i), **dict(zip("ABCD", rng.sample(WORDS, 4))), "Answer": rng.choice("ABCD")})
    return rows


def csv_file(name, rows, head):
    path = os.path.join(HERE, name)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(list(row.values()) for row in rows)
    return path


CEVAL = csv_rows(20, "id")
CEVAL_FILE = csv_file("art_studies_val.csv", CEVAL, ["id", "question", "A", "B", "C", "D", "answer"])
DEV = csv_rows(5, "id")
DEV_FILE = csv_file("art_studies_dev.csv", DEV, ["id", "question", "A", "B", "C", "D", "answer"])
ARC = []
for i in range(20):
    n = rng.choice([3, 4, 4, 5])
    labels = list("ABCDE")[:n] if i % 3 else [str(k + 1) for k in range(n)]
    question_text = rng.choice(["Why is", "Which of these is", "How does"]) + f" thing {i} so?"
    english = ["the sun", "a very long answer, with commas", "ice", "tea", "3.5", "gravity pulls it down"]
    ARC.append({"id": str(i), "question": question_text, "choices": {"text": rng.sample(english, n), "label": labels}, "answerKey": rng.choice(labels)})
ARC_FILE = write("ARC-Easy-Test.jsonl", "".join(json.dumps(q, ensure_ascii=False) + "\n" for q in ARC))

PREAMBLE = "以下是中国关于艺术学的单项选择题，请选出其中的正确答案。\n\n"
LETTERS = {"doc_to_text": "{{question.strip()}}\nA. {{A}}\nB. {{B}}\nC. {{C}}\nD. {{D}}\n答案：", "doc_to_choice": ["A", "B", "C", "D"]}
CEVAL_TARGET = "{{['A', 'B', 'C', 'D'].index(answer)}}"
ARC_TASK = {
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "{{choices.label.index(answerKey)}}",
    "doc_to_choice": "{{choices.text}}",
}


def rename(rows):
    return [{key.lower() if key in ("Question", "Answer") else key: value for key, value in row.items()} for row in rows]


DATA = {
    "ceval": write("ceval.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rename(CEVAL))),
    "dev": write("dev.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rename(DEV))),
    "arc": ARC_FILE,
}


def harness(folder, task, data, fewshot=0, dev=None, chat=False, model=None):
    """The harness' own samples: log-likelihoods and which measures were right; `model` instead of Transformers'."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    config = {
        "task": "t",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": data, **({"dev": dev} if dev else {})}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm", "acc_bytes")],
        **task,
    }
    if dev:
        config |= {"fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}}
    if model is None:
        from lm_eval.models.huggingface import HFLM

        model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=1)
    out = simple_evaluate(model=model, tasks=[config], num_fewshot=fewshot, log_samples=True, bootstrap_iters=0, apply_chat_template=chat, task_manager=TaskManager())
    return sorted(out["samples"]["t"], key=lambda sample: sample["doc_id"])


def ours(model, questions, by, *more, engine="ggml"):
    answers = os.path.join(HERE, "answers.jsonl")
    report = mmx("eval", model, "--choice", questions, "--by", by, "--engine", engine, "--answers", answers, *more)
    return report["rows"][0]["choice"], [json.loads(line) for line in open(answers, encoding="utf-8")]


def compare(samples, choice, lines, names):
    """Log-likelihoods within 1e-3 (float32 sums in another order), and the same answers right."""
    worst = 0.0
    assert len(samples) == len(lines)
    for sample, line in zip(samples, lines):
        expected = [float(response[0]) for response in sample["filtered_resps"]]
        prompt = sample["arguments"]["gen_args_0"]["arg_0"] if isinstance(sample["arguments"], dict) else sample["arguments"][0][0]
        assert prompt == line["prompt"], f"{prompt!r}\n{line['prompt']!r}"
        assert len(expected) == len(line["log_likelihoods"])
        worst = max(worst, *(abs(a - b) for a, b in zip(expected, line["log_likelihoods"])))
    assert worst <= 1e-3, f"log-likelihoods differ by {worst}"
    facts = [f"log-likelihoods {worst:.0e}"]
    for metric, name in names.items():
        right = sum(sample[metric] for sample in samples)
        assert right == choice["overall"][name]["right"], (metric, right, choice["overall"][name])
        facts.append(f"{metric} {right:.0f}/{len(samples)}")
    return ", ".join(facts)


ANSWER = {"acc": "answer", "acc_norm": "answer_norm", "acc_bytes": "answer_bytes"}
for name, folder in FOLDERS.items():
    gguf = GGUFS[name]["f32"]

    @check(f"{name}: C-Eval's letters as lm-evaluation-harness has them")
    def _(folder=folder, gguf=gguf):
        samples = harness(folder, {**LETTERS, "doc_to_target": CEVAL_TARGET, "description": PREAMBLE}, DATA["ceval"])
        facts = [compare(samples, *ours(gguf, CEVAL_FILE, "letter", "--preamble", PREAMBLE, engine=e), {"acc": "letter"}) for e in ("ggml", "llama.cpp")]
        return facts[0]

    @check(f"{name}: C-Eval's letters after five examples")
    def _(folder=folder, gguf=gguf):
        samples = harness(folder, {**LETTERS, "doc_to_target": CEVAL_TARGET, "description": PREAMBLE}, DATA["ceval"], 5, DATA["dev"])
        found = ours(gguf, CEVAL_FILE, "letter", "--preamble", PREAMBLE, "--examples", DEV_FILE)
        return compare(samples, *found, {"acc": "letter"})

    @check(f"{name}: ARC's answers as lm-evaluation-harness has them")
    def _(folder=folder, gguf=gguf):
        return compare(harness(folder, ARC_TASK, DATA["arc"]), *ours(gguf, ARC_FILE, "answer"), ANSWER)

    @check(f"{name}: ARC's answers in the chat template")
    def _(folder=folder, gguf=gguf):
        return compare(harness(folder, ARC_TASK, DATA["arc"], chat=True), *ours(gguf, ARC_FILE, "answer", "--chat"), ANSWER)

    @check(f"{name}: lm-evaluation-harness as a client of mmx serve (local-completions)")
    def _(folder=folder, gguf=gguf):
        from lm_eval.models.openai_completions import LocalCompletionsAPI

        server, url = serve(gguf, "m")
        try:
            def client(**settings):
                where = {"base_url": f"{url}/v1/completions", "model": "m", "max_length": 1024}
                return LocalCompletionsAPI(**where, tokenizer=folder, tokenizer_backend="huggingface", **settings)

            # one text in a request, and several in each of several requests at a time
            letters = {**LETTERS, "doc_to_target": CEVAL_TARGET, "description": PREAMBLE}
            expected = ours(gguf, CEVAL_FILE, "letter", "--preamble", PREAMBLE)
            compare(harness(folder, letters, DATA["ceval"], model=client()), *expected, {"acc": "letter"})
            several = client(batch_size=8, num_concurrent=2)
            return compare(harness(folder, ARC_TASK, DATA["arc"], model=several), *ours(gguf, ARC_FILE, "answer"), ANSWER)
        finally:
            server.terminate()
            server.wait(20)


finish()
