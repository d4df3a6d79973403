"""Shared pieces of the peer tests: running mmx, comparing logits, one line per check."""
import json, os, re, subprocess, sys, time, traceback

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
import numpy as np

MMX, SHARED, WORK = (os.path.abspath(a) for a in sys.argv[1:4])
failed = 0


def check(name):
    """Runs the function once, prints `ok NAME: facts` or `FAIL NAME` and why."""

    def run(function):
        global failed
        try:
            print(f"ok    {name}: {function() or ''}", flush=True)
        except BaseException:
            failed += 1
            print(f"FAIL  {name}\n{traceback.format_exc()}", flush=True)

    return run


def mmx(*args, env=None):
    """Runs mmx with --json; its object."""
    out = subprocess.run([MMX, *map(str, args), "--json"], capture_output=True, text=True, env={**os.environ, **(env or {})})
    if out.returncode:
        raise RuntimeError(f"mmx {' '.join(map(str, args))}: {out.stderr}")
    return json.loads(out.stdout)


def serve(model, name, *options):
    """`mmx serve` of a model, its cache in float32: the process, once it answers, and its address."""
    log = os.path.join(WORK, f"serve-{os.path.basename(sys.argv[0])}.log")
    with open(log, "w") as file:
        server = subprocess.Popen([MMX, "serve", model, "--name", name, "--port", "0", "--kv", "f32", *options], stderr=file)
    for _ in range(300):
        if found := re.search(r"at (http://\S+)", open(log).read()):
            return server, found.group(1)
        time.sleep(0.1)
    server.kill()
    raise RuntimeError(f"mmx serve: {open(log).read()}")


def export(model, *args, out):
    """Exports; the paths of the files by the end of their names."""
    report = mmx("export", model, *args, "--name", "m", "--out", out)
    return [f["path"] for f in report["files"]]


def gguf_of(paths, kind="f32"):
    return next(p for p in paths if p.endswith(f"-{kind}.gguf"))


def mmx_logits(model, ids, engine=None):
    """`[rows, seq, vocab]` of a 2-D list of ids."""
    from safetensors.numpy import load_file

    rows = []
    for row in ids:
        where, out = os.path.join(WORK, "ids.json"), os.path.join(WORK, "logits.safetensors")
        json.dump([int(i) for i in row], open(where, "w"))
        mmx("logits", model, "--ids", where, "--out", out, *(["--engine", engine] if engine else []))
        rows.append(load_file(out)["logits"])
    return np.stack(rows)


def close(expected, found, limit, what):
    """Fails beyond the limit; else the largest difference in words."""
    expected, found = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    assert expected.shape == found.shape, f"{what}: shapes {expected.shape} and {found.shape}"
    assert np.isfinite(found).all(), f"{what}: not finite"
    far = np.abs(expected - found).max()
    assert far <= limit, f"{what}: largest difference {far:.3e} > {limit:.0e}"
    return f"{what} {far:.1e}"


def finish():
    sys.exit(1 if failed else 0)
