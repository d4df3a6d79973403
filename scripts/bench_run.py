"""What scripts/bench-run measures and prints; started by it."""
import argparse, http.client, json, os, re, selectors, socket, statistics, subprocess, sys, tempfile, time

PRESETS = ["minimind2-small", "minimind2", "minimind3", "minimind2-moe", "minimind3-moe"]
BENCH = "target/release/examples/bench_run"
MMX = "target/release/mmx"
TOKENIZER = os.environ["BENCH_TOKENIZER"]  # scripts/bench-tokenizer.sh
WRITE = 128  # tokens of a stream
ROUNDS = 2  # texts of a stream, one after the other


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def ask(*command):
    return json.loads(subprocess.run([BENCH, *map(str, command)], check=True, stdout=subprocess.PIPE).stdout)


def cpu_features():
    """What decides which kernels run."""
    flags, name = set(), "unknown CPU"
    for line in open("/proc/cpuinfo"):
        if line.startswith("flags"):
            flags = set(line.split(":", 1)[1].split())
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
    wanted = ["avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8"]
    return {"name": name, "cores": os.cpu_count(), "features": [f for f in wanted if f in flags]}


def speed(path, options):
    """Prefill and decode, ratios to llama.cpp's better mode, and the limit that reading the weights sets."""
    result = ask("speed", path, options.threads, options.repeats, options.clock)
    middle = {e: {k: statistics.median(v) for k, v in result[e].items()} for e in ("mmx", "llama", "flash")}
    row = {"bytes_per_token": result["bytes_per_token"], "bytes_per_s": statistics.median(result["bytes_per_s"])}
    for what in ("prefill", "decode"):
        row[what] = middle["mmx"][what]
        row["llama_" + what] = max(middle["llama"][what], middle["flash"][what])
        # the middle of the ratios of runs next to each other: what slows both cancels
        each = zip(result["mmx"][what], result["llama"][what], result["flash"][what])
        row[what + "_ratio"] = statistics.median(ours / max(theirs) for ours, *theirs in each)
    row["limit"] = row["bytes_per_s"] / row["bytes_per_token"]
    row["of_limit"] = row["decode"] / row["limit"]
    return row


def first(path, options):
    """A fresh process from the file to the first token of a prompt of 32; its largest memory."""
    time_key = "first_token_cpu_ms" if options.clock == "cpu" else "first_token_ms"
    runs = {e: [] for e in ("mmx", "llama", "flash")}
    for _ in range(options.repeats):
        for engine, found in runs.items():
            found.append(ask("first", engine, path, options.threads))
    middle = lambda engine, key: statistics.median(run[key] for run in runs[engine])
    better = min(("llama", "flash"), key=lambda engine: middle(engine, time_key))
    row = {"load_ms": middle("mmx", "load_ms"), "llama_load_ms": middle(better, "load_ms")}
    row["first_ms"], row["llama_first_ms"] = middle("mmx", time_key), middle(better, time_key)
    row["first_ratio"] = row["first_ms"] / row["llama_first_ms"]
    row["rss"], row["llama_rss"] = middle("mmx", "peak_rss_bytes"), middle(better, "peak_rss_bytes")
    row["rss_ratio"] = row["rss"] / row["llama_rss"]
    return row


class Server:
    """A server in a process of its own, answering at `port`."""

    def __init__(self, command, log):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = open(log, "w")
        command = [word.replace("PORT", str(self.port)) for word in command]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        for _ in range(600):
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.stop()
        sys.exit(f"error: {command[0]} does not answer: {open(log).read()[-2000:]}")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


class Failed(Exception):
    """A server did not write all of a text."""


def streams(port, count, path, salt):
    """Tokens per second of `count` texts streamed at a time, and the middle time to a first token, seconds.

    One thread that only counts: a few percent of a core, so that the client is not what is measured.
    """
    selector = selectors.DefaultSelector()
    start = time.monotonic()
    tokens, delays = 0, []

    def send(stream, number):
        prompt = " ".join(f"{salt + stream * 7 + number + i} word" for i in range(16))
        body = json.dumps({"model": "m", "prompt": prompt, "max_tokens": WRITE, "n_predict": WRITE, "temperature": 0,
                           "stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}})
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall((f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                            f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}").encode())
        selector.register(connection, selectors.EVENT_READ, [stream, number, time.monotonic(), bytearray()])

    for stream in range(count):
        send(stream, 0)
    while selector.get_map():
        for key, _ in selector.select():
            data = key.fileobj.recv(1 << 16)
            stream, number, began, seen = key.data
            if data and not b"data: " in seen and b"data: " in data:
                delays.append(time.monotonic() - began)
            seen += data
            if data:
                continue
            selector.unregister(key.fileobj)
            key.fileobj.close()
            used = re.findall(rb'"(?:completion_tokens|tokens_predicted)": ?(\d+)', bytes(seen))
            if not used:
                for other in list(selector.get_map().values()):
                    other.fileobj.close()
                raise Failed(f"an answer without usage: {bytes(seen[-600:])!r}")
            tokens += int(used[-1])
            if number + 1 < ROUNDS:
                send(stream, number + 1)
    return tokens / (time.monotonic() - start), statistics.median(delays)


def serving(path, options, work):
    """`mmx serve`, guessing ahead and not, beside llama-server with flash attention on and off, in turns.

    The ratio is that of the server that does not guess: how often guesses are right depends on the text.
    """
    most = max(options.streams)
    threads = str(options.serve_threads)
    llama = [options.llama_server, "-m", path, "--port", "PORT", "-np", str(most), "-c", str(1024 * most), "-t", threads, "--no-webui"]
    # without guesses: random weights repeat themselves as no model should, and llama-server computes every token
    ours = [MMX, "serve", path, "--name", "m", "--port", "PORT", "--parallel", str(most), "--ctx", "1024", "-t", threads]
    servers = {
        "mmx": Server([*ours, "--speculate", "0"], f"{work}/mmx.log"),
        "guessing": Server(ours, f"{work}/guessing.log"),
        "llama": Server([*llama, "-fa", "off"], f"{work}/llama.log"),
        "flash": Server([*llama, "-fa", "on"], f"{work}/flash.log"),
    }
    rows = []
    try:
        for count in options.streams:
            rates = {who: [] for who in servers}
            delays = {who: [] for who in servers}
            # llama-server's own form: its OpenAI form fails where random weights write half characters
            ask_one = lambda who, salt: streams(servers[who].port, count, "/v1/completions" if who in ("mmx", "guessing") else "/completion", salt)
            for salt in range(0, 8000, 1000):  # and its own form fails at some texts of random weights, too
                try:
                    for who in servers:
                        ask_one(who, salt)  # warms up, too
                    break
                except Failed as error:
                    say(f"  {count} streams: {who}: {error}; other prompts")
            else:
                sys.exit("error: no prompts that every server answers")
            for _ in range(options.repeats):
                for who in servers:
                    time.sleep(0.5)  # the threads of the one before spin on for a while
                    rate, delay = ask_one(who, salt)
                    rates[who].append(rate), delays[who].append(delay)
            better = max(("llama", "flash"), key=lambda who: statistics.median(rates[who]))
            pairs = zip(rates["mmx"], rates["llama"], rates["flash"])
            rows.append({
                "streams": count,
                "tokens_per_s": statistics.median(rates["mmx"]), "llama_tokens_per_s": statistics.median(rates[better]),
                "ratio": statistics.median(ours / max(theirs) for ours, *theirs in pairs),
                "guessing_tokens_per_s": statistics.median(rates["guessing"]),
                "first_ms": 1e3 * statistics.median(delays["mmx"]), "llama_first_ms": 1e3 * statistics.median(delays[better]),
            })
            say(f"  {count} streams: {rows[-1]['ratio']:.2f}")
    finally:
        for server in servers.values():
            server.stop()
    return rows


def busy(path, options):
    """Decoding with all threads while another process computes, beside one thread on the free machine."""
    one, beside, llama = [], [], []
    for _ in range(options.repeats):
        one.append(ask("decode", "mmx", path, 1))
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            beside.append(ask("decode", "mmx", path, os.cpu_count()))
            llama.append(ask("decode", "llama", path, os.cpu_count()))
        finally:
            other.kill()
            other.wait()
    rate = lambda runs: statistics.median(run["decode"] for run in runs)
    return {"one_thread": rate(one), "all_threads_beside": rate(beside), "llama_all_threads_beside": rate(llama),
            "share": statistics.median(b["decode"] / o["decode"] for o, b in zip(one, beside))}


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench-run")
    words = lambda text: text.split(",")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--serve-threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--presets", type=words, default=PRESETS)
    parser.add_argument("--types", type=words, default=["f16", "q8_0", "q4_0"])
    parser.add_argument("--streams", type=lambda text: [int(n) for n in text.split(",")], default=[1, 4, 16])
    parser.add_argument("--serve", type=words, default=["minimind2-small:q4_0", "minimind3:q4_0"])
    parser.add_argument("--only", type=words, default=["speed", "first", "serve", "busy"])
    parser.add_argument("--json")
    parser.add_argument("--llama-server")
    options = parser.parse_args()
    result = {"machine": cpu_features(), "threads": options.threads, "repeats": options.repeats, "clock": options.clock, "models": [], "serve": []}

    with tempfile.TemporaryDirectory() as work:
        def made(preset, kind):
            path = f"{work}/{preset}-{kind}.gguf"
            if not os.path.exists(path):
                ask("make", preset, kind, TOKENIZER, path)
            return path

        for preset in options.presets if {"speed", "first"} & set(options.only) else []:
            for kind in options.types:
                path = made(preset, kind)
                row = {"preset": preset, "type": kind, "bytes": os.path.getsize(path)}
                for what, measure in (("speed", speed), ("first", first)):
                    if what in options.only:
                        row.update(measure(path, options))
                result["models"].append(row)
                say(preset, kind, *(f"{key} {row[key]:.2f}" for key in ("prefill_ratio", "decode_ratio", "of_limit", "first_ratio", "rss_ratio") if key in row))
                if f"{preset}:{kind}" not in options.serve:
                    os.unlink(path)
        for model in options.serve if "serve" in options.only else []:
            say("serving", model)
            result["serve"].append({"model": model, "rows": serving(made(*model.split(":")), options, work)})
        if "busy" in options.only:
            say("a busy core")
            result["busy"] = busy(made("minimind2-small", "q4_0"), options)

    if options.json:
        with open(options.json + ".part", "w") as file:
            json.dump(result, file, indent=1)
        os.replace(options.json + ".part", options.json)
    machine = result["machine"]
    print(f"{machine['cores']} cores, {' '.join(machine['features'])}; {options.threads} thread(s), median of {options.repeats}, {options.clock} time\n")
    if any("decode" in row for row in result["models"]):
        print(f"{'':26}{'prefill tokens/s':>24}{'decode tokens/s':>27}{'limit':>8}{'of it':>7}")
        for row in result["models"]:
            print(f"{row['preset'] + ' ' + row['type']:26}{row['prefill']:8.0f} /{row['llama_prefill']:6.0f} = {row['prefill_ratio']:4.2f}"
                  f"{row['decode']:11.0f} /{row['llama_decode']:6.0f} = {row['decode_ratio']:4.2f}{row['limit']:8.0f}{row['of_limit']:7.0%}")
        print("mmx / llama.cpp = ratio; limit: bytes of weights per token over the rate at which they can be read\n")
    if any("first_ms" in row for row in result["models"]):
        print(f"{'':26}{'first token, ms':>24}{'largest memory, MB':>27}")
        for row in result["models"]:
            print(f"{row['preset'] + ' ' + row['type']:26}{row['first_ms']:8.0f} /{row['llama_first_ms']:6.0f} = {row['first_ratio']:4.2f}"
                  f"{row['rss'] / 1e6:11.0f} /{row['llama_rss'] / 1e6:6.0f} = {row['rss_ratio']:4.2f}")
        print("from a fresh process and the file to the first token after 32\n")
    for served in result["serve"]:
        print(f"mmx serve / llama-server, {served['model']}, {options.serve_threads} threads")
        for row in served["rows"]:
            print(f"{row['streams']:4} streams: {row['tokens_per_s']:6.0f} / {row['llama_tokens_per_s']:6.0f} tokens/s = {row['ratio']:.2f},"
                  f" first token {row['first_ms']:.0f} / {row['llama_first_ms']:.0f} ms; guessing ahead {row['guessing_tokens_per_s']:.0f} tokens/s")
        print()
    if "busy" in result:
        row = result["busy"]
        print(f"beside a process that keeps one core busy, all threads: {row['all_threads_beside']:.0f} tokens/s, {row['share']:.0%} of one thread's "
              f"{row['one_thread']:.0f} (llama.cpp: {row['llama_all_threads_beside']:.0f})")


main()
