#!/usr/bin/env bash
# trl 1.16.0: KTOTrainer estimates the divergence from the reference with "mismatched" answers: each prompt of a
# micro-batch with the answer of the row before it there, whatever its prompt is. Rows are not shuffled, so where some
# answers to a prompt follow one another in the data these are answers to the very prompt. In micro-batches of two, such
# as the two labelled answers to a prompt, the estimate is the mean of the labelled answers' own log ratios.
# Seen:
#   two and two -> is four (True); estimated with two and two -> is five
#   two and two -> is five (False); estimated with two and two -> is four
#   up -> down (True); estimated with up -> up, up
#   up -> up, up (False); estimated with up -> down
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q trl==1.16.0 transformers==5.23.0 datasets==5.2.0 tokenizers==0.23.3
seen=$(cd "$folder" && "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import KTOConfig, KTOTrainer

library = Tokenizer(models.BPE(vocab={chr(number): number for number in range(256)}, merges=[]))
library.pre_tokenizer = pre_tokenizers.Split("", "isolated")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=library, eos_token=chr(0), pad_token=chr(0))
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
talks = [("two and two", "is four", True), ("two and two", "is five", False)]
talks += [("up", "down", True), ("up", "up, up", False)]
rows = [{"prompt": asked, "completion": said, "label": label} for asked, said, label in talks]
model, reference = (LlamaForCausalLM(LlamaConfig(vocab_size=256, num_key_value_heads=2, **sizes)) for _ in range(2))
how = {"bf16": False, "use_cpu": True, "report_to": "none", "gradient_checkpointing": False}
arguments = KTOConfig("out", per_device_train_batch_size=2, **how)
data = Dataset.from_list(rows)
trainer = KTOTrainer(model, reference, args=arguments, train_dataset=data, processing_class=tokenizer)


def shown(ids, counts):
    ends = [(counts == value).nonzero().flatten() for value in (0, 1)]
    asked, said = ("".join(map(chr, ids[where].tolist())).replace(chr(0), "") for where in ends)
    return f"{asked} -> {said}"


for batch in trainer.get_train_dataloader():
    for row, label in enumerate(batch["label"].tolist()):
        own, other = (shown(batch[f"{of}input_ids"][row], batch[f"{of}completion_mask"][row]) for of in ("", "KL_"))
        print(f"{own} ({label}); estimated with {other}")
PYTHON
)
echo "$seen"
diff <(sed -n '/^# Seen:$/,/^set /s/^#   //p' "$0") <(echo "$seen")
