#!/usr/bin/env python3
"""vllm_greedy.py FOLDER=EXPECTED.json..   (run with the Python that has vllm)
Greedy continuations of exported folders in vLLM on CPU, float32, against ids in JSON: {"prompt": [..], "expected": [..]}."""
import json, os, sys

os.environ.update({k: os.environ.get(k, v) for k, v in dict(
    HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR").items()})


def main():
    import gc
    import vllm
    from vllm import LLM, SamplingParams

    failed = 0
    for argument in sys.argv[1:]:
        folder, expected = argument.split("=")
        name = os.path.basename(os.path.dirname(folder))
        want = json.load(open(expected))
        try:
            llm = LLM(model=folder, dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=2, seed=0)
            settings = SamplingParams(temperature=0, max_tokens=len(want["expected"]), ignore_eos=True)
            out = llm.generate([{"prompt_token_ids": want["prompt"]}], settings, use_tqdm=False)
            found = list(out[0].outputs[0].token_ids)
            assert found == want["expected"], f"expected {want['expected']}, found {found}"
            print(f"ok    vLLM {vllm.__version__}: {name}: {len(found)} tokens", flush=True)
            del llm
            gc.collect()
        except BaseException as error:
            failed += 1
            print(f"FAIL  vLLM: {name}\n{type(error).__name__}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
