"""The official Python clients of OpenAI and Ollama against a running `mmx serve`.

usage: clients.py URL MODEL

The model answers with random text (a tiny golden one), so what is compared is the protocol: whole and
streamed answers are equal, usage adds up, stops are obeyed, forms are kept. Exit 1 at the first difference.
"""

import json
import sys

import ollama
import openai

url, model = sys.argv[1], sys.argv[2]
checks = 0


def check(ok, what):
    global checks
    checks += 1
    if not ok:
        sys.exit(f"failed: {what}")


def openai_client():
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    check(model in [m.id for m in client.models.list()], "models.list")
    check(client.models.retrieve(model).id == model, "models.retrieve")

    ask = dict(model=model, messages=[{"role": "user", "content": "你好"}], max_tokens=24, seed=7, temperature=1.5)
    whole = client.chat.completions.create(**ask)
    text = whole.choices[0].message.content
    usage = whole.usage
    check(usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, "usage adds up")
    check(whole.choices[0].finish_reason in ("stop", "length"), "finish_reason")
    again = client.chat.completions.create(**ask)
    check(again.choices[0].message.content == text, "a seed repeats")

    parts, reasons, numbers = [], [], None
    for chunk in client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        if chunk.usage:
            numbers = chunk.usage
        for choice in chunk.choices:
            parts.append(choice.delta.content or "")
            reasons.append(choice.finish_reason)
    check("".join(parts) == text, "streamed and whole text")
    check(reasons[-1] == whole.choices[0].finish_reason and not any(reasons[:-1]), "one finish_reason, the last")
    check(numbers.prompt_tokens == usage.prompt_tokens, "usage in the stream")
    check(numbers.completion_tokens == usage.completion_tokens, "usage in the stream")

    several = client.chat.completions.create(**ask, n=3)
    check(len(several.choices) == 3 and several.choices[0].message.content == text, "n")
    if len(text) > 4:
        stop = text[2:4]
        cut = client.chat.completions.create(**{**ask, "stop": [stop]}).choices[0]
        check(cut.message.content == text[: text.index(stop)] and cut.finish_reason == "stop", "stop")

    probable = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
    entries = probable.choices[0].logprobs.content
    check(len(entries) == usage.completion_tokens, "a probability for each token")
    check(all(e.logprob <= 0 and len(e.top_logprobs) == 3 for e in entries), "logprobs")
    check(bytes(b for e in entries for b in e.bytes).decode(errors="replace").startswith(text[:3]), "bytes")

    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "word": {"enum": ["red", "绿"]}},
        "required": ["ok", "word"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
    shaped = client.chat.completions.create(**{**ask, "max_tokens": 200}, response_format=form)
    value = json.loads(shaped.choices[0].message.content)
    check(type(value["ok"]) is bool and value["word"] in ("red", "绿"), "json_schema")

    tool = {
        "type": "function",
        "function": {
            "name": "pick",
            "parameters": {
                "type": "object",
                "properties": {"word": {"enum": ["a", "b"]}},
                "required": ["word"],
                "additionalProperties": False,
            },
        },
    }
    called = client.chat.completions.create(
        **{**ask, "max_tokens": 200},
        tools=[tool],
        parallel_tool_calls=False,
        tool_choice={"type": "function", "function": {"name": "pick"}},
    ).choices[0]
    calls = called.message.tool_calls
    check(called.finish_reason == "tool_calls" and calls[0].function.name == "pick", "tool_calls")
    check(json.loads(calls[0].function.arguments)["word"] in ("a", "b"), "arguments")
    history = ask["messages"] + [
        called.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": calls[0].id, "content": "42"},
    ]
    check(client.chat.completions.create(**{**ask, "messages": history}, tools=[tool]).choices, "after a call")

    raw = client.completions.create(model=model, prompt="好", max_tokens=8, temperature=0)
    streamed = client.completions.create(model=model, prompt="好", max_tokens=8, temperature=0, stream=True)
    check("".join(c.choices[0].text for c in streamed) == raw.choices[0].text, "completions")

    vectors = client.embeddings.create(model=model, input=["hello", "你好"])  # base64 by default
    plain = client.embeddings.create(model=model, input=["hello", "你好"], encoding_format="float")
    for a, b in zip(vectors.data, plain.data):
        check(len(a.embedding) > 8 and max(abs(x - y) for x, y in zip(a.embedding, b.embedding)) < 1e-6, "embeddings")

    try:
        client.chat.completions.create(**{**ask, "messages": [{"role": "user", "content": None}]})
        check(False, "null content is refused")
    except openai.BadRequestError as error:
        check(error.param == "messages[0].content", "the error names the field")


def ollama_client():
    client = ollama.Client(host=url)
    check(model in [m.model for m in client.list().models], "list")
    shown = client.show(model)
    check("completion" in shown.capabilities and shown.modelinfo["general.architecture"], "show")
    options = {"seed": 5, "temperature": 1.2, "num_predict": 20}
    messages = [{"role": "user", "content": "你好"}]
    whole = client.chat(model, messages=messages, options=options)
    parts = list(client.chat(model, messages=messages, options=options, stream=True))
    check("".join(p.message.content for p in parts) == whole.message.content, "chat")
    check(parts[-1].done and parts[-1].done_reason in ("stop", "length"), "done")
    check(parts[-1].eval_count == whole.eval_count and whole.prompt_eval_count > 0, "counts")
    once = client.generate(model, prompt="好", raw=True, options={**options, "temperature": 0})
    parts = client.generate(model, prompt="好", raw=True, options={**options, "temperature": 0}, stream=True)
    check("".join(p.response for p in parts) == once.response, "generate")
    shaped = client.chat(
        model,
        messages=messages,
        format={"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False},
        options={**options, "num_predict": 100},
    )
    check(json.loads(shaped.message.content)["n"] in (1, 2), "format")
    vectors = client.embed(model, input=["hello", "hello"]).embeddings
    check(abs(sum(x * x for x in vectors[0]) - 1) < 1e-4 and vectors[0] == vectors[1], "embed")
    check(client.ps().models[0].model == model, "ps")
    older = client.embeddings(model, prompt="hello").embedding
    check(max(abs(a - b) for a, b in zip(older, vectors[0])) < 1e-6 and len(older) == len(vectors[0]), "embeddings")
    long = "hello " * 3000
    check(client.embed(model, input=long).prompt_eval_count > 100, "a text that is too long is cut")
    check(len(client.embed(model, input="hello", dimensions=8).embeddings[0]) == 8, "dimensions")
    check("tools" in shown.capabilities and "embedding" not in shown.capabilities, "capabilities")
    chosen = {client.generate(model, prompt="好", raw=True, options={**options, "temperature": 2, "top_p": 1, "top_k": 0, "seed": -1}).response for _ in range(5)}
    check(len(chosen) > 1, "a seed of -1 is chosen")
    probable = client.chat(model, messages=messages, options=options, logprobs=True, top_logprobs=2)
    check(len(probable.logprobs) == probable.eval_count and len(probable.logprobs[0].top_logprobs) == 2, "logprobs")
    for what, ask in (
        ("input: ", lambda: client.embed(model, input=long, truncate=False)),
        ("messages[0].images", lambda: client.chat(model, messages=[{**messages[0], "images": ["aGk="]}])),
        ("images: ", lambda: client.generate(model, prompt="x", images=["aGk="])),
        ("options.seed", lambda: client.chat(model, messages=messages, options={"seed": -2})),
        ("options.mirostat", lambda: client.chat(model, messages=messages, options={"mirostat": 1})),
        ("context: ", lambda: client.generate(model, prompt="x", context=[1])),
        ("pull: ", lambda: client.pull(model)),
        ("delete: ", lambda: client.delete(model)),
        ("copy: ", lambda: client.copy(model, "other")),
        ("create: ", lambda: client.create("other", from_=model)),
    ):
        try:
            ask()
            check(False, f"{what} is refused")
        except ollama.ResponseError as error:
            check(error.error.startswith(what) and error.status_code in (400, 501), f"the error names {what}: {error}")


openai_client()
ollama_client()
print(f"clients: {checks} checks, openai {openai.__version__}, ollama {__import__('importlib.metadata').metadata.version('ollama')}")
