# Learning sums from rewards: a completion is right, or it is not. Minutes on one CPU core. First:
#   python data/sums/questions.py
#   python finetune.py out/quickstart config/sft_quickstart.py --data out/sums/taught.jsonl --out_dir=out/taught
#   python finetune.py out/taught config/grpo_sums.py --data out/sums/train.jsonl --val_data out/sums/val.jsonl


def right(prompt: str, completion: str, answer: str) -> float:
    """Whether the completion is the sum, and nothing else."""
    return float(completion == answer)


reinforce = "grpo"
rewards = {"right": 1.0}
kl_beta = 0.02
packing = "prompts"  # each in windows of its own, one for each of its completions
mask_documents = True
block_size = 72  # 56 bytes of a prompt in ChatML
max_completion = 16  # and 12 or 13 of an answer and the end of its turn

# 1 x 64 = 64 completions a step: 8 of each of 8 prompts
gradient_accumulation_steps = 1
batch_size = 64
group_size = 8
max_iters = 200

learning_rate = 1e-4  # a fifth of that for conversations: rewards say far less
lr_schedule = "constant"
warmup_iters = 10
weight_decay = 0.0
beta2 = 0.99

eval_interval = 25
eval_iters = 25
eval_batch_size = 64
log_interval = 1
