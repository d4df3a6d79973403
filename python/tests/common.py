"""A small model of the fixtures as a GGUF, made once, and the programs that were just built."""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
PACKAGE = os.path.join(ROOT, "python")
MMX = os.path.join(ROOT, "target", "release", "mmx")
GOLDEN = os.path.join(ROOT, "tests", "fixtures", "golden-2026")
WORK = tempfile.mkdtemp()
atexit.register(shutil.rmtree, WORK, True)
sys.path.insert(0, PACKAGE)
# the module runs against what was just built, whatever the caller's own settings are
os.environ.pop("MMX_LIBRARY", None)


def mmx(*arguments):
    """Runs mmx; the object that it prints."""
    done = subprocess.run([MMX, *arguments, "--json"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"mmx {' '.join(arguments)}: {done.stderr}")
    return json.loads(done.stdout)


def model():
    """The GGUF's path."""
    out = os.path.join(WORK, "export")
    if not os.path.exists(out):
        mmx("export", os.path.join(GOLDEN, "minimind3"), "--tokenizer", GOLDEN, "--name", "m", "--out", out, "--gguf", "f32")
    (name,) = (name for name in os.listdir(out) if name.endswith(".gguf"))
    return os.path.join(out, name)


def python(source, *arguments, **more):
    """Runs a program of Python with the module at hand."""
    environment = {**os.environ, "PYTHONPATH": PACKAGE, **more.pop("env", {})}
    return subprocess.run([sys.executable, "-c", source, *arguments], capture_output=True, text=True, env=environment, **more)
