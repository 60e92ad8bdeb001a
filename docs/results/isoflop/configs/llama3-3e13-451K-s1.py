# 3L-6H-96D-RoPE-RMS-SwiGLU-PreNorm: a budget of 3e+13 FLOPs, 450,720 parameters.
# 10,015,744 tokens x 2,995,200 FLOPs (training, full attention, with logits) = 2.9999e+13,
#   100.00 % of the budget

arch_preset = "llama3"
n_layer = 3
n_head = 6
num_key_value_heads = 6
n_embd = 96
d_ff = 336
weight_tying = False
vocab_size = 256
block_size = 128

dataset = "python_stdlib"
seed = 1
device = "cpu"

# 1 x 8 x 128 = 1,024 tokens
gradient_accumulation_steps = 1
batch_size = 8
max_iters = 9781

learning_rate = 0.00433
min_lr = 0.000433  # a tenth
lr_schedule = "cosine"
warmup_iters = 489

# 64 x 8 = 512 windows: the same for every run
eval_iters = 64
eval_interval = 1957
log_interval = 97
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
predicted_loss = 1.10035
predicted_flops = 10015744 * 2995200
predicted_seconds = 836.58
