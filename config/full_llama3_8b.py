# Llama 3.1 8B's shape (Grattafiori et al. 2024, table 3): its exact parameter count.
# Matrices of a block: 2 x 4,096^2 + 2 x 4,096 x 1,024 + 3 x 4,096 x 14,336 = 218,103,808; of 32: 6,979,321,856;
#   embedding and head: 2 x 128,256 x 4,096 = 1,050,673,152
# Parameters: 525,336,576 embedding + 1,342,177,280 attention + 5,637,144,576 ffn + 266,240 norms + 525,336,576 lm_head
#   = 8,030,261,248
# FLOPs per token: 57,912,852,480 (training, full attention, with logits)
# FLOPs of the run: 160,604,094,464 tokens x 57,912,852,480 = 9.3010e+21
# Weights, gradients and AdamW's state take 16 bytes x 8,030,261,248 = 128 GB: detailed_cost_analysis.py --model_config
#   shows what each device holds when --strategy fsdp shares them.

arch_preset = "llama3"
n_layer = 32
n_head = 32  # of 128
num_key_value_heads = 8
n_embd = 4096
d_ff = 14336
activation_checkpointing = True

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 128256

# 512 x 1 x 8,192 = 4,194,304 tokens a step
gradient_accumulation_steps = 512
batch_size = 1
block_size = 8192

# 20 tokens a parameter (Hoffmann et al. 2022): 20 x 8,030,261,248 / 4,194,304 = 38,291 steps
max_iters = 38291
warmup_iters = 765
learning_rate = 0.0003  # Grattafiori et al. 2024, table 3
min_lr = 3e-05

eval_interval = 1000
eval_iters = 100
eval_batch_size = 1
log_interval = 10
