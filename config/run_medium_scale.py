# A run of hybrid_2.7b.py's model on 8 devices: 20,000 steps of 256 sequences, 4.1 tokens a parameter.
# Layers: MAAAMMMMAMMMMAMMMAMMMMAMMMMAAAAA (A attention, M Mamba-2)
# Parameters: 128,778,240 embedding + 188,743,680 attention + 804,280,000 mamba + 1,447,034,880 ffn + 166,400 norms =
#   2,569,003,200
# FLOPs per token: 16,364,298,240 (training, full attention, with logits)
# FLOPs of the run: 10,485,760,000 tokens x 16,364,298,240 = 1.7159e+20

arch_preset = "hybrid"  # attention in 0.375 of the layers
n_layer = 32
n_head = 20  # of 128
num_key_value_heads = 4
n_embd = 2560
d_ff = 5888

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 50304

# 64 x 4 x 2,048 = 524,288 tokens a step
gradient_accumulation_steps = 64
batch_size = 4
block_size = 2048
activation_checkpointing = True
use_zero1 = True  # on 8 devices: torchrun

max_iters = 20000  # 20,000 steps
warmup_iters = 1000
learning_rate = 0.00016
min_lr = 1.6e-05

eval_interval = 1000
eval_iters = 20
eval_batch_size = 4
log_interval = 10
