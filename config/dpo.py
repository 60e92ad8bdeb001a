# Learning from pairs of answers: python finetune.py RUN config/dpo.py --data pairs.jsonl, after config/sft.py
# The model, with its block_size, is RUN's, and so is the reference.

preference = "dpo"
preference_beta = 0.1
packing = "pairs"  # each answer with its prompt in a window of its own
mask_documents = True

# 4 x 8 = 32 answers a step, 16 pairs
gradient_accumulation_steps = 4
batch_size = 8

learning_rate = 5e-6  # less than for answers: what the reference would say is to change little
min_lr = 0.0
lr_schedule = "linear"
warmup_iters = 10
weight_decay = 0.0
beta2 = 0.99

eval_interval = 50
eval_iters = 20
eval_batch_size = 8
log_interval = 1
