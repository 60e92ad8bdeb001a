# Twice the context of the model of `make quickstart`, by YaRN:
#   python train.py config/extend_context.py --init_from=out/quickstart
# Of another model: factor is the new block_size over the old one, which is "original_max_position_embeddings".

dataset = "python_stdlib"
position_encoding = "rope"  # as the model has
block_size = 512
rope_scaling = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256}

# 1 x 8 x 512 = 4,096 tokens a step; a fifth of the quickstart's steps
gradient_accumulation_steps = 1
batch_size = 8
max_iters = 100

learning_rate = 5e-4  # a quarter of that from scratch
min_lr = 5e-5
warmup_iters = 10
beta2 = 0.99

eval_interval = 50
eval_iters = 20
eval_batch_size = 8
log_interval = 20
