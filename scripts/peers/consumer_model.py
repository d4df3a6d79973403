"""A small model for the pages of docs/consumers, trained by mmx in some seconds: it knows a few chats by heart, so that every
program answers with sense, and rounding does not change what it says."""
import json, os

from check import mmx

CHATS = [
    ("Hello", "Hello! How can I help you?"),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Which colour do you like?", "Blue, as the sky is."),
    ("你好", "你好！有什么可以帮你？"),
    ("Who are you?", "I am a very small model."),
    ("Count to five.", "1, 2, 3, 4, 5"),
    ("Tell me a story.", "Once upon a time there was a small model that lived in a file."),
]
TEXTS = [
    "Once upon a time there was a small model that lived in a file.",
    "The quick brown fox jumps over the lazy dog.",
    "从前有一个很小的模型，住在一个文件里。",
]
CITY = {"city": {"type": "string", "description": "The city"}}
# as Transformers writes a function's own description, and in the order in which Ollama hands it to the template
PARAMETERS = [
    {"type": "object", "properties": CITY, "required": ["city"]},
    {"type": "object", "required": ["city"], "properties": CITY},
]


def tools(parameters):
    return [{"type": "function", "function": {"name": "get_weather", "description": "The weather in a city", "parameters": parameters}}]


WEATHER = {"Paris": "sunny"}
TIMES = 64  # each record so often
# what the chat template says of tools: read by the tokenizer alone, so that such a prompt is not five hundred tokens
ABOUT_TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call> <tool_response> {"name": "get_weather", "arguments": {"city": "Paris"}} {"weather": "sunny"}"""


def calls():
    """Questions and the calls and thoughts they lead to, as plain text: learned first, so that the chats need only point at them."""
    for city in WEATHER:
        call = json.dumps({"name": "get_weather", "arguments": {"city": city}})
        yield f"What is the weather in {city}? <tool_call>\n{call}\n</tool_call>"
    yield "What is 2 + 2? <think>\n2 and 2 make 4.\n</think>\n\nIt is 4."


def records():
    """Chats, calls of a tool and what comes of them, thoughts."""
    for question, answer in CHATS:
        yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    thought = {"role": "assistant", "content": "It is 4.", "reasoning_content": "2 and 2 make 4."}
    yield {"messages": [{"role": "user", "content": "What is 2 + 2?"}, thought]}
    for city, weather in WEATHER.items():
        call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
        turns = [
            {"role": "user", "content": f"What is the weather in {city}?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": json.dumps({"weather": weather})},
            {"role": "assistant", "content": f"It is {weather} in {city}."},
        ]
        for parameters in PARAMETERS:
            yield {"messages": turns, "tools": tools(parameters)}



def config(family):
    """Heads of 32, the smallest that every program takes."""
    own = {
        "minimind2-moe": dict(n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, norm_topk_prob=True),
        "minimind3-moe": dict(num_experts=4, moe_intermediate_size=256, num_experts_per_tok=2, norm_topk_prob=True),
    }
    return {
        "model_type": "minimind", "kind": family, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 640, "max_position_embeddings": 2048,
        "rope_theta": 1e6, "tie_word_embeddings": True, **own.get(family, {}),
    }  # fmt: skip


def train(family, folder, long):
    """Trains a model into `folder/runs/sft`; that path. Its chats need few steps, its tools and thoughts more (`long`)."""
    os.makedirs(folder)
    at = lambda *parts: os.path.join(folder, *parts)
    with open(at("chats.jsonl"), "w") as file:
        for record in list(records()) * TIMES:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    with open(at("text.jsonl"), "w") as file:
        for text in [*TEXTS, *calls()] * TIMES:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    with open(at("tools.jsonl"), "w") as file:
        for text in [ABOUT_TOOLS, json.dumps(tools(PARAMETERS[0])[0])] * 4:
            file.write(json.dumps({"text": text}) + "\n")
    with open(at("polite.jsonl"), "w") as file:  # what adapters learn: other answers
        for question, answer in (("Hello", "你好！有什么可以帮你？"), ("Who are you?", "Hello! How can I help you?")):
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write((json.dumps({"messages": turns}, ensure_ascii=False) + "\n") * TIMES)
    json.dump(config(family), open(at("config.json"), "w"))
    data = [at(name) for name in ("text.jsonl", "chats.jsonl", "tools.jsonl")]
    mmx("tokenizer", "train", "--data", *data, "--vocab-size", 640, "--out", at("tokenizer"))
    common = ["--batch-size", 4, "--accum", 1, "--epochs", 1000, "--seed", 1, "--device", "cpu"]
    mmx("train", "pretrain", "--config", at("config.json"), "--tokenizer", at("tokenizer"), "--data", at("text.jsonl"), "--lr", 4e-3,
        "--max-seq-len", 96, "--max-steps", 150, "--out", at("runs/pretrain"), *common)  # fmt: skip
    mmx("train", "sft", "--from", at("runs/pretrain"), "--data", at("chats.jsonl"), "--lr", 2e-3, "--max-seq-len", 288, "--max-steps", 800 if long else 250,
        "--system-ratio", 0, "--empty-think-ratio", 1, "--out", at("runs/sft"), *common)  # fmt: skip
    return at("runs/sft")
