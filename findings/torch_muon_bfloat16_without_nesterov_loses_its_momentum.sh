#!/usr/bin/env bash
# torch 2.13.0: torch.optim.Muon with bfloat16 parameters and nesterov=False destroys its momentum: the first thing that
# it does with what it orthogonalises is .bfloat16(), which of a bfloat16 tensor is that tensor itself, and then divides
# in place. So the buffer holds a matrix of norm 1 after a step, whatever the gradient was, and the running mean weighs
# the next gradient against that. With nesterov=True, or float32 parameters, what is divided is a copy.
# An element of the buffer after one step from a gradient of 100 with momentum 0.5:
# Seen:
#   torch.float32, nesterov=True: the buffer is 50.000
#   torch.float32, nesterov=False: the buffer is 50.000
#   torch.bfloat16, nesterov=True: the buffer is 50.000
#   torch.bfloat16, nesterov=False: the buffer is 0.178
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
seen=$("$folder/venv/bin/python" - <<'PYTHON'
import torch

def buffer_after_a_step(dtype, nesterov):
    parameter = torch.nn.Parameter(torch.randn(4, 8).to(dtype))
    optimizer = torch.optim.Muon([parameter], momentum=0.5, nesterov=nesterov, weight_decay=0.0)
    parameter.grad = torch.full_like(parameter, 100.0)
    optimizer.step()
    return optimizer.state[parameter]["momentum_buffer"][0, 0].item()

for dtype in (torch.float32, torch.bfloat16):
    for nesterov in (True, False):
        print(f"{dtype}, nesterov={nesterov}: the buffer is {buffer_after_a_step(dtype, nesterov):.3f}")
PYTHON
)
echo "$seen"
diff <(sed -n '/^# Seen:$/,/^set /s/^#   //p' "$0") <(echo "$seen")
