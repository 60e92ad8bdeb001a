# A small hybrid of the gated delta rule and attention on the Python standard library's source, byte by byte.
# Layers: DDDA (D gated delta rule, A attention), as Qwen3-Next has them, each with its FFN.

dataset = "python_stdlib"
arch_preset = "llama3"  # RoPE, RMSNorm, SwiGLU, pre-norm
layer_pattern = "DDDA"  # of the rule's layers each has 192 / 64 = 3 heads of 64
n_layer = 4
n_head = 3
n_embd = 192
block_size = 256

# 1 x 16 x 256 = 4,096 tokens a step
gradient_accumulation_steps = 1
batch_size = 16
max_iters = 500

learning_rate = 2e-3
min_lr = 2e-4
warmup_iters = 50
beta2 = 0.99

eval_interval = 100
eval_iters = 20
eval_batch_size = 16
log_interval = 20
