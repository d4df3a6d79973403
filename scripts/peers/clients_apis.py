#!/usr/bin/env python3
"""clients_apis.py MMX SHARED WORK MODEL
The official clients of OpenAI (Responses) and Anthropic (Messages) against `mmx serve`: whole, streamed, parsed, tools in
a loop, errors; the AI SDK of npm; and a coding agent's conversation through both.

MODEL is a tiny one with random answers, so what is compared is the protocol."""
import json, os, subprocess, sys
from typing import Literal

sys.path.insert(0, os.path.dirname(__file__))
from check import SHARED, check, finish, serve

import anthropic, openai
from pydantic import BaseModel

NAME = "m"
server, URL = serve(sys.argv[4], NAME, "--ctx", "32768")
ours = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
theirs = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)


class Place(BaseModel):
    """A place on the way."""

    city: Literal["北京", "Rome"]
    days: list[Literal["a", "b"]]


SCHEMA = {"type": "object", "properties": {"city": {"enum": ["北京", "Rome"]}}, "required": ["city"], "additionalProperties": False}
SEED = {"seed": 7}


def whole(make):
    """The first of some seeds with which the tiny model comes to an end."""
    for seed in range(40):
        found = make({"seed": seed})
        if found is not None:
            return found
    raise AssertionError("no answer is whole")


@check("openai: responses.create, whole and streamed, kept and deleted")
def _():
    ask = dict(model=NAME, input="你好", instructions="Be short.", max_output_tokens=24, temperature=0)
    one = ours.responses.create(**ask)
    assert one.status in ("completed", "incomplete") and one.usage.output_tokens > 0, one
    kinds, text = [], ""
    for event in ours.responses.create(**ask, stream=True):
        kinds.append(event.type)
        text += event.delta if event.type == "response.output_text.delta" else ""
    assert text == one.output_text and kinds[0] == "response.created", kinds
    with ours.responses.stream(**ask) as stream:
        for _event in stream:
            pass
    if one.status == "completed":
        assert stream.get_final_response().output_text == one.output_text
    assert ours.responses.retrieve(one.id).output_text == one.output_text
    more = ours.responses.create(model=NAME, input="more", previous_response_id=one.id, max_output_tokens=4)
    assert more.usage.input_tokens > one.usage.input_tokens - 10 and more.previous_response_id == one.id
    ours.responses.delete(one.id)
    try:
        ours.responses.retrieve(one.id)
        raise AssertionError("it is still there")
    except openai.NotFoundError:
        pass
    return f"{len(kinds)} events, openai {openai.__version__}"


@check("openai: responses.parse with a Pydantic model, whole and streamed")
def _():
    ask = dict(model=NAME, input="x", text_format=Place, max_output_tokens=300)

    def one(seed):
        try:
            found = ours.responses.parse(**ask, extra_body=seed)
        except Exception:  # cut, and so no JSON
            return None
        return found.output_parsed if found.status == "completed" else None

    assert isinstance(whole(one), Place)

    def streamed(seed):
        try:
            with ours.responses.stream(**ask, extra_body=seed) as stream:
                events = [event.type for event in stream]
                return stream.get_final_response().output_parsed if "response.completed" in events else None
        except Exception:
            return None

    found = whole(streamed)
    assert isinstance(found, Place)
    return repr(found)


@check("openai: responses with thoughts")
def _():
    ask = dict(model=NAME, input="x", reasoning={"effort": "high"}, max_output_tokens=12, temperature=0, extra_body={"ignore_eos": True})
    one = ours.responses.create(**ask)
    assert one.output[0].type == "reasoning" and one.output[0].content[0].text, one.output
    deltas = [e.delta for e in ours.responses.create(**ask, stream=True) if e.type == "response.reasoning_text.delta"]
    assert "".join(deltas) == one.output[0].content[0].text
    ask["reasoning"] = {"effort": "high", "summary": "auto"}
    assert ours.responses.create(**ask).output[0].summary[0].text == "".join(deltas)
    return f"{one.usage.output_tokens_details.reasoning_tokens} tokens"


@check("openai: responses with tools in a loop, by items and by previous_response_id")
def _():
    tools = [{"type": "function", "name": "weather", "description": "Tells the weather.", "parameters": SCHEMA, "strict": True}]
    ask = dict(model=NAME, tools=tools, max_output_tokens=100)
    said = [{"role": "user", "content": "x"}]
    for turn in range(3):
        found = ours.responses.create(**ask, input=said, tool_choice="required", parallel_tool_calls=False, extra_body=SEED)
        calls = [item for item in found.output if item.type == "function_call"]
        assert len(calls) == 1 and json.loads(calls[0].arguments)["city"] in ("北京", "Rome"), found.output
        said += [item.model_dump(exclude_none=True) for item in found.output]
        said.append({"type": "function_call_output", "call_id": calls[0].call_id, "output": f"sunny {turn}"})
    with ours.responses.stream(**ask, input=said, tool_choice="required", extra_body=SEED) as stream:
        done = [e for e in stream if e.type == "response.function_call_arguments.done"]
    assert done and json.loads(done[0].arguments)
    last = ours.responses.create(**ask, input=said, tool_choice="none")
    next_ = ours.responses.create(model=NAME, tools=tools, input="and now?", previous_response_id=last.id, max_output_tokens=4)
    assert next_.usage.input_tokens > last.usage.input_tokens
    try:
        ours.responses.create(**ask, input=said[:2])
        raise AssertionError("a call without its output is served")
    except openai.BadRequestError as error:
        assert error.param == "input", error
    return f"{len(said)} items"


@check("anthropic: messages.create, whole and streamed, count_tokens")
def _():
    ask = dict(model=NAME, system="Be short.", messages=[{"role": "user", "content": "你好"}])
    body = {"temperature": 0, "seed": 7}
    one = theirs.messages.create(**ask, max_tokens=24, extra_body=body)
    text = "".join(b.text for b in one.content if b.type == "text")
    assert one.stop_reason in ("end_turn", "max_tokens") and one.usage.output_tokens > 0, one
    with theirs.messages.stream(**ask, max_tokens=24, extra_body=body) as stream:
        said = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert said == text and final.stop_reason == one.stop_reason
    assert final.usage.output_tokens == one.usage.output_tokens
    kinds = [e.type for e in theirs.messages.create(**ask, max_tokens=24, extra_body=body, stream=True)]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop", kinds
    counted = theirs.messages.count_tokens(**ask).input_tokens
    assert counted == one.usage.input_tokens + one.usage.cache_read_input_tokens, (counted, one.usage)
    return f"{len(kinds)} events, anthropic {anthropic.__version__}"


@check("anthropic: thoughts, and an answer of a schema")
def _():
    ask = dict(model=NAME, messages=[{"role": "user", "content": "x"}])
    body = {"temperature": 0, "seed": 7}
    with theirs.messages.stream(**ask, max_tokens=1500, thinking={"type": "enabled", "budget_tokens": 1024}, extra_body=body) as stream:
        for _event in stream:
            break
    thought = theirs.messages.create(**ask, max_tokens=3, thinking={"type": "adaptive"}, extra_body=body)
    assert thought.content[0].type == "thinking" and thought.content[0].signature, thought.content

    def one(seed):
        try:
            return theirs.messages.parse(**ask, max_tokens=300, output_format=Place, extra_body=seed).parsed_output
        except ValueError:  # cut
            return None

    found = whole(one)
    assert isinstance(found, Place)
    return repr(found)


@check("anthropic: tools in a loop, whole and streamed")
def _():
    tools = [{"name": "weather", "description": "Tells the weather.", "input_schema": SCHEMA}]
    ask = dict(model=NAME, max_tokens=100, tools=tools)
    forced = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    messages = [{"role": "user", "content": "x"}]
    for turn in range(3):
        if turn == 1:
            with theirs.messages.stream(**ask, messages=messages, tool_choice=forced, extra_body=SEED) as stream:
                found = stream.get_final_message()
        else:
            found = theirs.messages.create(**ask, messages=messages, tool_choice=forced, extra_body=SEED)
        call = next(block for block in found.content if block.type == "tool_use")
        assert found.stop_reason == "tool_use" and call.input["city"] in ("北京", "Rome"), found
        messages.append({"role": "assistant", "content": found.content})
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "no such city", "is_error": turn == 0}
        messages.append({"role": "user", "content": [result]})
    last = theirs.messages.create(**ask, messages=messages, tool_choice={"type": "none"}, extra_body=SEED)
    assert last.stop_reason in ("end_turn", "max_tokens")
    return f"{len(messages)} messages"


@check("anthropic: errors of their classes")
def _():
    ask = dict(model=NAME, max_tokens=3, messages=[{"role": "user", "content": "x"}])
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    for more, part in (({"max_tokens": 0}, "max_tokens"), ({"messages": [{"role": "user", "content": [image]}]}, "image"), ({"extra_body": {"temprature": 1}}, "temprature")):
        try:
            theirs.messages.create(**{**ask, **more})
            raise AssertionError(f"{more} is served")
        except anthropic.BadRequestError as error:
            assert part in str(error), error
    return "3"


@check("a coding agent's conversation is the same prompt by both clients")
def _():
    agent = json.load(open(f"{SHARED}/cases/agent/conversation.json"))
    input_, messages = [], []
    for turn in agent["turns"]:
        if turn["role"] == "user":
            input_.append({"role": "user", "content": turn["text"]})
            messages.append({"role": "user", "content": turn["text"]})
        elif turn["role"] == "assistant":
            blocks = []
            if turn["thought"]:
                input_.append({"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": turn["thought"]}]})
                blocks.append({"type": "thinking", "thinking": turn["thought"], "signature": "x"})
            if turn["text"]:
                input_.append({"role": "assistant", "content": turn["text"]})
                blocks.append({"type": "text", "text": turn["text"]})
            for call in turn["calls"]:
                arguments = json.dumps(call["arguments"], separators=(",", ":"), ensure_ascii=False)
                input_.append({"type": "function_call", "call_id": call["id"], "name": call["name"], "arguments": arguments})
                blocks.append({"type": "tool_use", "id": call["id"], "name": call["name"], "input": call["arguments"]})
            messages.append({"role": "assistant", "content": blocks})
        else:
            results = []
            for result in turn["results"]:
                failed = result.get("error", False)
                input_.append({"type": "function_call_output", "call_id": result["id"], "output": ("Error: " if failed else "") + result["text"]})
                results.append({"type": "tool_result", "tool_use_id": result["id"], "content": result["text"], "is_error": failed})
            messages.append({"role": "user", "content": results})
    flat = [{"type": "function", "strict": True, **tool} for tool in agent["tools"]]
    own = [{"name": t["name"], "description": t["description"], "input_schema": t["parameters"]} for t in agent["tools"]]
    first = ours.responses.create(model=NAME, instructions=agent["system"], input=input_, tools=flat, max_output_tokens=8)
    with theirs.messages.stream(model=NAME, system=agent["system"], messages=messages, tools=own, max_tokens=8) as stream:
        second = stream.get_final_message()
    read = second.usage.input_tokens + second.usage.cache_read_input_tokens
    assert first.usage.input_tokens == read, (first.usage, second.usage)
    assert second.usage.cache_read_input_tokens > read // 2, "what was read for one is not read again for the other"
    return f"{read} tokens"


here = os.path.dirname(os.path.abspath(__file__))
found = subprocess.run(["bash", f"{here}/ai_sdk.sh", URL, NAME], capture_output=True, text=True, timeout=600)
print(found.stdout, end="")
if "AI SDK: " not in found.stdout:
    print(f"FAIL  AI SDK\n{found.stderr}")
server.terminate()
server.wait(20)
finish()
