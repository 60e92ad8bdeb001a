#!/usr/bin/env bash
# torch 2.13.0: torch.onnx.export(dynamo=True) fixes a dimension that dynamic_shapes names, and says nothing. Where
# torch.export refuses the name, because what was traced holds for one length only, the exporter takes the fix that the
# refusal suggests, which is that length, and goes on: the file has a number where the name was asked for, and no other
# text runs. Here a cumulative sum is a loop of Python's, over an example of 6 tokens.
# Seen:
#   torch.export.export refuses: Constraints violated (sequence)!
#   torch.onnx.export writes an input of: batch, 6
#   torch.onnx.export of the exported program with a cumsum: two names
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2
seen=$("$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import torch


class Loop(torch.nn.Module):
    def forward(self, x):
        sums = [x[:, 0]]
        for index in range(1, x.shape[1]):
            sums.append(sums[-1] + x[:, index])
        return torch.stack(sums, dim=1)


class CumulativeSum(torch.nn.Module):
    def forward(self, x):
        return x.cumsum(1)


x = torch.randn(2, 6)
shapes = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}}
try:
    torch.export.export(Loop(), (x,), dynamic_shapes=shapes)
except Exception as error:
    print("torch.export.export refuses:", str(error).split(" For more")[0])
made = torch.onnx.export(Loop(), (x,), dynamic_shapes=shapes, dynamo=True, verbose=False)
print("torch.onnx.export writes an input of:", ", ".join(str(getattr(one, "value", one)) for one in made.model.graph.inputs[0].shape))
program = torch.export.export(CumulativeSum(), (x,), dynamic_shapes=shapes)
made = torch.onnx.export(program, dynamo=True, verbose=False)
names = sum(not isinstance(one, int) for one in made.model.graph.inputs[0].shape)
print("torch.onnx.export of the exported program with a cumsum:", {2: "two names"}.get(names, names))
PYTHON
)
echo "$seen"
diff <(sed -n '/^# Seen:$/,/^set /s/^#   //p' "$0") <(echo "$seen")
