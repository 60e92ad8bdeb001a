# GPT-2 124M on OpenWebText, with nanoGPT's settings: validation loss about 2.85 in its author's runs. First:
#   python data/openwebtext/prepare.py
#   torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py

dataset = "openwebtext"

# 5 * 8 micro-batches x 12 sequences x 1,024 tokens = 491,520 tokens a step, on any number of GPUs
batch_size = 12
block_size = 1024
gradient_accumulation_steps = 5 * 8

# 600,000 steps x 491,520 = 295 billion tokens
max_iters = 600000
lr_decay_iters = 600000
weight_decay = 1e-1

eval_interval = 1000
eval_iters = 200
log_interval = 10
