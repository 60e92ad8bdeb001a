# What 1.36e21 FLOPs really buy under the law and in the space of the published search: logits counted, scores counted
# once, the tokens solved from the budget. Predicted 2.2919 where the published best, at 64 % of the budget, has 2.3351.
# Below as the search writes it.
#
# 16L-40H-2560D-GQA8-RoPE-RMS-SwiGLU-PreNorm: what a budget of 1.36e+21 FLOPs buys. Made by
#   python flops_parameter_counting/detailed_cost_analysis.py --grid_search 1.36e21 --law hoffmann --emit
#     config/full_llama3_2.0b_exact.py
# Parameters: 328,335,360 embedding + 251,658,240 attention + 1,101,004,800 ffn + 84,480 norms + 328,335,360 lm_head =
#   2,009,418,240
# FLOPs per token: 11,092,623,360 (training, full attention, with logits)
# FLOPs of the run: 122,603,700,224 tokens x 11,092,623,360 = 1.3600e+21,
#   100.00 % of the budget: steps are whole
# Predicted loss: 2.29186 nats per token of the law's own tokenizer and data
#   (hoffmann: Hoffmann et al. 2022, equation 10 (rounded))

arch_preset = "llama3"
n_layer = 16
n_head = 40  # of 64
num_key_value_heads = 8
n_embd = 2560
d_ff = 8960
weight_tying = False

# openwebtext has 9.036e+09 tokens, and the run passes over them 13.6 times:
#   --unique_tokens 9.036e+09 lets the search count what repeated ones are worth.
# Of 128,256 token ids its tokenizer has 50,257: the others never occur.
dataset = "openwebtext"  # python data/openwebtext/prepare.py
vocab_size = 128256

# 128 x 8 x 2,048 = 2,097,152 tokens a step; published rules say 1,244,412 to 2,317,550.
# If memory is short: half the batch_size and twice the gradient_accumulation_steps are the same step.
gradient_accumulation_steps = 128
batch_size = 8
block_size = 2048

# 58,462 steps x 2,097,152 = 122,603,700,224 tokens, 61.01 a parameter
max_iters = 58462

# The lowest of step_law 0.0014, deepseek 0.00073, porian 0.0018, olmo_ladder 0.002
learning_rate = 0.00073
min_lr = 7.3e-05  # a tenth
lr_schedule = "cosine"
warmup_iters = 2000

eval_interval = 5846
eval_iters = 20
log_interval = 584

# What the run's log holds its outcome against; hoffmann, of other data and another tokenizer, ranks and does not
#   foretell the loss
scaling_law = "hoffmann"
predicted_loss = 2.29186
predicted_flops = 122603700224 * 11092623360
