"""back_trl.py JOB: in a Python with TRL and PEFT, trains two steps from each folder of the job (JSON: `[[kind, folder, out]]`, kind
sft, dpo, lora or merged) and saves model and tokenizer as TRL's documentation has it. Prints the next-token logits of what was
trained on `ids`, by out, as JSON."""
import json, sys

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

torch.set_num_threads(2)
torch.manual_seed(1)
job = json.loads(sys.argv[1])
user = lambda text: {"role": "user", "content": text}
assistant = lambda text: {"role": "assistant", "content": text}
CHATS = [("hello", "hi"), ("2+2?", "4"), ("你好", "你好！"), ("thanks", "you are welcome")]
SFT = Dataset.from_list([{"messages": [user(q), assistant(a)]} for q, a in CHATS])
DPO = Dataset.from_list([{"prompt": [user(q)], "chosen": [assistant(a)], "rejected": [assistant("no")]} for q, a in CHATS])
PLAIN = dict(max_steps=2, per_device_train_batch_size=2, learning_rate=1e-2, report_to="none", use_cpu=True, bf16=False,
             save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=1, max_length=128, gradient_checkpointing=False)  # fmt: skip


def train(kind, folder, out):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False) if kind in ("lora", "merged") else None
    more = dict(model=model, processing_class=tokenizer, peft_config=lora)
    if kind == "dpo":
        trainer = DPOTrainer(args=DPOConfig(output_dir=out + "-work", **PLAIN), train_dataset=DPO, **more)
    else:
        trainer = SFTTrainer(args=SFTConfig(output_dir=out + "-work", **PLAIN), train_dataset=SFT, **more)
    trainer.train()
    model = trainer.model
    if kind == "merged":
        model = model.merge_and_unload()
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    else:
        trainer.save_model(out)
    with torch.no_grad():
        return model.eval()(torch.tensor([job["ids"]])).logits[0].float().tolist()


print(json.dumps({out: train(kind, folder, out) for kind, folder, out in job["train"]}))
