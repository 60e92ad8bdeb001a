# Every key in force in 4L-1A1W1M1S-2H-24D-RoPE-RMS-SwiGLU-PreNorm: a config file that reproduces the run.
# What was derived, such as d_ff, stands here as a number.

# Architecture: sizes
arch_preset = 'hybrid'
n_layer = 4
n_head = 2
n_embd = 24
num_key_value_heads = 2
d_ff = 48
ffn_expansion_ratio = None
ffn_multiple_of = None
block_size = 32
vocab_size = 256

# Architecture: components
normalization = 'rmsnorm'
norm_eps = 1e-05
norm_position = 'pre'
activation = 'silu'
ffn_type = 'swiglu'
position_encoding = 'rope'
rope_theta = 10000.0
rope_scaling = None
attention_backend = 'sdpa'
bias = False
weight_tying = True
dropout = 0.0

# Architecture: mixers
layer_pattern = 'AWMS'
hybrid_attention_ratio = None
ffn_after = 'attention'
attention_window = 5
mamba_d_state = 4
mamba_expand = 2
mamba_d_conv = 4
mamba_head_dim = 8
mamba_n_groups = 2
mamba_chunk_size = 8
mamba_backend = 'auto'

# Where to start and where to write
out_dir = 'run'
init_from = 'scratch'
seed = 1337
dry_run = False

# Data and batch
dataset = 'words'
data_dir = 'data'
batch_size = 4
gradient_accumulation_steps = 2

# Length: the run ends at the first of these that it reaches
max_iters = 4
max_tokens = None
max_flops = None

# Optimizer (AdamW)
learning_rate = 0.01
weight_decay = 0.1
beta1 = 0.9
beta2 = 0.95
adam_eps = 1e-08
grad_clip = 1.0
max_skipped_steps = 10

# Learning-rate schedule
lr_schedule = 'cosine'
decay_lr = True
warmup_iters = 2
lr_decay_iters = 8
min_lr = 0.001
wsd_decay_fraction = 0.2

# Evaluation and checkpoints
eval_interval = 2
eval_iters = 3
eval_only = False
always_save_checkpoint = True
checkpoint_interval = 0
keep_last = 1
keep_best = False
keep_every = 0

# Log
log_interval = 1
gradient_stats_interval = 0
wandb_log = False
wandb_project = 'isoflop'
wandb_run_name = None
tensorboard_log = False

# Machine
device = 'cpu'
dtype = 'float32'
tf32 = True
compile = False
activation_checkpointing = False

# Many ranks (docs/distributed.md)
use_zero1 = False
use_fsdp = False
fsdp_reshard_after_forward = True
fsdp_cpu_offload = False
fsdp_replicas = 1
fsdp_reduce_dtype = 'float32'
tensor_parallel = 1
backend = 'auto'
comm_timeout = 600
world_size = None

# Prediction (docs/scaling_laws.md): changes nothing in the run, and stands in its log
scaling_law = None
predicted_loss = None
predicted_flops = None
predicted_seconds = None
