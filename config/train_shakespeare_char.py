# A character-level model of Shakespeare, with nanoGPT's settings. First:
#   python data/shakespeare_char/prepare.py
# On a laptop, as nanoGPT says: --device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64
#   --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0

out_dir = "out-shakespeare-char"
dataset = "shakespeare_char"

# 1 x 64 x 256 = 16,384 tokens a step; 5,000 steps are 82 passes over the data, hence the dropout
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256
max_iters = 5000
dropout = 0.2

n_layer = 6
n_head = 6
n_embd = 384

learning_rate = 1e-3
min_lr = 1e-4  # a tenth of learning_rate
lr_decay_iters = 5000
warmup_iters = 100
beta2 = 0.99  # a step has few tokens

eval_interval = 250
eval_iters = 200
log_interval = 10
always_save_checkpoint = False  # it overfits in the end: keep the best
