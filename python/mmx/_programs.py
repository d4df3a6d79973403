"""Starts the programs that lie in this package: on the path, `mmx` and `mmx-train` are functions of this file.

Nothing is imported for it but the standard library, torch least of all: its folder is asked for, in the environment that
this package lies in. Where torch lies beside the package, the programs find its libraries by themselves; where it lies
elsewhere (the system's packages, another folder on sys.path), the variable of the system's loader says where.
"""

import os
import sys

# The version of torch whose libraries mmx-train was built with: scripts/env.sh, and the extra `train` in pyproject.toml.
TORCH_VERSION = "2.11.0"

_FOLDER = os.path.dirname(os.path.abspath(__file__))
_LOADER = {"win32": "PATH", "darwin": "DYLD_LIBRARY_PATH"}.get(sys.platform, "LD_LIBRARY_PATH")


def _torch():
    """The folder of the torch that this Python would import, or None."""
    beside = os.path.join(os.path.dirname(_FOLDER), "torch")
    if os.path.isfile(os.path.join(beside, "version.py")):
        return beside
    from importlib.util import find_spec

    spec = find_spec("torch")
    folders = spec.submodule_search_locations if spec else None
    return next(iter(folders), None) if folders else None


def _version(torch):
    """The version of the torch in a folder without what follows a `+`, or None where it does not say one."""
    try:
        with open(os.path.join(torch, "version.py"), encoding="utf-8") as file:
            lines = [line for line in file if line.startswith("__version__")]
    except OSError:
        return None
    return lines[0].split("=")[-1].strip().strip("'\"").split("+")[0] if lines else None


def _environment(torch):
    """The variables of a program that may need the libraries of the torch in this folder."""
    environment = dict(os.environ)
    libraries = os.path.join(torch, "lib") if torch else None
    if libraries and os.path.dirname(torch) != os.path.dirname(_FOLDER):
        before = environment.get(_LOADER)
        environment[_LOADER] = libraries + (os.pathsep + before if before else "")
    return environment


def _run(name, arguments):
    program = os.path.join(_FOLDER, "bin", name + (".exe" if sys.platform == "win32" else ""))
    if not os.path.isfile(program):
        sys.exit(f"error: {program} is not there: this wheel of mmx-lm has no {name}, or it was not installed whole")
    environment = _environment(_torch())
    if sys.platform != "win32":
        os.execve(program, [name] + arguments, environment)
    # Windows has no exec: this process waits, and leaves Ctrl-C to the program
    import signal
    import subprocess

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(subprocess.call([program] + arguments, env=environment))


def mmx():
    """The program mmx."""
    _run("mmx", sys.argv[1:])


def mmx_train():
    """The program mmx-train, which `mmx train` starts. It needs torch of the version that it was built with."""
    torch = _torch()
    found = _version(torch) if torch else None
    if found != TORCH_VERSION:
        what = f"found {found or 'one without a version'} in {torch}" if torch else "found none"
        sys.exit(
            f"error: mmx-train: expected torch {TORCH_VERSION} in the environment of {sys.executable}, {what}\n\n"
            f'hint: {sys.executable} -m pip install "mmx-lm[train]"'
        )
    _run("mmx-train", sys.argv[1:])
