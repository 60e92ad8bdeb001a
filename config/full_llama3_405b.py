# Llama 3.1 405B's shape (Grattafiori et al. 2024, table 3): its exact parameter count.
# Matrices of a block: 2 x 16,384^2 + 2 x 16,384 x 1,024 + 3 x 16,384 x 53,248 = 3,187,671,040; of 126:
#   401,646,551,040; embedding and head: 2 x 128,256 x 16,384 = 4,202,692,608
# Parameters: 2,101,346,304 embedding + 71,873,593,344 attention + 329,772,957,696 ffn + 4,145,152 norms +
#   2,101,346,304 lm_head = 405,853,388,800
# FLOPs per token: 2,625,424,588,800 (training, full attention, with logits)
# FLOPs of the run: 8,117,068,759,040 tokens x 2,625,424,588,800 = 2.1311e+25
# Weights, gradients and AdamW's state take 16 bytes x 405,853,388,800 = 6,494 GB: detailed_cost_analysis.py
#   --model_config shows what each device holds when --strategy fsdp shares them.

arch_preset = "llama3"
n_layer = 126
n_head = 128  # of 128
num_key_value_heads = 8
n_embd = 16384
d_ff = 53248
activation_checkpointing = True

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 128256

# 2048 x 1 x 8,192 = 16,777,216 tokens a step
gradient_accumulation_steps = 2048
batch_size = 1
block_size = 8192

# 20 tokens a parameter (Hoffmann et al. 2022): 20 x 405,853,388,800 / 16,777,216 = 483,815 steps
max_iters = 483815
warmup_iters = 2000
learning_rate = 8e-05  # Grattafiori et al. 2024, table 3
min_lr = 8e-06

eval_interval = 1000
eval_iters = 100
eval_batch_size = 1
log_interval = 10
