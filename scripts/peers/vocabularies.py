#!/usr/bin/env python3
"""vocabularies.py MMX SHARED WORK VOCABULARIES
Tokenizers of others, on the vocabularies that llama.cpp ships (its models/ggml-vocab-*.gguf): mmx's ids are those that llama.cpp
gives for its own test texts, and on the corpus of `mmx verify`; what is not known is refused by its name. The models around them
are small and random."""
import json, os, subprocess, sys, urllib.request

sys.path.insert(0, os.path.dirname(__file__))
from check import MMX, WORK, check, finish, mmx, serve
import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

VOCABULARIES = sys.argv[4]
KNOWN = ["llama-bpe", "qwen2", "qwen35", "llama-spm", "phi-3", "gpt-2", "mpt", "starcoder", "refact", "command-r", "deepseek-llm", "deepseek-coder"]
REFUSED = {"falcon": "falcon", "gemma-4": "gemma4", "bert-bge": "bert", "gpt-neox": "none"}


def path_of(name):
    return os.path.join(VOCABULARIES, f"ggml-vocab-{name}.gguf")


def cases(name):
    """The texts and ids of llama.cpp's test of a vocabulary."""
    with open(path_of(name) + ".inp", newline="") as file:
        texts = file.read().split("\n__ggml_vocab_test__\n")
    with open(path_of(name) + ".out") as file:
        ids = [[int(i) for i in line.split()] for line in file.read().split("\n")]
    return list(zip(texts, ids))


def model_of(name):
    """A random Llama of one layer with the vocabulary."""
    reader = GGUFReader(path_of(name))
    out = os.path.join(WORK, f"foreign-{name}.gguf")
    writer = GGUFWriter(out, "llama")
    hidden, heads = 64, 4
    vocab = len(reader.fields["tokenizer.ggml.tokens"].contents())
    writer.add_context_length(512)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(2 * hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_key_length(hidden // heads)
    writer.add_value_length(hidden // heads)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(vocab)
    for key, field in reader.fields.items():
        if key.startswith("tokenizer."):
            kind = field.types[0]
            sub = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub_type=sub)
    rng = np.random.default_rng(1)
    tensor = lambda *shape: (rng.standard_normal(shape) * 0.2).astype(np.float32)
    writer.add_tensor("token_embd.weight", tensor(vocab, hidden))
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for part in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{part}.weight", np.ones(hidden, np.float32))
    for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{part}.weight", tensor(hidden, hidden))
    for part in ("ffn_gate", "ffn_up"):
        writer.add_tensor(f"blk.0.{part}.weight", tensor(2 * hidden, hidden))
    writer.add_tensor("blk.0.ffn_down.weight", tensor(hidden, 2 * hidden))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def ask(url, text):
    body = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
    request = urllib.request.Request(f"{url}/tokenize", body, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=60))["tokens"]


for name in KNOWN:

    @check(f"{name}: llama.cpp's ids for its own texts and on the corpus, and a model that runs")
    def _(name=name):
        model, texts = model_of(name), cases(name)
        server, url = serve(model, name)
        try:
            found = [ask(url, text) for text, _ in texts]
        finally:
            server.kill()
            server.wait()
        wrong = [(text, expected, ids) for (text, expected), ids in zip(texts, found) if ids != expected]
        assert not wrong, f"{len(wrong)} of {len(texts)}: {wrong[:2]}"
        report = mmx("verify", model, model, "--engine", "llama.cpp")
        rows = report["rows"]
        assert rows and all(row["tokens_equal"] for row in rows), report
        text = mmx("run", model, "-p", "Hello", "-n", "4", "--greedy", "--raw")
        return f"{len(texts)} texts, {report['tokens']} tokens of the corpus, {text['tokens']} written"


@check("tokenizers that are not known are refused by their names")
def _():
    for name, word in REFUSED.items():
        out = subprocess.run([MMX, "tokenizer", "show", path_of(name), "x"], capture_output=True, text=True)
        assert out.returncode == 1 and "found" in out.stderr and word in out.stderr, (name, out.stderr)
    return ", ".join(REFUSED)


finish()
