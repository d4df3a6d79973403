#!/usr/bin/env python3
"""clients_openai.py MMX SHARED WORK MODEL
OpenAI's Python client, LangChain's ChatOpenAI and LiteLLM against `mmx serve`, in what tests/peers/clients.py leaves out:
probabilities of prompts, tools made from Pydantic models, seeds, and fields that these clients add by themselves.

MODEL is a tiny one with random answers, so what is compared is the protocol."""
import os, sys
from typing import Literal, Optional

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # asks nobody for prices
sys.path.insert(0, os.path.dirname(__file__))
from check import check, finish, serve

import openai
from pydantic import BaseModel, Field

NAME = "me/my-model"
server, URL = serve(sys.argv[4], NAME)
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)


class Stop(BaseModel):
    """A place on the way."""

    place: Literal["Aa", "Bb"]
    minutes: int = Field(ge=0, le=9)


class Book(BaseModel):
    """Books a journey."""

    first: Stop
    others: list[Stop] = Field(max_length=1)
    note: Optional[Literal["quick", "quiet"]] = None


class Tree(BaseModel):
    """A tree of bits."""

    bit: Literal[0, 1]
    next: Optional["Tree"] = None


ASK = dict(model=NAME, messages=[{"role": "user", "content": "你好"}], max_tokens=600, seed=7)


def whole(make):
    """The first of some seeds with which the tiny model comes to an end."""
    for seed in range(40):
        found = make(seed)
        if found is not None:
            return found
    raise AssertionError("no answer is whole")


@check("openai: echo with logprobs, text and ids, streamed and whole")
def _():
    facts = 0
    for prompt in ("你好, 3 apples", [5, 6, 7, 300]):
        ask = dict(model=NAME, prompt=prompt, max_tokens=4, logprobs=2, echo=True, temperature=0)
        choice = client.completions.create(**ask).choices[0]
        lists = choice.logprobs
        lengths = {len(lists.tokens), len(lists.token_logprobs), len(lists.top_logprobs), len(lists.text_offset)}
        assert len(lengths) == 1 and lists.token_logprobs[0] is None, lists
        assert all(x <= 0 for x in lists.token_logprobs[1:]), lists
        assert isinstance(prompt, list) or choice.text.startswith(prompt)
        alone = client.completions.create(**{**ask, "max_tokens": 0}).choices[0]
        assert choice.text.startswith(alone.text) and alone.finish_reason == "length"
        n = len(alone.logprobs.tokens)
        far = max(abs(a - b) for a, b in zip(alone.logprobs.token_logprobs[1:], lists.token_logprobs[1:n]))
        assert far < 1e-4, far
        chunks = [c.choices[0] for c in client.completions.create(**ask, stream=True)]
        assert "".join(c.text for c in chunks) == choice.text
        offsets = [o for c in chunks if c.logprobs for o in c.logprobs.text_offset]
        assert offsets == lists.text_offset
        facts += n
    return f"{facts} tokens of prompts, openai {openai.__version__}"


@check("openai: tools from Pydantic models, forced and streamed")
def _():
    tools = [openai.pydantic_function_tool(model) for model in (Book, Tree)]
    facts = []
    for model in (Book, Tree):
        ask = dict(ASK, tools=tools, tool_choice={"type": "function", "function": {"name": model.__name__}}, parallel_tool_calls=False)

        def one(seed):
            choice = client.chat.completions.create(**{**ask, "seed": seed}).choices[0]
            return choice.message.tool_calls[0].function if choice.finish_reason == "tool_calls" else None

        function = whole(one)
        assert function.name == model.__name__
        facts.append(repr(model.model_validate_json(function.arguments)))

    def parsed(seed):
        try:
            found = client.chat.completions.parse(**{**ASK, "seed": seed}, response_format=Book)
        except openai.LengthFinishReasonError:
            return None
        return found.choices[0].message.parsed

    assert isinstance(whole(parsed), Book)

    def streamed(seed):
        with client.chat.completions.stream(**{**ASK, "seed": seed}, tools=tools, tool_choice="required") as stream:
            final = stream.get_final_completion().choices[0]
        return final if final.finish_reason == "tool_calls" else None

    try:
        call = whole(streamed).message.tool_calls[0].function
        assert call.parsed_arguments is not None
    except openai.LengthFinishReasonError:
        pass
    return ", ".join(facts)[:120]


@check("openai: seeds, whole numbers, and errors that name their field")
def _():
    ask = dict(ASK, max_tokens=12, temperature=2, extra_body={"ignore_eos": True, "top_k": 0})
    say = lambda seed: client.chat.completions.create(**{**ask, "seed": seed}).choices[0].message.content
    assert len({say(-1) for _ in range(5)}) > 1 and len({say(5) for _ in range(3)}) == 1
    for more, param in (({"seed": -2}, "seed"), ({"extra_body": {"mirostat": 2}}, "mirostat"), ({"max_tokens": "x"}, "max_tokens")):
        try:
            client.chat.completions.create(**{**ask, **more})
            raise AssertionError(f"{more} is served")
        except openai.BadRequestError as error:
            assert error.param == param, error
    assert client.models.retrieve(NAME).id == NAME
    everything = dict(user="u", metadata={"a": "b"}, store=False, service_tier="auto", n=2, stop=["zz"], logit_bias={"65": -1})
    assert len(client.chat.completions.create(**{**ask, **everything}).choices) == 2
    return "6 of each"


@check("LangChain's ChatOpenAI: answers, streams, Pydantic tools, structured output")
def _():
    from langchain_openai import ChatOpenAI

    def chat(seed=7, **more):
        return ChatOpenAI(model=NAME, base_url=f"{URL}/v1", api_key="none", seed=seed, max_tokens=600, max_retries=0, **more)

    once = chat(temperature=0).invoke("你好")
    assert once.usage_metadata["output_tokens"] > 0 and once.response_metadata["finish_reason"] in ("stop", "length")
    parts = list(chat(temperature=0, stream_usage=True).stream("你好"))
    assert "".join(p.content for p in parts) == once.content

    def called(seed):
        found = chat(seed).bind_tools([Book, Tree], tool_choice="Book").invoke("你好")
        return found.tool_calls[0] if found.tool_calls else None

    call = whole(called)
    assert call["name"] == "Book" and Book.model_validate(call["args"])

    def structured(method):
        def one(seed):
            try:
                return chat(seed).with_structured_output(Tree, method=method).invoke("你好")
            except Exception as error:
                if "length" in str(error).lower() or "json" in str(error).lower():
                    return None  # cut
                raise

        return whole(one)

    assert all(isinstance(structured(method), Tree) for method in ("json_schema", "function_calling"))
    import importlib.metadata

    return f"langchain-openai {importlib.metadata.version('langchain-openai')}"


@check("LiteLLM: answers, streams, tools, probabilities, embeddings")
def _():
    import litellm

    where = dict(model=f"openai/{NAME}", api_base=f"{URL}/v1", api_key="none")
    messages = ASK["messages"]
    once = litellm.completion(**where, messages=messages, temperature=0, max_tokens=24, seed=1)
    text = once.choices[0].message.content
    parts = litellm.completion(**where, messages=messages, temperature=0, max_tokens=24, seed=1, stream=True)
    assert "".join(p.choices[0].delta.content or "" for p in parts) == text
    tool = {"type": "function", "function": {"name": "Book", "parameters": Book.model_json_schema()}}

    def called(seed):
        choice = litellm.completion(**where, messages=messages, max_tokens=600, seed=seed, tools=[tool], tool_choice="required", parallel_tool_calls=False).choices[0]
        return choice.message.tool_calls[0].function.arguments if choice.finish_reason == "tool_calls" else None

    assert Book.model_validate_json(whole(called))
    probable = litellm.completion(**where, messages=messages, max_tokens=3, logprobs=True, top_logprobs=2)
    assert len(probable.choices[0].logprobs.content[0].top_logprobs) == 2
    raw = litellm.text_completion(**{**where, "model": f"text-completion-openai/{NAME}"}, prompt="好", max_tokens=0, echo=True, logprobs=1)
    assert raw.choices[0].logprobs.token_logprobs[0] is None
    assert len(litellm.embedding(**where, input=["hello"]).data[0]["embedding"]) > 8
    import importlib.metadata

    return f"litellm {importlib.metadata.version('litellm')}"


server.terminate()
server.wait(20)
finish()
