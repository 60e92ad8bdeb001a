# Learning sums from rewards: a completion is right, or it is not. Minutes on one CPU core, after `make quickstart` and
#   python data/sums/questions.py
# which writes the sums, and these lines, which first teach the model of `make quickstart` what an answer looks like:
#   python finetune.py out/quickstart config/sft_quickstart.py --data out/sums/taught.jsonl --epochs 60
#       --chat_template out/sums/plain.jinja --packing=single --block_size=16 --batch_size=128 --out_dir=out/taught
#   python finetune.py out/taught config/grpo_sums.py --data out/sums/train.jsonl --val_data out/sums/val.jsonl


def right(prompt: str, completion: str, answer: str) -> float:
    """Whether the completion is the sum, and nothing else."""
    return float(completion == answer)


reinforce = "grpo"
rewards = {"right": 1.0}
kl_beta = 0.02
packing = "prompts"  # each in windows of its own, one for each of its completions
mask_documents = True
block_size = 10  # at most 6 bytes of a prompt, such as 49+49=,
max_completion = 4  # and 3 of an answer with its end

# 1 x 256 = 256 completions a step: 8 of each of 32 prompts
gradient_accumulation_steps = 1
batch_size = 256
group_size = 8
max_iters = 600

learning_rate = 5e-5  # a tenth of that for conversations: a reward says far less
lr_schedule = "constant"
warmup_iters = 10
weight_decay = 0.0
beta2 = 0.99

eval_interval = 50
eval_iters = 15  # 15 x 128 = 1,920 completions, 8 of each of 240 prompts
eval_batch_size = 128
log_interval = 10
