#!/usr/bin/env python3
"""trackers.py MMX SHARED WORK
SwanLab's and Weights & Biases' own commands, as docs/trackers.md has them, on what mmx train writes: every number arrives. Servers of
this test stand for theirs: nothing leaves the machine."""
import glob, gzip, http.server, json, os, re, subprocess, sys, threading

sys.path.insert(0, os.path.dirname(__file__))
from check import MMX, SHARED, WORK, check, finish

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
RUN, DATA, HOME = os.path.join(WORK, "tracked"), os.path.join(SHARED, "golden"), os.path.join(WORK, "tracker")
BIN = os.path.dirname(sys.executable)
PAGE = open(os.path.join(ROOT, "docs", "trackers.md"), encoding="utf-8").read()


class Service(http.server.BaseHTTPRequestHandler):
    """What the two commands ask of their servers; what they send is kept."""

    protocol_version = "HTTP/1.1"
    sent = {}

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        answer = {}
        if self.path == "/api/login/api_key":  # SwanLab
            answer = {"sid": "s", "expiredAt": "2099-01-01T00:00:00.000Z", "userInfo": {"username": "u"}}
        elif self.path == "/graphql":  # Weights & Biases
            query = json.loads(body)["query"]
            bucket = {"id": "b", "name": "r", "displayName": "r", "config": "{}", "historyLineCount": 0}
            bucket["project"] = {"id": "p", "name": "mmx", "entity": {"id": "e", "name": "e"}}
            viewer = {"id": "u", "entity": "e", "username": "u", "flags": "{}", "teams": {"edges": []}}
            versions = {"cliVersionInfo": {"max_cli_version": "0.99.0"}, "latestLocalVersionInfo": None}
            host = f"http://{self.headers['host']}/files"
            files = [{"name": name, "uploadUrl": f"{host}/{i}"} for i, name in enumerate(json.loads(body)["variables"].get("files", []))]
            for part, data in [
                ("upsertBucket", {"upsertBucket": {"bucket": bucket, "inserted": True}}),
                ("createRunFiles", {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}),
                ("viewer", {"viewer": viewer, "serverInfo": versions}),
            ]:
                if part in query:
                    answer = {"data": data}
                    break
        elif self.path.endswith("/file_stream"):
            for name, part in json.loads(body).get("files", {}).items():
                self.sent.setdefault(name, []).extend(part["content"])
        self.reply(answer)

    def do_PUT(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.reply({})

    def reply(self, answer):
        out = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)

    def log_message(self, *_):
        pass


def command(name, *more):
    """A command of the page on this run, with the server of the test for its own."""
    (line,) = re.findall(rf"^{name} .*$", PAGE, re.M)
    words = [os.path.join(RUN, "tb") if word == "runs/sft/tb" else word for word in line.split()]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    os.makedirs(HOME, exist_ok=True)
    environment = {
        **os.environ, "HOME": HOME, "TMPDIR": HOME, "SWANLAB_API_KEY": "0123456789abcdef01234", "SWANLAB_API_HOST": url,
        "WANDB_BASE_URL": url, "WANDB_API_KEY": "0123456789" * 4, "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true",
    }
    try:
        done = subprocess.run([os.path.join(BIN, words[0]), *words[1:], *more], cwd=HOME, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def logged():
    """Numbers by tag and step, and texts by step, of metrics.jsonl."""
    numbers, texts = {}, {}
    for line in map(json.loads, open(os.path.join(RUN, "metrics.jsonl"))):
        for key, value in line.items():
            if isinstance(value, float) and key != "seconds":
                numbers.setdefault(key, {})[line["step"]] = value
        if "samples" in line:
            texts[line["step"]] = [sample["text"] for sample in line["samples"]]
    return numbers, texts


def compare(found):
    expected, _ = logged()
    assert found.keys() == expected.keys(), f"tags {sorted(found)}, logged {sorted(expected)}"
    for tag, steps in expected.items():
        assert found[tag].keys() == steps.keys(), f"{tag}: steps {sorted(found[tag])}, logged {sorted(steps)}"
        for step, value in steps.items():  # a float32 holds 24 bits
            assert abs(found[tag][step] - value) <= abs(value) * 2**-24, f"{tag} at {step}: {found[tag][step]}, logged {value}"
    return f"{sum(map(len, expected.values()))} scalars"


@check("trackers: a run of mmx train")
def train():
    done = subprocess.run(
        [MMX, "train", "sft", "--from", f"{DATA}/minimind2", "--tokenizer", DATA, "--data", f"{DATA}/sft.jsonl", "--val", f"{DATA}/sft.jsonl",
         "--batch-size", "1", "--accum", "1", "--epochs", "1", "--lr", "1e-3", "--max-seq-len", "96", "--device", "cpu", "--threads", "1",
         "--dtype", "f32", "--save-every", "8", "--out", RUN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numbers, texts = logged()
    assert len(numbers["loss"]) > 20 and texts


@check("swanlab convert: every scalar and text, kept offline")
def swanlab():
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    log = os.path.join(WORK, "swanlog")
    command("swanlab convert", "--mode", "offline", "-l", log)
    (run,) = glob.glob(os.path.join(log, "*", "*.swanlab"))
    reader = DataStoreReader()
    reader.open(run)
    found = {}
    for data in reader:
        record = Record()
        record.ParseFromString(data)
        if record.HasField("scalar"):
            found.setdefault(record.scalar.key, {})[record.scalar.step] = record.scalar.value.number
    facts = compare(found)
    _, texts = logged()
    shown = [open(path, encoding="utf-8").read() for path in glob.glob(os.path.join(os.path.dirname(run), "media", "text", "*"))]
    assert len(shown) == len(texts), shown
    for expected in texts.values():
        words = [word for text in expected for word in text.split()]
        assert any(all(word in text for word in words) for text in shown), expected
    return f"{facts}, {len(shown)} texts"


@check("wandb sync: every scalar")
def wandb():
    command("wandb sync")
    found = {}
    for line in map(json.loads, Service.sent["wandb-history.jsonl"]):
        for key, value in line.items():
            if key.startswith("tb/") and key != "tb/global_step":
                found.setdefault(key.removeprefix("tb/"), {})[line["global_step"]] = value
    return compare(found)


@check("wandb offline: the page's program on metrics.jsonl")
def wandb_offline():
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    os.makedirs(HOME, exist_ok=True)
    source = source.replace("runs/sft/metrics.jsonl", os.path.join(RUN, "metrics.jsonl"))
    environment = {**os.environ, "HOME": HOME, "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    done = subprocess.run([sys.executable, "-c", source], cwd=HOME, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = glob.glob(os.path.join(HOME, "wandb", "offline-run-*", "*.wandb"))
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    store, found = DataStore(), {}
    store.open_for_scan(run)
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for key, value in items.items():
                if not key.startswith("_") and key not in ("step", "seconds"):
                    found.setdefault(key, {})[record.history.step.num] = value
    expected, _ = logged()
    return compare({key: found.get(key) for key in expected})


finish()
