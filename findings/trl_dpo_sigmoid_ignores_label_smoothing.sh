#!/usr/bin/env bash
# trl 1.16.0: DPOConfig(loss_type="sigmoid", label_smoothing=0.2), the default loss, is accepted and trains without any
# smoothing (conservative DPO): loss and gradient are those of label_smoothing=0. loss_type="aot" of a single pair is the
# same loss, and smooths. CPO's sigmoid loss in the same release smooths as well.
# Seen:
#   sigmoid, smoothing 0.0 and 0.2: loss equal True, gradient equal True
#   aot of one pair, smoothing 0.0: as sigmoid True
#   aot of one pair, smoothing 0.2: as sigmoid False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q trl==1.16.0 transformers==5.23.0 datasets==5.2.0 tokenizers==0.23.3
seen=$(cd "$folder" && "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

library = Tokenizer(models.BPE(vocab={chr(number): number for number in range(256)}, merges=[]))
library.pre_tokenizer = pre_tokenizers.Split("", "isolated")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=library, eos_token=chr(0), pad_token=chr(0))
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
rows = Dataset.from_list([{"prompt": "two and two", "chosen": " is four", "rejected": " is a colour"}])


def model(seed):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=256, num_key_value_heads=2, **sizes))


def step(loss, smoothing):
    how = {"bf16": False, "use_cpu": True, "report_to": "none", "per_device_train_batch_size": 1}
    arguments = DPOConfig("out", loss_type=loss, label_smoothing=smoothing, gradient_checkpointing=False, **how)
    trained = model(0)
    trainer = DPOTrainer(trained, model(1), args=arguments, train_dataset=rows, processing_class=tokenizer)
    found = trainer.compute_loss(trained, next(iter(trainer.get_train_dataloader())))
    found.backward()
    return found.detach(), trained.lm_head.weight.grad


(plain, gradient), (smoothed, its) = step("sigmoid", 0.0), step("sigmoid", 0.2)
same = f"loss equal {torch.equal(plain, smoothed)}, gradient equal {torch.equal(gradient, its)}"
print("sigmoid, smoothing 0.0 and 0.2:", same)
for smoothing in (0.0, 0.2):
    print(f"aot of one pair, smoothing {smoothing}: as sigmoid", torch.allclose(plain, step("aot", smoothing)[0]))
PYTHON
)
echo "$seen"
diff <(sed -n '/^# Seen:$/,/^set /s/^#   //p' "$0") <(echo "$seen")
