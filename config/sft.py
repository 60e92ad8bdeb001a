# Fine-tuning on conversations: python finetune.py RUN config/sft.py --data chats.jsonl --epochs 2
# The model, with its block_size, is RUN's; a smaller block_size saves memory where conversations are short.

packing = "best_fit"  # whole conversations in windows of block_size tokens,
mask_documents = True  # which do not see each other

# 4 x 4 = 16 windows a step; E epochs of W windows are E x W / 16 steps, which finetune.py works out
gradient_accumulation_steps = 4
batch_size = 4

learning_rate = 2e-5  # some 30 times less than from scratch, so that what the model knows stays
min_lr = 0.0
lr_schedule = "linear"
warmup_iters = 10
weight_decay = 0.0
beta2 = 0.99

eval_interval = 50
eval_iters = 20
log_interval = 1
