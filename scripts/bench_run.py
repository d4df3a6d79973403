"""What scripts/bench-run measures and prints; started by it."""
import argparse, http.client, json, os, re, selectors, shutil, socket, statistics, subprocess, sys, tempfile, time

PRESETS = ["minimind2-small", "minimind2", "minimind3", "minimind2-moe", "minimind3-moe"]
TYPES = ["f16", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "iq4_xs"]  # bf16 and f32 when they are asked for
# what a CPU must have for a set (Linux's names), the best set last
SETS = {
    "portable": [],
    "avx2": ["avx2", "fma", "f16c"],
    "avx2-vnni": ["avx2", "fma", "f16c", "avx_vnni"],
    "avx512": ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"],
    "avx512-vnni": ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"],
}
ENGINES = ("mmx", "llama", "flash")
# what ggml and llama.cpp are compiled for, so that each set meets its like: a CPU that has no more than it. The best of
# them is this very machine, whatever else it has
TARGETS = {"portable": "x86-64", "avx2": "haswell", "avx2-vnni": "alderlake", "avx512": "skylake-avx512", "avx512-vnni": "native"}
programs = {}  # of each set: bench_run
MMX = "target/release/mmx"
TOKENIZER = os.environ["BENCH_TOKENIZER"]  # scripts/bench-tokenizer.sh
WRITE = 128  # tokens of a stream
ROUNDS = 2  # texts of a stream, one after the other


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def ask(cpu, *command):
    """A measurement with the kernels of a set, those of mmx and those of llama.cpp."""
    return json.loads(subprocess.run(start(cpu, *command), env=forced(cpu), check=True, stdout=subprocess.PIPE).stdout)


def start(cpu, *command):
    return [programs[cpu], *map(str, command)]


def build(cpu, work):
    """bench_run for a set; each has a target folder of its own, which lasts."""
    folder, env = "target", dict(os.environ)
    if TARGETS[cpu] != "native":
        folder = os.path.join(os.environ["BENCH_BUILDS"], cpu)
        env["RUSTFLAGS"] = f"-C target-cpu={TARGETS[cpu]}"
    command = ["cargo", "build", "--quiet", "--release", "-p", "mmx-ggml", "--example", "bench_run", "--target-dir", folder]
    subprocess.run(command, env=env, check=True)
    # a copy: what is measured stays what it was while others build
    program = f"{work}/bench_run-{cpu}"
    shutil.copy(f"{folder}/release/examples/bench_run", program)
    programs[cpu] = program


def forced(cpu):
    return {**os.environ, "MMX_CPU": cpu}


def cpu_features():
    """What decides which kernels run."""
    about = {}
    for line in open("/proc/cpuinfo"):
        key, _, value = line.partition(":")
        about.setdefault(key.strip(), value.strip())
    flags = set(about.get("flags", "").split())
    wanted = ["avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8"]
    model = ", ".join(f"{key} {about[key]}" for key in ("cpu family", "model") if key in about)
    return {"name": f"{about.get('model name', 'unknown CPU')} ({model})", "cores": os.cpu_count(),
            "features": [f for f in wanted if f in flags], "sets": [name for name, needs in SETS.items() if flags >= set(needs)]}


def ratio(result, what):
    """The middle of the ratios of runs next to each other: what slows both cancels."""
    each = zip(*(result[engine][what] for engine in ENGINES))
    return statistics.median(ours / max(theirs) for ours, *theirs in each)


def speed(path, cell, options):
    """Prefill and decode, ratios to llama.cpp's better mode, and the limit that reading the weights sets."""
    result = ask(cell["cpu"], "speed", path, cell["threads"], options.repeats, options.clock)
    middle = {e: {k: statistics.median(v) for k, v in result[e].items()} for e in ENGINES}
    row = {"bytes_per_token": result["bytes_per_token"], "bytes_per_s": statistics.median(result["bytes_per_s"])}
    for what in ("prefill", "decode"):
        row[what] = middle["mmx"][what]
        row["llama_" + what] = max(middle["llama"][what], middle["flash"][what])
        row[what + "_ratio"] = ratio(result, what)
    row["limit"] = row["bytes_per_s"] / row["bytes_per_token"]
    row["of_limit"] = row["decode"] / row["limit"]
    return row


def batches(path, cell, options):
    """Tokens per second in steps of a few tokens each, as servers and drafts make them."""
    result = ask(cell["cpu"], "batches", path, cell["threads"], options.repeats, options.clock, *options.batches)
    rows = []
    for size in map(str, options.batches):
        middle = {e: statistics.median(result[e][size]) for e in ENGINES}
        rows.append({"tokens": int(size), "rate": middle["mmx"], "llama_rate": max(middle["llama"], middle["flash"]),
                     "ratio": ratio(result, size)})
    return {"batches": rows}


def first(path, cell, options):
    """A fresh process from the file to the first token of a prompt of 32; its largest memory."""
    time_key = "first_token_cpu_ms" if options.clock == "cpu" else "first_token_ms"
    runs = {e: [] for e in ENGINES}
    for _ in range(options.repeats):
        for engine, found in runs.items():
            found.append(ask(cell["cpu"], "first", engine, path, cell["threads"]))
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
    rows, fresh = [], 0
    try:
        for count in options.streams:
            rates = {who: [] for who in servers}
            delays = {who: [] for who in servers}
            known = {who: [] for who in servers}
            # llama-server's own form: its OpenAI form fails where random weights write half characters
            ask_one = lambda who, salt: streams(servers[who].port, count, "/v1/completions" if who in ("mmx", "guessing") else "/completion", salt)
            for repeat in range(options.repeats + 1):  # the first warms up
                for who in servers:
                    time.sleep(0.5)  # the threads of the one before spin on for a while
                    for _ in range(8):  # and its own form fails at some texts of random weights, too
                        fresh += 1000
                        try:
                            # prompts that no server has seen, then the same again: both servers keep what they have read
                            first, again = ask_one(who, fresh), ask_one(who, fresh)
                            break
                        except Failed as error:
                            say(f"  {count} streams: {who}: {error}; other prompts")
                    else:
                        sys.exit(f"error: no prompts that {who} answers")
                    if repeat:
                        rates[who].append(first[0]), delays[who].append(first[1]), known[who].append(again[1])
            better = max(("llama", "flash"), key=lambda who: statistics.median(rates[who]))
            pairs = zip(rates["mmx"], rates["llama"], rates["flash"])
            rows.append({
                "streams": count,
                "tokens_per_s": statistics.median(rates["mmx"]), "llama_tokens_per_s": statistics.median(rates[better]),
                "ratio": statistics.median(ours / max(theirs) for ours, *theirs in pairs),
                "guessing_tokens_per_s": statistics.median(rates["guessing"]),
                "first_ms": 1e3 * statistics.median(delays["mmx"]), "llama_first_ms": 1e3 * statistics.median(delays[better]),
                "known_first_ms": 1e3 * statistics.median(known["mmx"]), "llama_known_first_ms": 1e3 * statistics.median(known[better]),
            })
            say(f"  {count} streams: {rows[-1]['ratio']:.2f}")
    finally:
        for server in servers.values():
            server.stop()
    return rows


def beside(path, cpu, engine):
    """Decoding with all threads, one of which may only use the first core, which another process keeps busy."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    run = subprocess.Popen(start(cpu, "decode", engine, path, os.cpu_count()), env=forced(cpu), stdout=subprocess.PIPE)
    try:
        os.sched_setaffinity(other.pid, {0})
        # the first thread anywhere but there, its workers in turns on every core, as they appear
        os.sched_setaffinity(run.pid, set(range(1, os.cpu_count())) or {0})
        while run.poll() is None:
            for place, thread in enumerate(sorted(map(int, os.listdir(f"/proc/{run.pid}/task")))[1:]):
                try:
                    os.sched_setaffinity(thread, {place % os.cpu_count()})
                except ProcessLookupError:
                    pass
            time.sleep(0.02)
        return json.loads(run.stdout.read())["decode"]
    except FileNotFoundError:  # it ended while its threads were listed
        return json.loads(run.communicate()[0])["decode"]
    finally:
        for process in (other, run):
            process.kill()
            process.wait()


def busy(path, cpu, options):
    """Decoding with all threads while another process computes, beside one thread on the free machine."""
    one, shared, llama, pinned, llama_pinned = [], [], [], [], []
    for _ in range(options.repeats):
        one.append(ask(cpu, "decode", "mmx", path, 1)["decode"])
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            shared.append(ask(cpu, "decode", "mmx", path, os.cpu_count())["decode"])
            llama.append(ask(cpu, "decode", "llama", path, os.cpu_count())["decode"])
        finally:
            other.kill()
            other.wait()
        pinned.append(beside(path, cpu, "mmx"))
        llama_pinned.append(beside(path, cpu, "llama"))
    middle = statistics.median
    return {"one_thread": middle(one), "all_threads_beside": middle(shared), "llama_all_threads_beside": middle(llama),
            "share": middle(b / o for o, b in zip(one, shared)),
            "pinned_beside": middle(pinned), "llama_pinned_beside": middle(llama_pinned)}


def cells(options):
    """Every preset, type, set and number of threads; a set's threads next to each other."""
    for preset in options.presets:
        for kind in options.types:
            for cpu in options.cpu:
                for threads in options.threads:
                    yield {"preset": preset, "type": kind, "cpu": cpu, "threads": threads}


def named(row):
    return f"{row['preset']} {row['type']} {row['cpu']} {row['threads']}t"


def main():
    machine = cpu_features()
    parser = argparse.ArgumentParser(prog="scripts/bench-run")
    words = lambda text: text.split(",")
    numbers = lambda text: [int(n) for n in text.split(",")]
    parser.add_argument("--cpu", type=words, default=machine["sets"][-1:])
    parser.add_argument("--threads", type=numbers, default=sorted({1, os.cpu_count()}))
    parser.add_argument("--serve-threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--presets", type=words, default=PRESETS)
    parser.add_argument("--types", type=words, default=TYPES)
    parser.add_argument("--batches", type=numbers, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--streams", type=numbers, default=[1, 4, 16])
    parser.add_argument("--serve", type=words, default=["minimind2-small:q4_0", "minimind3:q4_0"])
    parser.add_argument("--only", type=words, default=["speed", "batches", "first", "serve", "busy"])
    parser.add_argument("--json")
    parser.add_argument("--llama-server")
    options = parser.parse_args()
    for cpu in options.cpu:
        if cpu not in machine["sets"]:
            sys.exit(f"error: --cpu {cpu}: expected {', '.join(machine['sets'])}, which this CPU has")
    result = {"machine": machine, "date": time.strftime("%Y-%m-%d"), "load_before": os.getloadavg()[0],
              "repeats": options.repeats, "clock": options.clock, "models": [], "serve": []}

    def save():
        if options.json:
            with open(options.json + ".part", "w") as file:
                json.dump(result, file, indent=1)
            os.replace(options.json + ".part", options.json)

    best = options.cpu[-1]
    with tempfile.TemporaryDirectory() as work:
        for cpu in options.cpu:
            say("building for", cpu)
            build(cpu, work)

        def made(preset, kind):
            path = f"{work}/{preset}-{kind}.gguf"
            if not os.path.exists(path):
                ask(best, "make", preset, kind, TOKENIZER, path)
            return path

        measures = [m for m in (speed, batches, first) if m.__name__ in options.only]
        done = None
        for row in cells(options) if measures else []:
            path = made(row["preset"], row["type"])
            if done not in (None, path) and os.path.basename(done)[:-5].rpartition("-")[::2] not in [tuple(s.split(":")) for s in options.serve]:
                os.unlink(done)
            done = path
            row["bytes"] = os.path.getsize(path)
            for measure in measures:
                row.update(measure(path, row, options))
            result["models"].append(row)
            save()  # what took an hour is not lost with the rest
            shown = [f"{key} {row[key]:.2f}" for key in ("prefill_ratio", "decode_ratio", "of_limit", "first_ratio", "rss_ratio") if key in row]
            shown += [f"x{b['tokens']} {b['ratio']:.2f}" for b in row.get("batches", [])]
            say(named(row), *shown)
        for model in options.serve if "serve" in options.only else []:
            say("serving", model)
            result["serve"].append({"model": model, "rows": serving(made(*model.split(":")), options, work)})
        if "busy" in options.only:
            say("a busy core")
            result["busy"] = busy(made("minimind2-small", "q4_0"), best, options)
    save()
    show(result, options)


def show(result, options):
    """The tables, as Markdown."""
    machine = result["machine"]
    print(f"{machine['name']}, {machine['cores']} cores, {' '.join(machine['features'])}; sets it has: {' '.join(machine['sets'])}; "
          f"{result['date']}; medians of {result['repeats']}, in turns, {result['clock']} time; load before: {result['load_before']:.1f}\n")
    rows = result["models"]
    if any("decode" in row for row in rows):
        print("mmx / llama.cpp = ratio, tokens/s; limit: bytes of weights per token over the rate at which a plain loop reads them\n")
        print("| preset | type | set | threads | prefill of 512 | decode of 128 | decode's limit | of it |\n|---|---|---|---|---|---|---|---|")
        for row in rows:
            print(f"| {row['preset']} | {row['type']} | {row['cpu']} | {row['threads']} | {row['prefill']:.0f} / {row['llama_prefill']:.0f} = **{row['prefill_ratio']:.2f}** "
                  f"| {row['decode']:.0f} / {row['llama_decode']:.0f} = **{row['decode_ratio']:.2f}** | {row['limit']:.0f} | {row['of_limit']:.0%} |")
        print()
        gains(rows, options)
    if any("batches" in row for row in rows):
        sizes = [str(size) for size in options.batches]
        print("steps of a few tokens, times llama.cpp's rate\n")
        print(f"| preset | type | set | threads | {' | '.join(sizes)} |\n|---|---|---|---|{'---|' * len(sizes)}")
        for row in rows:
            print(f"| {row['preset']} | {row['type']} | {row['cpu']} | {row['threads']} | {' | '.join(format(b['ratio'], '.2f') for b in row['batches'])} |")
        print()
    if any("first_ms" in row for row in rows):
        print("from a fresh process and the file to the first token after 32\n")
        print("| preset | type | set | threads | first token, ms | largest memory, MB |\n|---|---|---|---|---|---|")
        for row in rows:
            print(f"| {row['preset']} | {row['type']} | {row['cpu']} | {row['threads']} | {row['first_ms']:.0f} / {row['llama_first_ms']:.0f} = **{row['first_ratio']:.2f}** "
                  f"| {row['rss'] / 1e6:.0f} / {row['llama_rss'] / 1e6:.0f} = **{row['rss_ratio']:.2f}** |")
        print()
    for served in result["serve"]:
        print(f"mmx serve / llama-server, {served['model']}, {options.serve_threads} threads")
        for row in served["rows"]:
            print(f"{row['streams']:4} streams: {row['tokens_per_s']:6.0f} / {row['llama_tokens_per_s']:6.0f} tokens/s = {row['ratio']:.2f},"
                  f" first token {row['first_ms']:.0f} / {row['llama_first_ms']:.0f} ms, of a prompt read before "
                  f"{row['known_first_ms']:.0f} / {row['llama_known_first_ms']:.0f} ms; guessing ahead {row['guessing_tokens_per_s']:.0f} tokens/s")
        print()
    if "busy" in result:
        row = result["busy"]
        print(f"beside a process that keeps one core busy, all threads: {row['all_threads_beside']:.0f} tokens/s, {row['share']:.0%} of one thread's "
              f"{row['one_thread']:.0f} (llama.cpp: {row['llama_all_threads_beside']:.0f}); with one thread held to that core: "
              f"{row['pinned_beside']:.0f} (llama.cpp: {row['llama_pinned_beside']:.0f})")


def gains(rows, options):
    """What all threads bring over one, of both."""
    if len(options.threads) < 2:
        return
    few, many = options.threads[0], options.threads[-1]
    of = {(r["preset"], r["type"], r["cpu"], r["threads"]): r for r in rows}
    print(f"{many} threads' rate over {few}'s: mmx / llama.cpp\n\n| preset | type | set | prefill | decode |\n|---|---|---|---|---|")
    for preset, kind, cpu, threads in of:
        if threads == few and (preset, kind, cpu, many) in of:
            one, all_of = of[preset, kind, cpu, few], of[preset, kind, cpu, many]
            gain = lambda key: all_of[key] / one[key]
            print(f"| {preset} | {kind} | {cpu} | {gain('prefill'):.2f} / {gain('llama_prefill'):.2f} | {gain('decode'):.2f} / {gain('llama_decode'):.2f} |")
    print()


main()
