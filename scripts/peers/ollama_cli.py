#!/usr/bin/env python3
"""ollama_cli.py MMX SHARED WORK OLLAMA
Ollama's own command line (OLLAMA is the program) and LangChain's ChatOllama against `mmx serve`: list, show, run and ps
work, what changes models ends with a sentence, tools of Pydantic are called with arguments that fit them."""
import json, os, re, shutil, subprocess, sys

sys.path.insert(0, os.path.dirname(__file__))
from check import MMX, SHARED, WORK, check, export, finish, gguf_of, mmx

sys.path[:] = [p for p in sys.path if os.path.abspath(p) != os.path.dirname(os.path.abspath(__file__))]  # ollama.py is no client
OLLAMA = os.path.abspath(sys.argv[4])
here = os.path.join(WORK, "ollama-cli")
os.makedirs(here, exist_ok=True)
# a model that always writes the likeliest token: the command line cannot ask for that
source = os.path.join(here, "greedy")
shutil.copytree(os.path.join(SHARED, "golden-2026/minimind3"), source, dirs_exist_ok=True)
with open(os.path.join(source, "generation_config.json"), "w") as f:
    json.dump({"do_sample": True, "top_k": 1}, f)
model = gguf_of(export(source, "--tokenizer", os.path.join(SHARED, "golden-2026"), "--gguf", "f32", out=os.path.join(here, "export")))
N = 48
serve = subprocess.Popen([MMX, "serve", model, "--name", "tiny", "--port", "0", "--max-tokens", str(N)], stderr=subprocess.PIPE, text=True)
line = next(line for line in serve.stderr if " at http" in line)
url = re.search(r"http://[0-9.:]+", line).group()
env = {**os.environ, "OLLAMA_HOST": url, "HOME": here, "OLLAMA_NO_CLOUD": "1", "TERM": "dumb"}


def ollama(*args, stdin="", ok=True):
    """Its stdout and stderr."""
    done = subprocess.run([OLLAMA, *args], input=stdin, capture_output=True, text=True, env=env, timeout=120)
    assert (done.returncode == 0) == ok, f"ollama {' '.join(args)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


@check("ollama list, ps, show, --version against mmx serve")
def _():
    listed = ollama("list")[0]
    assert re.search(r"^tiny +[0-9a-f]{12} +[0-9.]+ [KM]B", listed, re.M), listed
    running = ollama("ps")[0]
    assert re.search(r"^tiny .*100% CPU +[0-9]+ +Forever", running, re.M), running
    shown = ollama("show", "tiny")[0]
    for part in ("architecture        qwen3", "context length", "embedding length    64", "F32", "completion", "tools", "thinking", "temperature"):
        assert part in shown, f"{part!r} is not in {shown}"
    assert "embedding\n" not in shown.split("Capabilities")[1], shown
    assert "token_embd.weight" in ollama("show", "--verbose", "tiny")[0]
    assert ollama("show", "--modelfile", "tiny")[0].startswith("FROM tiny")
    assert "messages" in ollama("show", "--template", "tiny")[0]
    assert "ollama version is" in ollama("--version")[0]
    return "tiny is listed, shown and running"


def squeezed(text):
    return re.sub(r"\s+", "", text)


@check("ollama run against mmx serve: one question and a pipe; the runner's greedy text")
def _():
    facts = []
    for prompt in ("hello", "1 2 3", "你好"):
        # the command line asks a model that can think to do so, unless told otherwise
        whole = mmx("run", model, "-p", prompt, "-n", N, "--greedy")["text"]
        once = ollama("run", "--nowordwrap", "--think=false", "tiny", prompt)[0]
        piped = ollama("run", "--nowordwrap", "--think=false", "tiny", stdin=prompt)[0]
        assert once == piped, f"{once!r}\n{piped!r}"
        found = squeezed(once)
        assert found and found in squeezed(whole), f"{prompt!r}: expected {whole!r}, found {once!r}"
        facts.append(repr(once.strip()[:16]))
    thought = ollama("run", "--nowordwrap", "tiny", "hello")[0]
    assert "Thinking..." in thought, thought
    verbose = ollama("run", "--verbose", "--think=false", "tiny", "hello")[1]
    assert "eval rate" in verbose and "prompt eval count" in verbose, verbose
    return ", ".join(facts)


@check("ollama stop, pull, push, cp, rm, create against mmx serve end with a sentence")
def _():
    modelfile = os.path.join(here, "Modelfile")
    with open(modelfile, "w") as f:
        f.write(f"FROM {model}\n")
    facts = []
    for args, said in (
        (("stop", "tiny"), "stays loaded"),
        (("pull", "tiny"), "pull: mmx serve serves the models it was started with"),
        (("push", "someone/tiny"), "mmx serve"),
        (("cp", "tiny", "other"), "copy: mmx serve serves"),
        (("rm", "tiny"), "delete: mmx serve serves"),
        (("create", "other", "-f", modelfile), "blobs: mmx serve serves"),
    ):
        out, err = ollama(*args, ok=False)
        assert said in err, f"ollama {' '.join(args)}: {out!r} {err!r}"
        facts.append(args[0])
    assert "tiny" in ollama("list")[0], "still there"
    return ", ".join(facts)


@check("LangChain's ChatOllama with tools and forms of Pydantic against mmx serve")
def _():
    from typing import Literal

    import ollama as client
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_ollama import ChatOllama, OllamaEmbeddings
    from pydantic import BaseModel

    class Stop(BaseModel):
        """A place."""

        place: Literal["Aa", "Bb"]

    class Book(BaseModel):
        """Books a journey."""

        first: Stop
        hours: Literal[1, 2, 3]

    common = {"model": "tiny", "base_url": url, "temperature": 0, "num_predict": N, "seed": 1}
    llm = ChatOllama(**common)
    whole = llm.invoke("hello").content
    assert "".join(c.content for c in llm.stream("hello")) == whole and whole
    bound = llm.bind_tools([Book]).invoke([HumanMessage("hello")])
    for call in bound.tool_calls:  # the model may choose not to call
        Book(**call["args"])
    formed = ChatOllama(**{**common, "num_predict": 300}).with_structured_output(Book, method="json_schema")
    booked = formed.invoke("hello")
    assert isinstance(booked, Book), booked
    history = [HumanMessage("hello"), bound, ToolMessage("42", tool_call_id="1"), HumanMessage("and?")]
    assert llm.bind_tools([Book]).invoke(history) is not None
    vectors = OllamaEmbeddings(model="tiny", base_url=url).embed_documents(["hello", "hello " * 2000])
    assert len(vectors) == 2 and len(vectors[0]) == 64
    image = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": "data:image/png;base64,aGk="}]
    try:
        llm.invoke([HumanMessage(image)])
        raise AssertionError("the image was dropped")
    except client.ResponseError as error:
        assert error.status_code == 400 and "messages[0].images" in str(error), error
    try:
        ChatOllama(**common, mirostat=2).invoke("hello")
        raise AssertionError("mirostat was dropped")
    except client.ResponseError as error:
        assert "options.mirostat" in str(error), error
    return f"{booked}"


serve.terminate()
finish()
