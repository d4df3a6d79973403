#!/usr/bin/env python3
"""dedup.py MMX SHARED WORK
Near-duplicates beside datasketch's MinHash LSH and datatrove's four stages with the same bands, rows and sequences of words: the same
records are kept of a made corpus whose copies are nearly alike and whose other texts are not. Rates for a second of CPU are shown;
datatrove ($DATATROVE: a Python that has it) must take ten times mmx's."""
import json, os, random, resource, subprocess, sys, time

sys.path.insert(0, os.path.dirname(__file__))
from check import WORK, check, finish, mmx

from datasketch import MinHash, MinHashLSH

BANDS, ROWS, NGRAM = 14, 8, 5


def corpus():
    """1200 texts of 300 words, and of each third two copies with one word changed: similarities of 0.97 and below 0.01."""
    draw = random.Random(5)
    # of letters: datatrove takes all numbers for one
    word = lambda: "word" + "".join(chr(97 + int(digit)) for digit in str(draw.randrange(20000)))
    texts = []
    for i in range(1200):
        words = [word() for _ in range(300)]
        texts.append(" ".join(words))
        for _ in range(2 if i % 3 == 0 else 0):
            copy = list(words)
            copy[draw.randrange(10, 290)] = "changed"
            texts.append(" ".join(copy))
    draw.shuffle(texts)
    return texts


def by_datasketch(texts):
    """The indices that stay, and the seconds of CPU."""
    began = time.process_time()
    lsh, first, kept = MinHashLSH(params=(BANDS, ROWS), num_perm=BANDS * ROWS), {}, []
    for i, text in enumerate(texts):
        words = text.lower().split()
        grams = {" ".join(words[at : at + NGRAM]).encode() for at in range(len(words) - NGRAM + 1)}
        signature = MinHash(num_perm=BANDS * ROWS)
        signature.update_batch(grams)
        if not lsh.query(signature):
            kept.append(i)
        lsh.insert(str(i), signature)
    return kept, time.process_time() - began


def written(texts):
    path = os.path.join(WORK, "near", "near.jsonl")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        for i, text in enumerate(texts):
            file.write(json.dumps({"text": text, "number": i}) + "\n")
    return path


def by_mmx(texts):
    path, out = written(texts), os.path.join(WORK, "near-unique.jsonl")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    mmx("data", "dedup", path, "--ngram", NGRAM, "--bands", BANDS, "--rows", ROWS, "--out", out, "--overwrite")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [json.loads(line)["number"] for line in open(out)], seconds


def by_datatrove(texts):
    source = os.path.dirname(written(texts))
    script = os.path.join(os.path.dirname(__file__), "dedup_datatrove.py")
    command = [os.environ["DATATROVE"], script, source, os.path.join(WORK, "datatrove"), str(BANDS), str(ROWS), str(NGRAM)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    return found["kept"], found["seconds"]


@check("near duplicates beside datasketch")
def compared():
    texts = corpus()
    (theirs, slow), (ours, fast) = by_datasketch(texts), by_mmx(texts)
    assert ours == theirs, f"{len(set(ours) ^ set(theirs))} records differ of {len(ours)} and {len(theirs)}"
    assert len(ours) == 1200, len(ours)
    size = sum(map(len, texts)) / 1e6
    return f"{len(texts)} records, {len(ours)} kept by both; {size / fast:.0f} MB for a second of CPU, datasketch {size / slow:.2f}"


@check("near duplicates beside datatrove")
def compared_with_datatrove():
    texts = corpus()
    (theirs, slow), (ours, fast) = by_datatrove(texts), by_mmx(texts)
    # of texts that are alike it keeps another one: they share their first ten words
    of = lambda kept: sorted(texts[i].split()[:10] for i in kept)
    assert of(ours) == of(theirs), f"other texts are kept: {len(ours)} and {len(theirs)}"
    assert slow >= 10 * fast, f"expected at least ten times our {fast:.2f} s of CPU, found {slow:.2f} s"
    return f"{len(texts)} records, {len(ours)} kept by both; {slow:.1f} s of CPU to {fast:.2f} s"


finish()
