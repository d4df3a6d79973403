#!/usr/bin/env python3
"""consumers.py MMX SHARED WORK CACHE TORCH [--all] [--pages] [PAGE..]
The pages of docs/consumers, run as they stand there: each page's blocks in order, in the Python that its `pip install`
block describes (made once in CACHE), on exports of a small model that is trained here. Remarks in the page say the rest:

  <!-- on: NAME -->       beside which Transformers (5.24.0, 4.57.6) the packages are installed, `torch` alone, or none; or the
                          folder of CACHE in which another script has installed them
  <!-- part: all -->      only with --all: it takes long or much disk
  <!-- port: N -->        replaced by a free port
  <!-- until: URL -->     after a block: it is a server, started and left running until the page's end
  <!-- check: EXPR -->    after a block: what must be true of `out`, what the block printed (`before`: the blocks before)

Blocks of Python share one process, as cells of a notebook do. Then `mmx verify --consumers` with each of these Pythons on
a model of each family (left out with --pages). Prints a line for each check."""
import hashlib, json, os, re, shutil, socket, subprocess, sys, tempfile, time, urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from check import MMX, WORK, check, export, finish, gguf_of, mmx
import consumer_model

CACHE, TORCH = sys.argv[4:6]
ALL = "--all" in sys.argv
ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
PAGES = os.path.join(ROOT, "docs/consumers")
ASKED = [a for a in sys.argv[6:] if not a.startswith("--")]
LIMIT = 900  # seconds of a block

# one process for a page's Python; answers go to a file of their own, since packages print
CELLS = r"""
import contextlib, io, json, sys, traceback
space = {"__name__": "__main__"}
for line in sys.stdin:
    job, out, error = json.loads(line), io.StringIO(), None
    try:
        with contextlib.redirect_stdout(out):
            exec(compile(job["code"], job["name"], "exec"), space)
    except BaseException:
        error = traceback.format_exc()
    with open(job["answer"], "w") as file:
        json.dump({"out": out.getvalue(), "error": error}, file)
    print("\x04", flush=True)
"""


class Page:
    """A page's remarks and blocks: (language, code, [(remark, value)])."""

    def __init__(self, name):
        self.name = name
        text = open(os.path.join(PAGES, name), encoding="utf-8").read()
        parts = re.split(r"(?ms)^```(\w+)\n(.*?)^```$", text)
        remarks = lambda text: re.findall(r"<!-- (\w+): (.*?) -->", text, re.S)
        self.head = dict(remarks(parts[0]))
        self.blocks = [(parts[i], parts[i + 1], remarks(parts[i + 2])) for i in range(1, len(parts), 3)]
        for port in [value for key, value in remarks(text) if key == "port"]:
            free = free_port()
            self.blocks = [(a, code.replace(port, free), [(k, v.replace(port, free)) for k, v in c]) for a, code, c in self.blocks]

    def pythons(self):
        """The Pythons that the page runs in: (label, path), made if they are not there."""
        base = self.head.get("on")
        if not base:  # programs alone
            return [("", sys.executable)]
        other = os.path.join(CACHE, base, "bin/python")
        if os.path.exists(other):
            return [("", other)]
        packages = next(code for _, code, _ in self.blocks if code.startswith("pip install "))
        words = packages.replace("\\\n", " ").split()[2:]
        return [(base, python_with(base, [w.strip("\"'") for w in words])) for base in self.head["on"].split(", ")]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def python_with(base, packages):
    """A Python with packages beside those of a base, made once."""
    assert base in ("none", "torch") or re.match(r"\d", base), f"{base}: another script installs it: run scripts/peers.sh"
    of_base = ("transformers", "torch") if base != "none" else ()
    packages = [p for p in packages if not re.match(rf"({'|'.join(of_base) or '-'})\b(?!-)", p)]
    peers = lambda version: os.path.join(CACHE, f"peers-{version}")
    if re.match(r"\d", base) and not packages:
        return os.path.join(peers(base), "bin/python")
    mark = hashlib.sha256(" ".join([base, *packages]).encode()).hexdigest()[:8]
    first = re.split(r"[^a-z0-9-]", packages[0].lower())[0]
    folder = os.path.join(CACHE, f"consumer-{first}-{mark}")
    python = os.path.join(folder, "bin/python")
    if not os.path.exists(os.path.join(folder, "installed")):
        print(f"installing {' '.join(packages)} (once)", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        site = subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip()
        beside = [os.path.dirname(TORCH)] if base != "none" else []
        if re.match(r"\d", base):
            of = os.path.join(peers(base), "bin/python")
            beside.insert(0, subprocess.check_output([of, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip())
        with open(os.path.join(site, "beside.pth"), "w") as file:
            file.write("".join(line + "\n" for line in beside))
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], check=True, stdout=sys.stderr)
        open(os.path.join(folder, "installed"), "w").close()
    return python


def tools():
    """Folders of the programs that pages start: mmx, and Ollama's and llama.cpp's where they are."""
    found = [os.path.dirname(MMX)]
    for name in sorted(os.listdir(CACHE)):
        for below in ("bin", "lib/ollama"):
            if name.startswith("ollama-v") and os.path.isdir(os.path.join(CACHE, name, below)):
                found.append(os.path.join(CACHE, name, below))
    return found


def models(family):
    """A folder with `runs/sft` and `export`, as the pages have it, of one family."""
    folder = os.path.join(WORK, "consumers", family)
    if not os.path.isdir(folder):
        run = consumer_model.train(family, folder, long=family == "minimind3")
        paths = export(run, "--hf", "f32", "--gguf", "f32", "--gguf", "q4_0", "--ollama", out=os.path.join(folder, "export"))
        for kind in ("f32", "q4_0"):
            os.symlink(os.path.basename(gguf_of(paths, kind)), os.path.join(folder, "export", f"model-{kind}.gguf"))
    return folder


class Own:
    """mmx's own answers, which the pages' checks compare with."""

    def __init__(self, folder):
        self.folder = folder

    def run(self, prompt, *args, model="export/model-f32.gguf"):
        return mmx("run", os.path.join(self.folder, model), "-p", prompt, "--greedy", "--kv", "f32", *args)

    def answer(self, prompt, n=24, **more):
        """The greedy answer to a user's message."""
        return self.run(prompt, "-n", n, **more)["text"]

    def after(self, text, n=24, **more):
        """The greedy text after a text."""
        return self.run(text, "--raw", "-n", n, **more)["text"]


class Run:
    """A page under way in one Python."""

    def __init__(self, page, python, folder):
        self.page, self.python, self.folder = page, python, folder
        self.started, self.cells = [], None
        self.log = open(os.path.join(tempfile.mkdtemp(dir=WORK), "log"), "w+")
        home = os.path.join(self.folder, "home")
        os.makedirs(home, exist_ok=True)
        path = ":".join([os.path.dirname(python), *tools(), os.environ["PATH"]])
        own = dict(PATH=path, HOME=home, HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", MMX_CACHE=CACHE, TOKENIZERS_PARALLELISM="false")
        self.env = {**os.environ, **own}

    def said(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read()[-3000:]

    def shell(self, code):
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=self.log, text=True, timeout=LIMIT)
        assert done.returncode == 0, f"exit code {done.returncode}: {code}\n{done.stdout[-1000:]}\n{self.said()}"
        return done.stdout

    def serve(self, code, url):
        self.started.append(subprocess.Popen(["bash", "-c", "exec env " + code.replace("\\\n", " ")], cwd=self.folder, env=self.env, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL))
        for _ in range(LIMIT * 2):
            try:
                urllib.request.urlopen(url, timeout=5)
                return ""
            except OSError:
                assert self.started[-1].poll() is None, f"it ended: {code}\n{self.said()}"
                time.sleep(0.5)
        raise TimeoutError(f"{url}\n{self.said()}")

    def cell(self, code, name):
        if self.cells is None:
            self.cells = subprocess.Popen([self.python, "-u", "-c", CELLS], cwd=self.folder, env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)
            self.started.append(self.cells)
        where = os.path.join(self.folder, "cell.json")
        print(json.dumps({"code": code, "name": name, "answer": where}), file=self.cells.stdin, flush=True)
        for line in self.cells.stdout:
            if line.endswith("\x04\n"):
                found = json.load(open(where))
                assert not found["error"], found["error"] + self.said()
                return found["out"]
        raise RuntimeError("Python ended: " + self.said())

    def close(self):
        for process in reversed(self.started):
            process.terminate()
        for process in self.started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        self.log.close()


def run_page(page, python, folder):
    """Runs a page's blocks and checks; how many there were."""
    run, own, checks, before = Run(page, python, folder), Own(folder), 0, [""]
    try:
        for number, (language, code, remarks) in enumerate(page.blocks, 1):
            if code.startswith("pip install "):
                continue
            name = f"{page.name}, block {number}"
            until = dict(remarks).get("until")
            if until:
                out = run.serve(code, until)
            elif language == "python":
                out = run.cell(code, name)
            else:
                out = run.shell(code)
            out = out.strip()
            names = dict(out=out, before=before, lines=out.splitlines(), answer=own.answer, after=own.after, json=json, re=re, os=os, mmx=mmx, folder=folder)
            for expression in [value for key, value in remarks if key == "check"]:
                checks += 1
                if not eval(expression, names):
                    right = expression.partition(" == ")[2]
                    try:
                        expected = f"expected: {eval(right, names)!r}"
                    except SyntaxError:  # no comparison as a whole
                        expected = ""
                    raise AssertionError(f"{name}: {expression}\n  out: {out!r}\n  {expected}")
            before.insert(0, out)  # what the blocks before printed, the last one first
    finally:
        run.close()
    assert checks, f"{page.name}: no check"
    return checks


names = sorted(n for n in os.listdir(PAGES) if n.endswith(".md") and n != "README.md")
pages = [page for page in map(Page, names) if (not ASKED or page.name in ASKED) and (ALL or page.head.get("part") != "all")]
pythons = {}
for page in pages:
    for label, python in page.pythons():
        beside = f" ({label})" if re.match(r"\d", label) and ", " in page.head["on"] else ""

        @check(f"docs/consumers/{page.name}{beside}")
        def _(page=page, python=python):
            of_page = os.path.join(tempfile.mkdtemp(dir=WORK), "page")  # a page begins anew
            shutil.copytree(models("minimind3"), of_page, symlinks=True)
            start = time.monotonic()
            checks = run_page(page, python, of_page)
            return f"{checks} checks, {time.monotonic() - start:.0f} s"

        if "on" in page.head:
            pythons.setdefault(python, page.name)

# the pages use minimind3, and doors.py asks Transformers for every golden model
FAMILIES = ["minimind2", "minimind3-moe"] + (["minimind2-moe", "minimind3"] if ALL else [])
for python, name in [] if "--pages" in sys.argv else pythons.items():
    for family in FAMILIES:

        @check(f"{name}: mmx verify --consumers, {family}")
        def _(python=python, family=family):
            folder = models(family)
            forms = [os.path.join(folder, "export", form) for form in ("hf-f32", "model-f32.gguf", "model-q4_0.gguf")]
            done = subprocess.run([MMX, "verify", os.path.join(folder, "runs/sft"), *forms, "--consumers", "--python", python, "--json"], capture_output=True, text=True)
            if "expected one of the packages" in done.stderr:
                return "nothing that verify asks"
            assert done.stdout, done.stderr
            rows = json.loads(done.stdout)["consumers"]["rows"]
            wrong = [row for row in rows if not row["ok"]]
            assert done.returncode == 0 and rows and not wrong, json.dumps(wrong, indent=1, ensure_ascii=False)
            outcomes = [row["outcome"] for row in rows]
            asked = sorted({f"{row['consumer']} {row['version']}" for row in rows})
            counts = ", ".join(f"{outcomes.count(o)} {o}" for o in dict.fromkeys(outcomes))
            return f"{', '.join(asked)}: {counts}, {sum(row['seconds'] for row in rows):.0f} s"


finish()
