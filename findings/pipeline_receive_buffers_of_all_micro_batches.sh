#!/usr/bin/env bash
# torch 2.13.0, torch.distributed.pipelining: a stage keeps a receive buffer for every micro-batch of a step from its
# first step on, under Schedule1F1B too, whose last stage never has more than one micro-batch under way. Memory grows
# with the micro-batches of a step, as under GPipe; with many of them the buffers are more than the activations.
# Seen, on the last of two stages, in buffers of a micro-batch's size that are there after a step:
#   ScheduleGPipe, 4 micro-batches: 4
#   ScheduleGPipe, 32 micro-batches: 32
#   Schedule1F1B, 4 micro-batches: 4
#   Schedule1F1B, 32 micro-batches: 32
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy
cat > "$folder/stages.py" <<'PYTHON'
import gc
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import pipelining

dist.init_process_group("gloo")
rank, wide = dist.get_rank(), 96
for name in ("ScheduleGPipe", "Schedule1F1B"):
    for count in (4, 32):
        stage = pipelining.PipelineStage(nn.Linear(wide, wide), rank, 2, torch.device("cpu"))
        schedule = getattr(pipelining, name)(stage, count, loss_fn=nn.functional.mse_loss)
        sequences = torch.randn(count, wide)
        schedule.step(*([sequences] if rank == 0 else []), target=sequences)
        gc.collect()
        tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and one.shape == (1, wide)]
        if rank == 1:
            received = {one.data_ptr() for one in tensors if one.requires_grad and one.is_leaf}
            print(f"{name}, {count} micro-batches: {len(received)}", flush=True)
        del stage, schedule, sequences, tensors
        gc.collect()
dist.destroy_process_group()
PYTHON
export OMP_NUM_THREADS=1
seen=$("$folder/venv/bin/torchrun" --standalone --nproc_per_node=2 "$folder/stages.py" 2>/dev/null)
echo "$seen"
diff <(sed -n '/^# Seen/,/^set /s/^#   //p' "$0") <(echo "$seen")
