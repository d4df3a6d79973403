"""What scripts/bench-recipe runs: the text, the tokenizer, the trainings, and the table of their held-out losses."""

import argparse
import gzip
import hashlib
import html.parser
import json
import math
import os
import pathlib
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys

# (package, or one that depends on it, files below usr/share in it that are text)
PACKAGES = [
    ("dict-gcide", "dictd/gcide.dict.dz"),  # Webster's dictionary of 1913
    ("linux-doc", "doc/*/Documentation/**/*.rst.gz"),
    ("linux-doc", "doc/*/Documentation/**/*.txt.gz"),
    ("perl-doc", "perl/**/*.pod"),
    ("python3-doc", "doc/*/html/_sources/**/*.rst.txt"),
    ("cmake-doc", "doc/cmake*/**/_sources/**/*.rst.txt"),
    ("postgresql-doc", "doc/*/html/*.html"),
    ("python-django-doc", "doc/*/html/**/*.html"),
    ("sqlite3-doc", "doc/**/*.html"),
    ("anarchism", "doc/anarchism/**/*.html"),
]
HELD_OUT = 200  # one document in so many


class Text(html.parser.HTMLParser):
    """The text of a page, without its navigation."""

    def __init__(self):
        super().__init__()
        self.parts, self.inside = [], 0

    def handle_starttag(self, tag, attributes):
        self.inside += tag in ("script", "style", "head", "nav")
        self.parts.append("\n\n" if tag in ("p", "h1", "h2", "h3", "pre", "li", "tr", "div", "table", "dt", "dd") else "")

    def handle_endtag(self, tag):
        self.inside -= tag in ("script", "style", "head", "nav")

    def handle_data(self, data):
        if self.inside <= 0:
            self.parts.append(data)


def run(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, text=True, **options)


def unpacked(package, corpus):
    """The folder of a package's files, unpacked beside and not installed: no root needed."""
    if not shutil.which("apt-get"):
        sys.exit("error: the text is missing\n\nhint: run this on Debian: its packages hold the text")
    depends = run("apt-cache", "depends", "--important", package, stdout=subprocess.PIPE).stdout
    real = re.findall(rf"Depends: ({re.sub(r'python3|postgresql', lambda m: m[0] + '[0-9.]*', package)}[-0-9.]*)$", depends, re.M)
    name = real[0] if real else package
    if not any((corpus / name / "usr/share").glob("*")):
        try:
            run("apt-get", "download", "-qq", name, cwd=corpus, stderr=subprocess.DEVNULL)
        except subprocess.CalledProcessError:
            sys.exit(f"error: the package {name} is missing\n\nhint: sudo apt-get update")
        run("dpkg-deb", "-x", next(corpus.glob(f"{name}_*.deb")), corpus / name)
    return corpus / name


def documents(corpus, length):
    """Pieces of about `length` characters, cut where paragraphs end; none twice."""
    seen = set()
    for package, pattern in PACKAGES:
        for path in sorted((unpacked(package, corpus) / "usr/share").glob(pattern)):
            data = gzip.open(path).read() if path.suffix in (".gz", ".dz") else path.read_bytes()
            text = data.decode("utf-8", "replace")
            if path.suffix == ".html":
                parser = Text()
                parser.feed(text)
                text = re.sub(r"[ \t]*\n\s*\n\s*", "\n\n", re.sub(r"[ \t]+", " ", "".join(parser.parts)))
            piece = ""
            for paragraph in re.split(r"\n\s*\n", text):
                if piece and len(piece) + len(paragraph) > length:
                    yield from once(piece, seen)
                    piece = ""
                piece += paragraph.rstrip() + "\n\n"
            yield from once(piece, seen)


def once(piece, seen):
    piece = piece.strip("\n")
    mark = hashlib.sha256(piece.encode()).digest()[:12]
    if len(piece) >= 200 and mark not in seen:
        seen.add(mark)
        yield piece


def prepare(options, mmx):
    """The two parts of the text, and the tokenizer."""
    train, held_out, tokenizer = (options.work / name for name in ("train.jsonl", "held-out.jsonl", "tokenizer"))
    if not held_out.exists():
        corpus = pathlib.Path(os.environ["MMX_CACHE"]) / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        pieces = list(documents(corpus, 3 * options.seq))
        random.Random(1).shuffle(pieces)
        lines = [json.dumps({"text": piece}, ensure_ascii=False) + "\n" for piece in pieces]
        count = min(len(lines) // HELD_OUT, options.held_out // options.seq)
        train.write_text("".join(lines[count:]))
        held_out.write_text("".join(lines[:count]))
        print(f"text: {sum(map(len, pieces)) / 1e6:.0f} M characters in {len(pieces)} pieces, {count} held out", flush=True)
    if not tokenizer.exists():
        run(mmx, "tokenizer", "train", "--data", train, "--vocab-size", options.vocab, "--out", tokenizer)
    return train, held_out, tokenizer


def shape_of(options):
    """A config.json, or a preset's name."""
    if options.shape.endswith(".json"):
        return ["--config", options.shape]
    if not re.fullmatch(r"\d+x\d+", options.shape):
        return ["--preset", options.shape]
    hidden, layers = map(int, options.shape.split("x"))
    path = options.work / "config.json"
    path.write_text(json.dumps({
        "model_type": "minimind", "kind": "minimind3", "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": hidden // 8, "vocab_size": options.vocab,
        "max_position_embeddings": 2048, "rope_theta": 1e6, "tie_word_embeddings": True,
    }))
    return ["--config", path]


def arguments():
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, default="runs/bench-recipe", help="text, tokenizer and results")
    parser.add_argument("--shape", default="minimind2-small", help="a preset, a config.json, or HIDDENxLAYERS")
    parser.add_argument("--vocab", type=int, default=6400)
    parser.add_argument("--tokens", type=float, default=30e6, help="of the reference's run")
    parser.add_argument("--seq", type=int, default=512, help="tokens a row")
    parser.add_argument("--rows", type=int, default=32, help="rows a micro-step")
    parser.add_argument("--accum", type=int, default=1, help="micro-steps a step")
    parser.add_argument("--held-out", type=int, default=500_000, help="tokens held out, about")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--shares", default="0.3,0.45,0.6", help="of the tokens, for the fast recipe; 0.45 first")
    parser.add_argument("--adamw-lrs", default="1e-3,2e-3,4e-3", help="tried with the first seed; the best with all")
    parser.add_argument("--lr", default="", help="the fast recipe's, instead of its own")
    parser.add_argument("--adam-lr", default="", help="the fast recipe's, instead of its own")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", action="store_true", help="train nothing: show what is there")
    return parser.parse_args()


class Bench:
    def __init__(self, options):
        self.options = options
        options.work.mkdir(parents=True, exist_ok=True)
        self.results = options.work / "results.jsonl"
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        self.done = {tuple(line["key"]): line for line in map(json.loads, lines)}
        if options.table:
            return
        programs = options.work / "programs"  # a build in the meantime changes nothing
        if not programs.exists():
            programs.mkdir()
            for name in ("mmx", "mmx-train"):
                shutil.copy2(pathlib.Path("target/release") / name, programs)
        self.mmx = programs / "mmx"
        self.data, self.held_out, self.tokenizer = prepare(options, self.mmx)
        self.shape = shape_of(options)

    def train(self, recipe, share, seed, *more):
        """The held-out loss after a share of the tokens, and the time that took."""
        options = self.options
        steps = round(share * options.tokens / (options.seq * options.rows * options.accum))
        key = (recipe, share, seed)
        if key not in self.done and not options.table:
            out = options.work / f"run-{os.getpid()}"  # several may be at work
            shutil.rmtree(out, ignore_errors=True)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            said = run(
                self.mmx, "train", "pretrain", *self.shape, "--tokenizer", self.tokenizer, "--data", self.data,
                "--val", self.held_out, "--max-steps", steps, "--epochs", 99, "--batch-size", options.rows,
                "--accum", options.accum, "--max-seq-len", options.seq, "--seed", seed, "--dtype", options.dtype,
                "--device", options.device, "--threads", options.threads, "--save-every", 10**9, "--out", out, "--json",
                *more, stdout=subprocess.PIPE, stderr=open(options.work / "log", "a"),
            )  # fmt: skip
            end, after = json.loads(said.stdout), resource.getrusage(resource.RUSAGE_CHILDREN)
            line = {
                "key": key, "tokens": steps * options.seq * options.rows * options.accum, "loss": end["val_loss"],
                "seconds": end["seconds"], "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
                "steps": steps, "options": [str(word) for word in more],
            }  # fmt: skip
            with self.results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self.done[key] = line
            print(f"{recipe}, {line['tokens'] / 1e6:.2f}M tokens, seed {seed}: {line['loss']:.4f}, {line['cpu_seconds']:.0f} s of CPU", flush=True)
        return self.done.get(key)

    def adamw(self, lr, seed):
        return self.train(f"adamw {lr}", 1.0, seed, "--recipe", "fast", "--optimizer", "adamw", "--lr", lr)

    def fast(self, share, seed):
        rates = [part for name in ("lr", "adam_lr") if (value := getattr(self.options, name)) for part in (f"--{name.replace('_', '-')}", value)]
        return self.train(" ".join(["fast", *rates]), share, seed, "--recipe", "fast", *rates)

    def run(self):
        options = self.options
        seeds = [int(seed) for seed in options.seeds.split(",")]
        shares = sorted((float(share) for share in options.shares.split(",")), key=lambda share: abs(share - 0.45))
        best = None
        for seed in seeds:
            self.train("reference", 1.0, seed, "--recipe", "2026")
            for share in shares:
                self.fast(share, seed)
            if best is None:
                sweep = {lr: self.adamw(lr, seed) for lr in options.adamw_lrs.split(",")}
                sweep = {lr: line["loss"] for lr, line in sweep.items() if line}
                best = min(sweep, key=sweep.get, default=None)
            elif best:
                self.adamw(best, seed)
        self.table(seeds, sorted(shares), best)

    def table(self, seeds, shares, best):
        print(f"\n| recipe | tokens | {' | '.join(f'seed {seed}' for seed in seeds)} | CPU seconds |\n|---|---|{'---|' * (len(seeds) + 1)}")
        for recipe, share in sorted({key[:2] for key in self.done}):
            lines = [self.done.get((recipe, share, seed)) for seed in seeds]
            there = [line for line in lines if line]
            if there:
                losses = " | ".join(f"{line['loss']:.3f}" if line else "" for line in lines)
                seconds = statistics.mean(line["cpu_seconds"] for line in there)
                print(f"| {recipe} | {there[0]['tokens'] / 1e6:.2f}M | {losses} | {seconds:.0f} |")
        for name in ("reference", f"adamw {best}"):
            needed = [found for seed in seeds if (found := self.needed(name, seed, shares))]
            if needed:
                tokens, seconds = zip(*needed)
                print(
                    f"\nfast to the loss of {name}: {statistics.mean(tokens):.2f} of its tokens ({min(tokens):.2f} to {max(tokens):.2f}), "
                    f"{statistics.mean(seconds):.2f} of its CPU seconds, {len(needed)} seeds"
                )

    def needed(self, name, seed, shares):
        """Shares of the tokens and seconds of a run that the fast recipe needs to its loss: straight lines in the
        logarithm of the tokens between the two nearest of its own runs, each with its whole schedule."""
        target = self.done.get((name, 1.0, seed))
        runs = [line for share in shares if (line := self.fast(share, seed))]
        if not target or len(runs) < 2:
            return None
        below = next((i for i in range(1, len(runs)) if runs[i]["loss"] <= target["loss"]), len(runs) - 1)
        a, b = runs[below - 1], runs[below]
        along = (a["loss"] - target["loss"]) / (a["loss"] - b["loss"])
        tokens = math.exp(math.log(a["tokens"]) + along * (math.log(b["tokens"]) - math.log(a["tokens"])))
        rate = (b["cpu_seconds"] - a["cpu_seconds"]) / (b["tokens"] - a["tokens"])
        seconds = a["cpu_seconds"] + (tokens - a["tokens"]) * rate
        return tokens / target["tokens"], seconds / target["cpu_seconds"]


Bench(arguments()).run()
