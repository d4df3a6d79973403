"""rewards_trl.py JOB: in a Python with TRL, one step of GRPOTrainer for each setting of the job (JSON: folder, rows, settings) on given
rollouts and rewards. Prints `{name: {loss, grad_norm}}`.

Two things of TRL's own are set aside, and nothing else: it divides by a standard deviation of n - 1 (the reference and mmx by n),
and where it samples by itself it takes the policy of now for the one that sampled: the given log-probabilities are put there."""
import json, sys, tempfile

import torch
import trl.trainer.grpo_trainer as module
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

torch.set_num_threads(2)
job = json.loads(sys.argv[1])
rows = job["rows"]
module.nanstd = lambda values, dim=None, keepdim=False: values.std(dim=dim, keepdim=keepdim, correction=0) if dim is not None else values.std(correction=0)


class Given(GRPOTrainer):
    def _generate_and_score_completions(self, inputs):
        made = super()._generate_and_score_completions(inputs)
        old = torch.zeros(made["completion_ids"].shape)
        for row, given in zip(old, rows):
            row[: len(given["logps"])] = torch.tensor(given["logps"])
        # rows are the given ones in their order: TRL shuffles a batch only after this
        assert [ids[: len(given["response_ids"])].tolist() for ids, given in zip(made["completion_ids"], rows)] == [row["response_ids"] for row in rows]
        made["old_per_token_logps"] = old
        return made

    def compute_loss(self, *args, **more):
        loss = super().compute_loss(*args, **more)
        self.seen.append(float(loss.detach()))
        return loss


def step(folder, reference, settings):
    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(output_dir=out, max_steps=1, per_device_train_batch_size=len(rows), num_generations=job["group"], temperature=1.0,
                            max_completion_length=job["max_new"], learning_rate=1e-6, report_to="none", use_cpu=True, bf16=False, save_strategy="no",
                            logging_steps=1, disable_tqdm=True, seed=1, gradient_checkpointing=False, shuffle_dataset=False, max_grad_norm=1.0, **settings)  # fmt: skip
        trainer = Given(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(folder),
            reward_funcs=lambda completions, **_: [row["reward"] for row in rows],
            args=config,
            train_dataset=Dataset.from_list([{"prompt": "x"}] * len(rows)),
            rollout_func=lambda prompts, trainer: {
                "prompt_ids": [row["prompt_ids"] for row in rows],
                "completion_ids": [row["response_ids"] for row in rows],
                "logprobs": [row["logps"] for row in rows],
            },
        )
        if settings.get("beta"):
            trainer.ref_model.load_state_dict(AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32).state_dict())
        trainer.seen = []
        trainer.train()
        norm = next(line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line)
        return {"loss": sum(trainer.seen), "grad_norm": float(norm)}


print(json.dumps({name: step(job["folder"], job["reference"], settings) for name, settings in job["settings"].items()}))
