# A run of hybrid_13b.py's model on 64 devices: 100,000 steps of 512 sequences, 39.2 tokens a parameter.
# Layers: MAAAMMMMAMMMMAMMMMAMMMMAMMMMAMMMMAAAAAAA (A attention, M Mamba-2)
# Parameters: 257,556,480 embedding + 943,718,400 attention + 3,986,988,000 mamba + 5,505,024,000 ffn + 414,720 norms =
#   10,693,701,600
# FLOPs per token: 72,199,034,880 (training, full attention, with logits)
# FLOPs of the run: 419,430,400,000 tokens x 72,199,034,880 = 3.0282e+22

arch_preset = "hybrid"  # attention in 0.375 of the layers
n_layer = 40
n_head = 40  # of 128
num_key_value_heads = 8
n_embd = 5120
d_ff = 8960

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 50304

# 256 x 2 x 8,192 = 4,194,304 tokens a step
gradient_accumulation_steps = 256
batch_size = 2
block_size = 8192
activation_checkpointing = True
use_fsdp = True  # on 64 devices: torchrun

max_iters = 100000  # 100,000 steps
warmup_iters = 2000
learning_rate = 0.0001
min_lr = 1e-05

eval_interval = 1000
eval_iters = 20
eval_batch_size = 2
log_interval = 10
