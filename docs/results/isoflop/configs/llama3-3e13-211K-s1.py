# 3L-4H-64D-RoPE-RMS-SwiGLU-PreNorm: a budget of 3e+13 FLOPs, 211,392 parameters.
# 20,515,840 tokens x 1,462,272 FLOPs (training, full attention, with logits) = 3.0000e+13,
#   100.00 % of the budget

arch_preset = "llama3"
n_layer = 3
n_head = 4
num_key_value_heads = 4
n_embd = 64
d_ff = 224
weight_tying = False
vocab_size = 256
block_size = 128

dataset = "python_stdlib"
seed = 1
device = "cpu"

# 1 x 8 x 128 = 1,024 tokens
gradient_accumulation_steps = 1
batch_size = 8
max_iters = 20035

learning_rate = 0.00433
min_lr = 0.000433  # a tenth
lr_schedule = "cosine"
warmup_iters = 1001

# 64 x 8 = 512 windows: the same for every run
eval_iters = 64
eval_interval = 4007
log_interval = 200
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
predicted_loss = 1.09052
predicted_flops = 20515840 * 1462272
predicted_seconds = 1201.92
