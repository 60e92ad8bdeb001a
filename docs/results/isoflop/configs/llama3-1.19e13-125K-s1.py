# 3L-3H-48D-RoPE-RMS-SwiGLU-PreNorm: a budget of 1.19e+13 FLOPs, 125,136 parameters.
# 13,277,184 tokens x 896,256 FLOPs (training, full attention, with logits) = 1.1900e+13,
#   100.00 % of the budget

arch_preset = "llama3"
n_layer = 3
n_head = 3
num_key_value_heads = 3
n_embd = 48
d_ff = 168
weight_tying = False
vocab_size = 256
block_size = 128

dataset = "python_stdlib"
seed = 1
device = "cpu"

# 1 x 8 x 128 = 1,024 tokens
gradient_accumulation_steps = 1
batch_size = 8
max_iters = 12966

learning_rate = 0.00487
min_lr = 0.000487  # a tenth
lr_schedule = "cosine"
warmup_iters = 648

# 64 x 8 = 512 windows: the same for every run
eval_iters = 64
eval_interval = 2594
log_interval = 129
keep_best = False

predicted_flops = 13277184 * 896256
predicted_seconds = 610.558
