# 3L-11H-176D-RoPE-RMS-SwiGLU-PreNorm: a budget of 3e+13 FLOPs, 1,438,800 parameters.
# 3,272,704 tokens x 9,166,080 FLOPs (training, full attention, with logits) = 2.9998e+13,
#   99.99 % of the budget

arch_preset = "llama3"
n_layer = 3
n_head = 11
num_key_value_heads = 11
n_embd = 176
d_ff = 616
weight_tying = False
vocab_size = 256
block_size = 128

dataset = "python_stdlib"
seed = 1
device = "cpu"

# 1 x 8 x 128 = 1,024 tokens
gradient_accumulation_steps = 1
batch_size = 8
max_iters = 3196

learning_rate = 0.00433
min_lr = 0.000433  # a tenth
lr_schedule = "cosine"
warmup_iters = 200

# 64 x 8 = 512 windows: the same for every run
eval_iters = 64
eval_interval = 640
log_interval = 31
keep_best = False

scaling_law = {
    'name': 'law',
    'E': 0.948363316293583,
    'A': 2004.6968043110573,
    'B': 3921.828845778275,
    'alpha': 0.8370284478696571,
    'beta': 0.6475474612177219,
    'N': 'total',
    'source': 'a fit to 15 points of 15 runs',
    'range': {'N': [19440.0, 976752.0], 'D': [204800.0, 13277184.0]},
}
predicted_loss = 1.19943
predicted_flops = 3272704 * 9166080
predicted_seconds = 475.357
