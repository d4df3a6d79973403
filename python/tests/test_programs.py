"""What `mmx` and `mmx-train` of an environment start, and with which libraries: on copies of the package with programs of
three lines that print what they were given.

    python3 -m unittest python/tests/test_programs.py
"""

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parent.parent / "mmx" / "_programs.py"
VARIABLE = "DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"


@unittest.skipIf(sys.platform == "win32", "the stand-ins are shell scripts")
class Programs(unittest.TestCase):
    def setUp(self):
        self.home = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.home)
        self.site = self.home / "site packages"
        bin_folder = self.site / "mmx" / "bin"
        bin_folder.mkdir(parents=True)
        shutil.copy(PROGRAMS, self.site / "mmx")
        for name in ("mmx", "mmx-train"):
            program = bin_folder / name
            program.write_text(f'#!/bin/sh\necho "{name}: $*"\necho "libraries: ${VARIABLE}"\nexit 7\n')
            program.chmod(0o755)

    def torch(self, folder, version):
        """A folder that looks like torch's, and is not to be imported."""
        (folder / "torch" / "lib").mkdir(parents=True)
        (folder / "torch" / "__init__.py").write_text("raise SystemExit('torch was imported')\n")
        (folder / "torch" / "version.py").write_text(f"from typing import Optional\n__version__ = '{version}'\n")
        return folder / "torch"

    def start(self, function, *arguments, path=(), variable=None):
        """Starts a program as an environment's script does; its exit code, its lines, and what it said."""
        script = textwrap.dedent(f"""
            import importlib.util, sys
            sys.path[:0] = {[str(self.site), *map(str, path)]!r}
            spec = importlib.util.spec_from_file_location("programs", {str(self.site / "mmx" / "_programs.py")!r})
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.argv = ["x", *{list(arguments)!r}]
            module.{function}()
        """)
        environment = {k: v for k, v in os.environ.items() if k != VARIABLE}
        if variable is not None:
            environment[VARIABLE] = variable
        # -S: no torch of the Python that runs this test
        out = subprocess.run([sys.executable, "-S", "-c", script], env=environment, capture_output=True, text=True)
        return out.returncode, out.stdout.splitlines(), out.stderr

    def test_arguments_and_exit_code_are_the_programs_own(self):
        code, lines, said = self.start("mmx", "run", "a b", "--x=*")
        self.assertEqual((code, lines, said), (7, ["mmx: run a b --x=*", "libraries: "], ""))

    def test_torch_beside_the_package_is_left_to_the_programs_own_path(self):
        self.torch(self.site, "2.11.0+cu130")
        self.assertEqual(self.start("mmx_train", "about")[1], ["mmx-train: about", "libraries: "])

    def test_torch_elsewhere_is_named_to_the_systems_loader(self):
        libraries = str(self.torch(self.home / "other", "2.11.0") / "lib")
        for function in ("mmx", "mmx_train"):
            self.assertEqual(self.start(function, path=[self.home / "other"])[1][1], f"libraries: {libraries}")
        before = self.start("mmx", path=[self.home / "other"], variable="/before")[1][1]
        self.assertEqual(before, f"libraries: {libraries}:/before")

    def test_training_without_torch_or_with_another_one_says_what_to_do(self):
        code, lines, said = self.start("mmx_train", "sft")
        self.assertEqual((code, lines), (1, []))
        self.assertIn("expected torch 2.11.0 in the environment of", said)
        self.assertIn("found none", said)
        self.assertIn('pip install "mmx-lm[train]"', said)
        torch = self.torch(self.site, "2.9.1+cpu")
        self.assertIn(f"found 2.9.1 in {torch}", self.start("mmx_train", "sft")[2])
        (torch / "version.py").unlink()
        (torch / "version.py").write_text("")
        self.assertIn("found one without a version in", self.start("mmx_train", "sft")[2])
        self.assertEqual(self.start("mmx", "run")[0], 7, "mmx needs no torch")

    def test_a_wheel_without_a_program_says_so(self):
        (self.site / "mmx" / "bin" / "mmx").unlink()
        code, _, said = self.start("mmx")
        self.assertEqual(code, 1)
        self.assertIn("this wheel of mmx-lm has no mmx", said)


if __name__ == "__main__":
    unittest.main()
