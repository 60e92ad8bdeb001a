# Llama 3.1 70B's shape (Grattafiori et al. 2024, table 3): its exact parameter count.
# Matrices of a block: 2 x 8,192^2 + 2 x 8,192 x 1,024 + 3 x 8,192 x 28,672 = 855,638,016; of 80: 68,451,041,280;
#   embedding and head: 2 x 128,256 x 8,192 = 2,101,346,304
# Parameters: 1,050,673,152 embedding + 12,079,595,520 attention + 56,371,445,760 ffn + 1,318,912 norms + 1,050,673,152
#   lm_head = 70,553,706,496
# FLOPs per token: 481,434,796,032 (training, full attention, with logits)
# FLOPs of the run: 1,411,072,917,504 tokens x 481,434,796,032 = 6.7934e+23
# Weights, gradients and AdamW's state take 16 bytes x 70,553,706,496 = 1,129 GB: detailed_cost_analysis.py
#   --model_config shows what each device holds when --strategy fsdp shares them.

arch_preset = "llama3"
n_layer = 80
n_head = 64  # of 128
num_key_value_heads = 8
n_embd = 8192
d_ff = 28672
activation_checkpointing = True

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 128256

# 1024 x 1 x 8,192 = 8,388,608 tokens a step
gradient_accumulation_steps = 1024
batch_size = 1
block_size = 8192

# 20 tokens a parameter (Hoffmann et al. 2022): 20 x 70,553,706,496 / 8,388,608 = 168,213 steps
max_iters = 168213
warmup_iters = 2000
learning_rate = 0.00015  # Grattafiori et al. 2024, table 3
min_lr = 1.5e-05

eval_interval = 1000
eval_iters = 100
eval_batch_size = 1
log_interval = 10
