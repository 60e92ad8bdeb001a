# The model of `make quickstart` learns to answer questions about lines of code: minutes on two CPU cores. First:
#   python data/python_stdlib/instructions.py
#   python finetune.py out/quickstart config/sft_quickstart.py --data out/instructions/train.jsonl

packing = "best_fit"
mask_documents = True

# 1 x 16 x 256 = 4,096 tokens a step, some 25 conversations
gradient_accumulation_steps = 1
batch_size = 16

learning_rate = 5e-4  # a quarter of that from scratch: so small a model has much to learn
min_lr = 5e-5
warmup_iters = 20
beta2 = 0.99

eval_interval = 100
eval_iters = 20
eval_batch_size = 16
log_interval = 20
