#!/usr/bin/env python3
"""tables.py OUT: the Parquet files of tests/fixtures/tables and the JSON Lines of the same records.

Written with pyarrow 26.0.1 and datasets 5.2.0. The tests hold each file to its JSON Lines: the same samples, the same
batches, the same weights."""
import json
import os
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe

OUT = sys.argv[1]
os.makedirs(OUT, exist_ok=True)
TEXTS = [
    "Once upon a time, there was a \"fox\".\nIt ran; and ran.",
    "你好，世界！\t制表符",
    "a,b,c\r\nsecond line",
    "😀 emoji, ünïcode and \\ backslashes \\n",
    "the fox ran and the dog ran, and the fox and the dog ran on and on",
    " leading and trailing ",
    "[1, 2, 3] is no list of turns",
    "{\"json\": \"in a text\"}",
    "one two three four five six seven eight nine ten",
    "x" * 300,
    "\"",
    "末尾",
]
ASKED = ["What, then?", "说\"你好\"", "two\nlines", "1+1?"]
ANSWERED = ["This: \"that\", and\nmore", "你好！", "a\tb, c", "2"]


def path(name):
    return os.path.join(OUT, name)


def lines(name, records):
    with open(path(name), "w", encoding="utf-8") as out:
        out.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write(name, columns, **options):
    pq.write_table(pa.table(columns), path(name), **options)


def message(role, content, **more):
    return {"role": role, "content": content, **more}


# texts: every codec, page version and kind of string
texts = [{"text": text} for text in TEXTS]
lines("texts.jsonl", texts)
for codec in ("none", "snappy", "gzip", "zstd", "lz4"):
    write(f"texts-{codec}.parquet", {"id": list(range(len(TEXTS))), "text": TEXTS}, compression=codec, row_group_size=5)
write("texts-brotli.parquet", {"text": TEXTS}, compression="brotli")
write("texts-v2.parquet", {"text": TEXTS}, data_page_version="2.0", use_dictionary=False, data_page_size=64,
      column_encoding={"text": "DELTA_BYTE_ARRAY"}, compression="zstd")
write("texts-large.parquet", {"text": pa.array(TEXTS, pa.large_string())})
write("texts-binary.parquet", {"text": pa.array([t.encode() for t in TEXTS], pa.binary())})
write("texts-dictionary.parquet", {"text": pa.array(TEXTS).dictionary_encode()})
write("texts-empty.parquet", {"text": pa.array([], pa.string())})
write("texts-null.parquet", {"text": ["a b c", None, "d e f"]})
# a column of strings that are none: Latin-1, as a writer that does not check leaves it
latin = pa.Array.from_buffers(pa.string(), 2, pa.array([b"fine text", b"caf\xe9 noir"], pa.binary()).buffers())
write("texts-latin1.parquet", {"text": latin})
write("texts-latin1-binary.parquet", {"text": pa.array([b"fine text", b"caf\xe9 noir", b"more text"], pa.binary())})
write("body.parquet", {"title": ["t"] * len(TEXTS), "page": [{"body": text, "n": 1} for text in TEXTS]})

# chats: lists of structs, ShareGPT's names, a Sequence of a dict, texts of lists, thoughts and tools
chats = [[message("user", a), message("assistant", b)] for a, b in zip(ASKED, ANSWERED)]
chats.append([message("system", "Be brief."), *chats[0], message("user", "again"), message("assistant", "as before")])
chats.append([message("user", "think"), message("assistant", "so", reasoning_content="well,\nthen")])
lines("chats.jsonl", [{"conversations": chat} for chat in chats])
turn = pa.struct([("role", pa.string()), ("content", pa.string()), ("reasoning_content", pa.string())])
write("chats.parquet", {"conversations": pa.array(chats, pa.list_(turn)), "source": ["a"] * len(chats)}, row_group_size=2)
write("chats-messages.parquet", {"messages": pa.array(chats, pa.large_list(turn))})
NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
sharegpt = [[{"from": NAMES[m["role"]], "value": m["content"], "reasoning_content": m.get("reasoning_content")} for m in chat] for chat in chats]
write("chats-sharegpt.parquet", {"id": [str(i) for i in range(len(chats))], "conversations": sharegpt})
# as the library most data sets on hubs are written by saves them, and its Sequence of a dict
datasets.Dataset.from_list([{"conversations": chat} for chat in chats]).to_parquet(path("chats-datasets.parquet"))
columns = [{key: [m.get(key) for m in chat] for key in ("role", "content", "reasoning_content")} for chat in chats]
write("chats-columns.parquet", {"conversations": columns})
write("chats-text.parquet", {"conversations": [json.dumps(chat, ensure_ascii=False) for chat in chats]})

# one question and one answer: Alpaca, prompt and completion as texts and as turns
pairs = [[message("user", a), message("assistant", b)] for a, b in zip(ASKED, ANSWERED)]
lines("pairs.jsonl", [{"conversations": chat} for chat in pairs])
write("pairs-alpaca.parquet", {"instruction": ASKED, "input": ["", None, "", None], "output": ANSWERED,
                               "history": pa.array([[], None, [], None], pa.list_(pa.list_(pa.string())))})
write("pairs-prompt.parquet", {"prompt": ASKED, "completion": ANSWERED})
write("pairs-prompt-turns.parquet", {"prompt": [[p[0]] for p in pairs], "completion": [[p[1]] for p in pairs]})
write("pairs-other-names.parquet", {"question": ASKED, "answers": [{"best": b, "worst": "?"} for b in ANSWERED]})

# preferences
chosen = [[message("user", a), message("assistant", b)] for a, b in zip(ASKED, ANSWERED)]
rejected = [[message("user", a), message("assistant", b + "?")] for a, b in zip(ASKED, ANSWERED)]
lines("preferences.jsonl", [{"chosen": c, "rejected": r} for c, r in zip(chosen, rejected)])
write("preferences.parquet", {"chosen": chosen, "rejected": rejected, "score": [0.5, 1.0, None, 2.0]})
write("preferences-prompt.parquet", {"prompt": ASKED, "chosen": ANSWERED, "rejected": [b + "?" for b in ANSWERED]})
write("preferences-whole.parquet", {"prompt": ASKED, "chosen": chosen, "rejected": rejected})
write("preferences-turns.parquet", {"prompt": [c[:1] for c in chosen], "chosen": [c[1:] for c in chosen],
                                    "rejected": [r[1:] for r in rejected]})
write("preferences-messages.parquet", {"messages": chosen, "rejected_response": [b + "?" for b in ANSWERED]})

# encrypted: the footer, and a column under a plain footer


class Keys(pe.KmsClient):
    """Wraps keys by themselves: the tests only see that the file is refused."""

    def __init__(self, _):
        pe.KmsClient.__init__(self)

    def wrap_key(self, key, _):
        return key.hex()

    def unwrap_key(self, key, _):
        return bytes.fromhex(key)


factory = pe.CryptoFactory(Keys)
for name, plain in (("encrypted", False), ("encrypted-column", True)):
    how = pe.EncryptionConfiguration(footer_key="f", column_keys={"c": ["text"]}, plaintext_footer=plain)
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), how)
    with pq.ParquetWriter(path(f"{name}.parquet"), pa.schema([("text", pa.string())]), encryption_properties=properties) as out:
        out.write_table(pa.table({"text": TEXTS}))
