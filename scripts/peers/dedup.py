#!/usr/bin/env python3
"""dedup.py MMX SHARED WORK
Near-duplicates beside datasketch's MinHash LSH with the same bands, rows and sequences of words: the same records are kept of a made
corpus whose copies are nearly alike and whose other texts are not. Both rates for a second of CPU are shown."""
import json, os, random, resource, sys, time

sys.path.insert(0, os.path.dirname(__file__))
from check import WORK, check, finish, mmx

from datasketch import MinHash, MinHashLSH

BANDS, ROWS, NGRAM = 14, 8, 5


def corpus():
    """1200 texts of 300 words, and of each third two copies with one word changed: similarities of 0.97 and below 0.01."""
    draw = random.Random(5)
    texts = []
    for i in range(1200):
        words = [f"word{draw.randrange(20000)}" for _ in range(300)]
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


def by_mmx(texts):
    path, out = os.path.join(WORK, "near.jsonl"), os.path.join(WORK, "near-unique.jsonl")
    with open(path, "w") as file:
        for i, text in enumerate(texts):
            file.write(json.dumps({"text": text, "id": i}) + "\n")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    mmx("data", "dedup", path, "--ngram", NGRAM, "--bands", BANDS, "--rows", ROWS, "--out", out, "--overwrite")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [json.loads(line)["id"] for line in open(out)], seconds


@check("near duplicates beside datasketch")
def compared():
    texts = corpus()
    (theirs, slow), (ours, fast) = by_datasketch(texts), by_mmx(texts)
    assert ours == theirs, f"{len(set(ours) ^ set(theirs))} records differ of {len(ours)} and {len(theirs)}"
    assert len(ours) == 1200, len(ours)
    size = sum(map(len, texts)) / 1e6
    return f"{len(texts)} records, {len(ours)} kept by both; {size / fast:.0f} MB for a second of CPU, datasketch {size / slow:.2f}"


finish()
