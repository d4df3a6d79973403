"""Greedy text of one program on one model, for `mmx verify --consumers`: the job comes as JSON on stdin, the answer goes to
the file it names (what programs print on stdout is theirs). An empty job asks which of the programs are installed."""
import importlib.metadata, importlib.util, json, os, runpy, sys

job = json.load(sys.stdin)


def version(modules):
    """The installed version of what brings the first of some modules; nothing where one is not there."""
    try:
        if any(importlib.util.find_spec(module) is None for module in modules):
            return None
    except ModuleNotFoundError:
        return None
    first = modules[0]
    names = [first.replace("_", "-")] + importlib.metadata.packages_distributions().get(first.split(".")[0], [])
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return "?"


def answer(value):
    with open(job["answer"], "w", encoding="utf-8") as file:
        json.dump(value, file)


if "modules" in job:
    answer({"versions": {name: version(modules) for name, modules in job["modules"].items()}})
    sys.exit()

# nothing is fetched, and nobody is told
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", VLLM_NO_USAGE_STATS="1", TOKENIZERS_PARALLELISM="false")
path, work, n = job["path"], job["work"], job["tokens"]
# a chat of messages where the model has a template, and a text to go on
prompts = {name: job[name] for name in ("chat", "raw") if job[name] is not None}


def plain(ids):
    return [int(i) for i in ids]


def tokenizer_of(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def ids_of(tokenizer, name, prompt):
    if name == "raw":
        return plain(tokenizer.encode(prompt))
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    return plain(ids)


def generated(generate, tokenizer):
    """Answers of a function from ids to the ids written after them."""
    found = {}
    for name, prompt in prompts.items():
        ids = plain(generate(ids_of(tokenizer, name, prompt)))
        found[name] = {"text": tokenizer.decode(ids, skip_special_tokens=True), "ids": ids}
    return found


def by_transformers(**source):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, **source)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **source).eval()

    def generate(ids):
        ids = torch.tensor([ids])
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False)
        return out[0, ids.shape[1] :].tolist()

    return generated(generate, tokenizer)


def transformers():
    return by_transformers()


def transformers_gguf():
    global path
    path, file = os.path.split(path)
    return by_transformers(gguf_file=file)


def vllm():
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    llm = LLM(model=path, dtype="float32", enforce_eager=True, max_model_len=job["context"], max_num_seqs=1, seed=0)
    settings, found = SamplingParams(temperature=0, max_tokens=n), {}
    for name, prompt in prompts.items():
        ask = llm.chat if name == "chat" else llm.generate
        out = ask(prompt, settings, use_tqdm=False)[0].outputs[0]
        found[name] = {"text": out.text, "ids": plain(out.token_ids)}
    return found


def llama_cpp_python():
    from llama_cpp import Llama

    llm, found = Llama(model_path=path, n_ctx=job["context"], verbose=False), {}
    if "chat" in prompts:
        out = llm.create_chat_completion(prompts["chat"], max_tokens=n, temperature=0.0)
        found["chat"] = {"text": out["choices"][0]["message"]["content"]}
    found["raw"] = {"text": llm.create_completion(prompts["raw"], max_tokens=n, temperature=0.0)["choices"][0]["text"]}
    return found


def mistral_rs():
    from mistralrs import ChatCompletionRequest, CompletionRequest, ModelDType, Runner, Which

    if os.path.isdir(path):
        which = Which.Plain(model_id=path, dtype=ModelDType.F32)
    else:
        which = Which.GGUF(quantized_model_id=os.path.dirname(path) or ".", quantized_filename=os.path.basename(path))
    runner, found = Runner(which=which), {}
    same = dict(model="default", max_tokens=n, temperature=0.0, top_k=1)
    if "chat" in prompts:
        out = runner.send_chat_completion_request(ChatCompletionRequest(messages=prompts["chat"], **same))
        found["chat"] = {"text": out.choices[0].message.content}
    out = runner.send_completion_request(CompletionRequest(prompt=prompts["raw"], **same))
    found["raw"] = {"text": out.choices[0].text}
    return found


def mlx():
    import mlx.core as mx
    from mlx_lm import load, stream_generate

    model, tokenizer = load(path)
    model.set_dtype(mx.float32)
    generate = lambda ids: [out.token for out in stream_generate(model, tokenizer, ids, max_tokens=n)]
    return generated(generate, tokenizer)


def ctranslate2():
    import ctranslate2 as ct2

    folder = os.path.join(work, "ct2")
    ct2.converters.TransformersConverter(path).convert(folder)
    generator, tokenizer = ct2.Generator(folder, compute_type="float32"), tokenizer_of(path)

    def generate(ids):
        tokens = tokenizer.convert_ids_to_tokens(ids)
        return generator.generate_batch([tokens], max_length=n, sampling_topk=1, include_prompt_in_result=False)[0].sequences_ids[0]

    return generated(generate, tokenizer)


def onnx():
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    model = ORTModelForCausalLM.from_pretrained(path, export=True)

    def generate(ids):
        ids = torch.tensor([ids])
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False)
        return out[0, ids.shape[1] :].tolist()

    return generated(generate, tokenizer_of(path))


def onnx_genai():
    import onnxruntime_genai as og

    folder = os.path.join(work, "genai")
    # in this process, which may be ended
    sys.argv[1:] = ["-i", path, "-o", folder, "-p", "fp32", "-e", "cpu", "-c", work]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    model = og.Model(folder)

    def generate(ids):
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(ids) + n, do_sample=False)
        generator = og.Generator(model, parameters)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        return generator.get_sequence(0)[len(ids) :]

    return generated(generate, tokenizer_of(path))


asked = {f.__name__: f for f in (transformers, transformers_gguf, vllm, llama_cpp_python, mistral_rs, mlx, ctranslate2, onnx, onnx_genai)}
answer({"answers": asked[job["ask"]]()})
