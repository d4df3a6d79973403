#!/usr/bin/env python3
"""python_module.py MMX SHARED WORK
The module mmx over the library that was just built: its tests, its types as mypy sees them, and the notebook of the docs."""
import json, os, re, subprocess, sys

sys.path.insert(0, os.path.dirname(__file__))
from check import WORK, check, finish

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))


@check("python: the module's tests")
def tests():
    command = [sys.executable, "-W", "error::ResourceWarning", "-m", "unittest", "discover", "--start-directory", os.path.join(ROOT, "python", "tests")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=WORK)
    assert done.returncode == 0, done.stderr
    (ran,) = re.findall(r"Ran (\d+) tests", done.stderr)
    assert int(ran) > 20 and "skipped" not in done.stderr, done.stderr
    return f"{ran} tests"


@check("python: mypy --strict on the module, and on a program that uses it")
def types():
    program = os.path.join(WORK, "typed.py")
    with open(program, "w") as file:
        file.write(
            "import mmx\n"
            "def ask(path: str) -> str:\n"
            "    with mmx.load(path) as model, model.session(context=64) as session:\n"
            "        pieces: list[str] = list(session.generate('a', max_tokens=3, stop=['b'], temperature=0.5))\n"
            "        size: int = model.logits('a', every=True).size\n"
            "        return ''.join(pieces) + model.chat([{'role': 'user', 'content': 'a'}], seed=size).answer()\n"
        )
    wrong = os.path.join(WORK, "mistyped.py")
    with open(wrong, "w") as file:
        file.write("import mmx\nmmx.load(3)\nmmx.load('a').generate('a', max_token=3)\nmmx.load('a').generate('a', seed='1')\n")
    settings = os.path.join(WORK, "mypy.ini")
    with open(settings, "w") as file:  # what starts the programs is no part of the module
        file.write("[mypy]\nstrict = True\n[mypy-mmx._programs]\nignore_errors = True\n")
    environment = {**os.environ, "MYPYPATH": os.path.join(ROOT, "python")}
    mypy = [sys.executable, "-m", "mypy", "--config-file", settings, "--cache-dir", os.path.join(WORK, "mypy")]
    done = subprocess.run([*mypy, "-p", "mmx"], capture_output=True, text=True, env=environment, cwd=WORK)
    assert done.returncode == 0, done.stdout
    done = subprocess.run([*mypy, program], capture_output=True, text=True, env=environment, cwd=WORK)
    assert done.returncode == 0, done.stdout
    done = subprocess.run([*mypy, wrong], capture_output=True, text=True, env=environment, cwd=WORK)
    lines = {line.split(":")[1] for line in done.stdout.splitlines() if ": error:" in line}
    assert lines == {"2", "3", "4"}, done.stdout
    return "three mistakes found, none elsewhere"


finish()
