# Every architecture key by itself: change any of them. As it stands, a mixture that no preset has.
# Parameters: 12 x (2 x 768^2 + 2 x 768 x 256 + 3 x 768 x 2,304) = 82.6M in the blocks + 38.6M tied = 121.2M

arch_preset = "custom"
n_layer = 12
n_head = 12
num_key_value_heads = 4  # 12: multi-head, 1: multi-query
n_embd = 768
d_ff = 2304
normalization = "rmsnorm"  # layernorm, layernorm_nobias
norm_position = "pre"  # post
ffn_type = "geglu"  # standard, swiglu
position_encoding = "rope"  # learned_absolute, alibi, none
rope_theta = 100000.0
attention_backend = "sdpa"  # manual
bias = False
weight_tying = True
dropout = 0.0

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 50304  # GPT-2's 50,257, rounded up to a multiple of 64

# 40 micro-batches x 12 sequences x 1,024 tokens = 491,520 tokens a step
gradient_accumulation_steps = 40
batch_size = 12
block_size = 1024

# 20 tokens a parameter (Hoffmann et al. 2022): 124e6 x 20 / 491,520 = 5,046 steps
max_iters = 5050
warmup_iters = 250
learning_rate = 6e-4
min_lr = 6e-5

eval_interval = 250
eval_iters = 100
log_interval = 10
