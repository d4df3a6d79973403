"""The module does what mmx's programs do, and refuses the rest with a sentence."""

import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import unittest
import urllib.request
from pathlib import Path

import common
import mmx
import numpy

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "好 <|im_end|> \"quoted\""}]


def tensors(path):
    """The tensors of a safetensors file of the fixtures."""
    data = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    kinds = {"F32": numpy.float32, "I64": numpy.int64, "I32": numpy.int32, "U32": numpy.uint32}
    found = {}
    for name, tensor in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__" and tensor["dtype"] in kinds:
            begin, end = (8 + length + offset for offset in tensor["data_offsets"])
            found[name] = numpy.frombuffer(data[begin:end], kinds[tensor["dtype"]]).reshape(tensor["shape"])
    return found


class Module(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.path = common.model()
        cls.model = mmx.load(cls.path)

    @classmethod
    def tearDownClass(cls):
        cls.model.close()

    def test_sizes_are_those_of_the_model(self):
        config = json.loads(Path(common.GOLDEN, "minimind3", "config.json").read_text())
        self.assertEqual(self.model.vocab_size, config["vocab_size"])
        self.assertEqual(self.model.embedding_size, config["hidden_size"])
        self.assertEqual(self.model.context_length, config["max_position_embeddings"])
        self.assertRegex(mmx.version(), r"^\d+\.\d+\.\d+$")

    def test_text_becomes_the_references_ids_and_text_again(self):
        cases = json.loads(Path(common.GOLDEN, "tokenizer-cases.json").read_text(encoding="utf-8"))
        cases = cases.get("cases", cases) if isinstance(cases, dict) else cases
        tried = 0
        for case in cases:
            if not isinstance(case.get("text"), str) or "ids" not in case:
                continue
            self.assertEqual(self.model.tokenize(case["text"], control=True), case["ids"])
            self.assertEqual(self.model.detokenize(case["ids"], control=True), case["text"])
            tried += 1
        self.assertGreater(tried, 10)
        for text in ["", "a\0b", "\ufffd", "好" * 100_000, "\n\t \u200b"]:
            self.assertEqual(self.model.detokenize(self.model.tokenize(text)), text)
        self.assertEqual(len(self.model.tokenize("<|im_end|>", control=True)), 1)
        self.assertGreater(len(self.model.tokenize("<|im_end|>")), 1)

    def test_greedy_text_is_that_of_mmx_run(self):
        said = common.mmx("run", self.path, "-p", "Once upon", "--raw", "--greedy", "-n", "24")
        generation = self.model.generate("Once upon", temperature=0, repeat_penalty=1, max_tokens=24)
        pieces = list(generation)
        self.assertEqual("".join(pieces), said["text"])
        self.assertGreater(len(pieces), 1)
        self.assertEqual(generation.written, generation.text())
        self.assertEqual(len(generation.ids), 24 if generation.finish == "length" else len(generation.ids))
        self.assertEqual(generation.prompt_tokens, len(self.model.tokenize("Once upon", control=True, around=True)))
        self.assertGreater(generation.seconds, 0)
        self.assertIn(generation.finish, ("length", "stop"))
        self.assertEqual(list(generation), [])

    def test_greedy_answers_are_those_of_mmx_run(self):
        said = common.mmx("run", self.path, "-p", CHAT[1]["content"], "--system", CHAT[0]["content"], "--greedy", "-n", "16")
        answer = self.model.chat(CHAT, temperature=0, repeat_penalty=1, max_tokens=16).text()
        self.assertEqual(answer, said["text"])
        ids = self.model.tokenize_chat(CHAT)
        self.assertEqual(self.model.detokenize(ids, control=True), self.model.render(CHAT))
        self.assertLess(len(ids), len(self.model.tokenize_chat(CHAT + CHAT[1:])))
        self.assertGreater(len(ids), len(self.model.tokenize_chat(CHAT, add_generation_prompt=False)))

    def test_template_options_reach_the_template(self):
        with_thoughts, without = (self.model.render(CHAT, thinking=thinking) for thinking in (True, False))
        self.assertNotEqual(with_thoughts, without)
        self.assertEqual(with_thoughts, self.model.render(CHAT, variables={"open_thinking": True, "enable_thinking": True}))
        tools = [{"type": "function", "function": {"name": "look_up", "description": "", "parameters": {"type": "object"}}}]
        self.assertIn("look_up", self.model.render(CHAT, tools=tools))

    def test_thoughts_and_answer_are_told_apart(self):
        def spoken(pieces, first):
            generation = mmx.Generation.__new__(mmx.Generation)
            generation._pieces, generation._more, generation._thoughts_first = pieces, False, first
            return generation.thoughts(), generation.answer()

        self.assertEqual(spoken(["<think>\nwhy\n", "</think>\n\nso"], False), ("why", "so"))
        self.assertEqual(spoken(["why\n</think>\n\nso"], True), ("why", "so"))
        self.assertEqual(spoken(["why"], True), ("why", ""))
        self.assertEqual(spoken(["so"], False), ("", "so"))

    def test_stop_texts_end_a_generation_and_are_not_part_of_it(self):
        whole = self.model.generate("Once", temperature=0, max_tokens=40, ignore_end=True).text()
        at = len(whole) // 2
        stop = whole[at : at + 2]
        for given in (stop, [stop, "never to come \x01"]):
            generation = self.model.generate("Once", temperature=0, max_tokens=40, ignore_end=True, stop=given)
            self.assertEqual(generation.text(), whole[: whole.index(stop)])
            self.assertEqual(generation.finish, "stop")

    def test_a_seed_gives_the_same_text(self):
        def text(seed):
            return self.model.generate("Once", temperature=3.0, top_k=0, top_p=1.0, seed=seed, max_tokens=32, ignore_end=True).text()

        self.assertEqual(text(2**64 - 1), text(2**64 - 1))
        self.assertNotEqual(text(1), text(2))

    def test_logits_are_the_references(self):
        golden = tensors(os.path.join(common.GOLDEN, "minimind3", "forward.safetensors"))
        ids, expected = golden["input_ids"], golden["logits"]
        for row, logits in zip(ids, expected):
            found = self.model.logits(row, every=True)
            self.assertEqual((found.dtype, found.shape), (numpy.dtype("float32"), logits.shape))
            # float32 in another order than the reference's; as the tests of the runner
            numpy.testing.assert_allclose(found, logits, atol=1e-4, rtol=0)
            numpy.testing.assert_allclose(self.model.logits(list(row)), logits[-1], atol=1e-4, rtol=0)

    def test_embeddings_are_those_of_mmx_serve(self):
        server = subprocess.Popen([common.MMX, "serve", self.path, "--port", "0", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            url = json.loads("".join(iter(server.stdout.readline, "}\n")) + "}")["url"]
            body = json.dumps({"input": "Once upon a time"}).encode()
            with urllib.request.urlopen(url + "/v1/embeddings", body) as answer:
                expected = json.load(answer)["data"][0]["embedding"]
        finally:
            server.kill()
            server.communicate()
        found = self.model.embed("Once upon a time")
        self.assertEqual(len(found), self.model.embedding_size)
        numpy.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    def test_a_session_reads_what_is_new_only(self):
        with self.model.session(context=256) as session:
            first = session.chat(CHAT, temperature=0, max_tokens=8)
            reply = first.text()
            held = len(session)
            self.assertEqual(session.capacity, 256)
            turns = CHAT + [{"role": "assistant", "content": reply}, {"role": "user", "content": "And?"}]
            second = session.chat(turns, temperature=0, max_tokens=8)
            expected = self.model.chat(turns, temperature=0, max_tokens=8)
            self.assertEqual(second.text(), expected.text())
            self.assertLess(second.prompt_tokens, expected.prompt_tokens)
            self.assertGreater(held, first.prompt_tokens)
            session.clear()
            self.assertEqual(len(session), 0)

    def test_a_full_context_ends_a_generation(self):
        with self.model.session(context=16) as session:
            generation = session.generate([1, 2, 3], temperature=5, max_tokens=100, ignore_end=True)
            generation.text()
            self.assertEqual((generation.finish, len(session)), ("context", 16))

    def test_a_generation_that_is_left_can_be_gone_on_with_or_given_up(self):
        whole = self.model.generate("Once", temperature=0, max_tokens=20, ignore_end=True)
        halves = self.model.generate("Once", temperature=0, max_tokens=20, ignore_end=True)
        for _ in halves:
            break
        self.assertEqual(halves.finish, "cancelled")
        self.assertEqual(halves.text(), whole.text())
        with self.model.generate("Once", temperature=0, max_tokens=20, ignore_end=True) as given_up:
            first = next(given_up)
        self.assertEqual((given_up.written, given_up.text(), given_up.finish), (first, first, "cancelled"))
        self.assertLess(len(given_up.ids), 20)

    def test_a_session_that_was_used_otherwise_ends_its_generation(self):
        with self.model.session() as session:
            generation = session.generate("Once", ignore_end=True)
            next(generation)
            session.logits([1])
            with self.assertRaisesRegex(mmx.Error, "used otherwise"):
                generation.text()

    def test_models_are_opened_from_memory_too(self):
        with mmx.load_bytes(Path(self.path).read_bytes(), repack=False) as model:
            text = model.generate("Once", temperature=0, max_tokens=8).text()
        self.assertEqual(text, self.model.generate("Once", temperature=0, max_tokens=8).text())

    def test_what_is_closed_says_so(self):
        model = mmx.load(self.path)
        session, generation = model.session(), model.generate("Once", max_tokens=3, ignore_end=True)
        model.close()
        model.close()
        for use in (lambda: model.tokenize("a"), lambda: model.generate("a"), lambda: model.vocab_size, lambda: session.generate("a")):
            with self.assertRaisesRegex(mmx.Closed, "the model is closed"):
                use()
        self.assertIn("closed", repr(model))
        self.assertEqual(len(generation.ids), 0)
        generation.text()  # it keeps what it needs
        self.assertEqual(generation.finish, "length")
        session.close()
        for use in (lambda: len(session), lambda: session.reuse([1])):
            with self.assertRaisesRegex(mmx.Closed, "the session is closed"):
                use()

    def test_wrong_arguments_are_refused_by_name(self):
        model = self.model
        for use, error, expected in [
            (lambda: mmx.load("no-such-file.gguf"), mmx.Error, "no-such-file.gguf"),
            (lambda: mmx.load(os.path.join(common.GOLDEN, "tokenizer.json")), mmx.Error, "tokenizer.json"),
            (lambda: mmx.load("a\0b"), mmx.InvalidArgument, "path: .*zero byte"),
            (lambda: mmx.load(3), TypeError, "int"),
            (lambda: mmx.load(self.path, gpu_layers="some"), TypeError, "gpu_layers"),
            (lambda: mmx.load_bytes(b"GGUF"), mmx.Error, "truncated"),
            (lambda: mmx.load_bytes("GGUF"), TypeError, "data"),
            (lambda: model.tokenize(3), TypeError, "text: expected a str, found int"),
            (lambda: model.tokenize("\ud800"), mmx.InvalidArgument, "surrogate"),
            (lambda: model.tokenize("a", control=1), TypeError, "control: expected True or False"),
            (lambda: model.detokenize([-1]), mmx.InvalidArgument, "ids: expected ids of 0 to 4294967295"),
            (lambda: model.detokenize(["1"]), TypeError, "ids"),
            (lambda: model.detokenize("1"), TypeError, "ids: expected ids, found str"),
            (lambda: model.generate(""), mmx.Error, "at least one token"),
            (lambda: model.generate([10**6]), mmx.Error, "found 1000000"),
            (lambda: model.generate([1] * 10**6), mmx.Error, "full"),
            (lambda: model.generate("x" * 10**7), mmx.Error, "full"),
            (lambda: model.generate("a", max_token=3), TypeError, "unknown option max_token: expected one of .*max_tokens"),
            (lambda: model.generate("a", max_tokens=-1), mmx.InvalidArgument, "max_tokens: expected 0 to"),
            (lambda: model.generate("a", max_tokens=2**64), mmx.InvalidArgument, "max_tokens: expected 0 to"),
            (lambda: model.generate("a", max_tokens=1.5), TypeError, "max_tokens: expected a whole number, found float"),
            (lambda: model.generate("a", temperature=-1), mmx.Error, "temperature: expected 0"),
            (lambda: model.generate("a", temperature=float("nan")), mmx.Error, "temperature"),
            (lambda: model.generate("a", temperature="1"), TypeError, "temperature: expected a number, found str"),
            (lambda: model.generate("a", stop=[""]), mmx.Error, "stop"),
            (lambda: model.generate("a", stop=["a\0"]), mmx.InvalidArgument, "stop"),
            (lambda: model.generate("a", stop=[3]), TypeError, "stop"),
            (lambda: model.chat("a"), TypeError, "messages: expected a list of dicts, found str"),
            (lambda: model.chat([1]), mmx.InvalidArgument, "messages: expected objects"),
            (lambda: model.chat([{"role": "user", "content": object()}]), mmx.InvalidArgument, "messages"),
            (lambda: model.chat([{"role": "user", "content": "a"}], thinking=1), TypeError, "thinking"),
            (lambda: model.chat([{"role": "user", "content": "a"}], variables=[1]), (TypeError, ValueError), ""),
            (lambda: model.session(context=2**40), mmx.Error, "memory"),
            (lambda: model.session(context=2**64), mmx.InvalidArgument, "context"),
            (lambda: model.session(threads=513), mmx.Error, "1 to 512 threads"),
            (lambda: model.logits([]), mmx.Error, "at least one token"),
            (lambda: model.embed([10**6]), mmx.Error, "found 1000000"),
        ]:
            with self.assertRaisesRegex(error, expected):
                use()
        self.assertTrue(issubclass(mmx.InvalidArgument, ValueError) and issubclass(mmx.Busy, mmx.Error))

    def test_threads_share_a_model(self):
        expected = self.model.generate("Once", temperature=0, max_tokens=24).text()
        found = []

        def ask():
            for _ in range(3):
                found.append(self.model.generate("Once", temperature=0, max_tokens=24).text())

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(found, [expected] * 24)

    def test_a_session_in_use_is_busy_and_may_be_closed(self):
        """A second thread gets in at all only because calls let other threads run."""
        session = self.model.session()
        ids = [1] * (self.model.context_length // 2)
        went, seen, done = threading.Event(), [], threading.Event()

        def read():
            went.set()
            try:
                while not done.is_set():
                    session.reuse([])
                    session.logits(ids, every=True)
            except mmx.Closed as error:
                seen.append(str(error))
            except mmx.Busy:
                pass

        reader = threading.Thread(target=read)
        reader.start()
        went.wait()
        busy = False
        while not busy and reader.is_alive():
            try:
                session.reuse([])
            except mmx.Busy as error:
                busy = "another thread is using the session" in str(error)
        session.close()
        reader.join()
        self.assertTrue(busy or not seen)
        self.assertRaises(mmx.Closed, len, session)

    def test_whatever_threads_do_to_each_other_is_an_error_of_mmx(self):
        shared, faults = {}, []

        def fresh():
            model = mmx.load(self.path)
            session = model.session(context=64)
            shared["all"] = (model, session, session.generate("Once", max_tokens=50, ignore_end=True))

        def misuse(seed):
            chance = random.Random(seed)
            for _ in range(150):
                model, session, generation = shared["all"]
                do = chance.choice(
                    [
                        lambda: next(generation),
                        lambda: next(generation),
                        lambda: shared.update(all=(model, session, session.generate([1, 2, 3], max_tokens=20, ignore_end=True))),
                        lambda: session.reuse([1, 2]),
                        lambda: (generation.ids, generation.finish, repr(generation), len(session), session.capacity),
                        lambda: model.embed("abc"),
                        lambda: chance.random() < 0.2 and generation.close(),
                        lambda: chance.random() < 0.1 and session.close(),
                        lambda: chance.random() < 0.1 and model.close(),
                        lambda: chance.random() < 0.2 and fresh(),
                    ]
                )
                try:
                    do()
                except (mmx.Error, StopIteration):
                    pass
                except BaseException as fault:
                    faults.append(repr(fault))

        fresh()
        threads = [threading.Thread(target=misuse, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(faults, [])

    @unittest.skipUnless(hasattr(os, "fork"), "this system does not fork")
    def test_a_fork_is_told_to_open_its_own(self):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                self.model.tokenize("a")
            except mmx.Closed as error:
                code = 0 if "forked" in str(error) else 2
            finally:
                os._exit(code)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.model.tokenize("a")

    @unittest.skipIf(sys.platform == "win32", "no signal of this kind")
    def test_an_interruption_ends_neither_the_process_nor_the_generation(self):
        source = """
import sys, mmx
model = mmx.load(sys.argv[1])
try:
    while True:
        generation = model.session(context=400).generate("Once", temperature=5.0, max_tokens=10**9, ignore_end=True)
        for piece in generation:
            print("piece", flush=True)
except KeyboardInterrupt:
    pass
before = generation.written
rest = generation.text()
assert rest.startswith(before) and generation.finish == "context", generation
model.close()
print("\\nwell")  # the interruption may have come within a line
"""
        environment = {**os.environ, "PYTHONPATH": common.PACKAGE}
        child = subprocess.Popen([sys.executable, "-c", source, self.path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        self.assertEqual(child.stdout.readline(), "piece\n")
        child.send_signal(signal.SIGINT)
        out, error = child.communicate()
        self.assertEqual((child.returncode, out.splitlines()[-1:]), (0, ["well"]), error)

    def test_numpy_is_asked_for_by_logits_alone(self):
        source = """
import sys
sys.modules["numpy"] = None
import mmx
model = mmx.load(sys.argv[1])
assert len(model.embed("a")) and model.generate("Once", max_tokens=3).text() is not None
try:
    model.logits("a")
except mmx.Error as error:
    print(error)
"""
        done = common.python(source, self.path)
        self.assertEqual(done.stdout, "logits: expected the package numpy, found none: pip install numpy\n", done.stderr)

    def test_the_library_is_looked_for_where_the_page_says(self):
        say = "import mmx\ntry: print(mmx.library_path())\nexcept mmx.Error as error: print(error)"
        built = str(mmx.library_path())
        self.assertTrue(built.startswith(os.path.join(common.ROOT, "target", "release")), built)
        package = os.path.join(common.WORK, "site", "mmx")
        os.makedirs(os.path.join(package, "lib"))
        for name in os.listdir(os.path.join(common.PACKAGE, "mmx")):
            if name.endswith(".py"):
                shutil.copy(os.path.join(common.PACKAGE, "mmx", name), package)
        site = {"PYTHONPATH": os.path.dirname(package)}
        self.assertIn("found none: set MMX_LIBRARY", common.python(say, env=site).stdout)
        own = os.path.join(package, "lib", os.path.basename(built).replace("_capi", ""))
        os.symlink(built, own)
        self.assertEqual(common.python(say, env=site).stdout.strip(), own)
        self.assertEqual(common.python(say, env={**site, "MMX_LIBRARY": built}).stdout.strip(), built)
        self.assertIn("which is none", common.python(say, env={**site, "MMX_LIBRARY": "/no/such/file"}).stdout)
        bad = os.path.join(common.WORK, "bad.so")
        Path(bad).write_text("no library")
        load = "import mmx\ntry: mmx.version()\nexcept mmx.Error as error: print(error)"
        self.assertIn("it cannot be loaded", common.python(load, env={"MMX_LIBRARY": bad}).stdout)

    def test_the_page_runs_as_it_stands(self):
        page = Path(common.ROOT, "docs", "python.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```python\n(.*?)```", page, re.S)
        self.assertGreater(len(blocks), 4)
        source = "".join(blocks).replace("model-q4_0.gguf", self.path.replace("\\", "/"))
        done = common.python(source)
        self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
    unittest.main()
