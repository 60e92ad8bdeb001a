# A run of hybrid_6.7b.py's model on 32 devices: 50,000 steps of 512 sequences, 17.5 tokens a parameter.
# Layers: MAAAMMMMAMMMMAMMMAMMMMAMMMMAAAAA (A attention, M Mamba-2)
# Parameters: 206,045,184 embedding + 503,316,480 attention + 2,045,739,520 mamba + 3,221,225,472 ffn + 266,240 norms =
#   5,976,592,896
# FLOPs per token: 38,587,392,000 (training, full attention, with logits)
# FLOPs of the run: 104,857,600,000 tokens x 38,587,392,000 = 4.0462e+21

arch_preset = "hybrid"  # attention in 0.375 of the layers
n_layer = 32
n_head = 32  # of 128
num_key_value_heads = 8
n_embd = 4096
d_ff = 8192

dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 50304

# 128 x 4 x 4,096 = 2,097,152 tokens a step
gradient_accumulation_steps = 128
batch_size = 4
block_size = 4096
activation_checkpointing = True
use_fsdp = True  # on 32 devices: torchrun

max_iters = 50000  # 50,000 steps
warmup_iters = 2000
learning_rate = 0.00012
min_lr = 1.2e-05

eval_interval = 1000
eval_iters = 20
eval_batch_size = 4
log_interval = 10
