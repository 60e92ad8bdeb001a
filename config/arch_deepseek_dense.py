# DeepSeek-V2's latent attention with dense FFNs: a cache of 256 + 32 numbers a token and layer, where attention of 10
# heads of 64 would keep 1,280.
# Parameters: 12 x (640 x 960 + 640 x 288 + 256 x 1,280 + 640^2 + 3 x 640 x 1,792) = 59.7M in blocks
#   + 2 x 50,304 x 640 = 64.4M = 124.1M

arch_preset = "deepseek_dense"
n_layer = 12
n_head = 10
n_embd = 640
kv_lora_rank = 256
qk_nope_head_dim = 64  # a head's queries and keys are 64 + 32 wide
qk_rope_head_dim = 32
v_head_dim = 64

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
