#!/usr/bin/env bash
# torch 2.13.0: what is written in place to a view is lost by torch.onnx.export(dynamo=True) where type_as, of the same
# dtype, was called on that view before: it returns the tensor itself, the trace then has the write go to what type_as
# gave, and the exporter, which keeps type_as as an operator, takes that for another tensor. torch.export's program is
# right, and so are its decompositions; the ONNX file computes something else, without an error.
# Largest error of past.clone(), after x was written to its first half:
# Seen:
#   torch.export, with type_as: 0.0
#   torch.onnx, with type_as: not 0
#   torch.onnx, without it: 0.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
seen=$("$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import onnxruntime
import torch


class Write(torch.nn.Module):
    def __init__(self, casts):
        super().__init__()
        self.casts = casts

    def forward(self, x, past):
        kept = past.clone()
        first, _ = kept.split((2, 2), dim=1)
        before = first.type_as(x) if self.casts else first
        y = before + x
        first.copy_(x)
        return y, kept


x, past = torch.randn(3, 2), torch.randn(3, 4)
expected = torch.cat((x, past[:, 2:]), dim=1)


def error(kept):
    found = (torch.as_tensor(kept) - expected).abs().max().item()
    return found if found == 0 else "not 0"


def of_file(casts):
    made = torch.onnx.export(Write(casts), (x, past), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(made.model_proto.SerializeToString())
    names = [one.name for one in session.get_inputs()]
    return session.run(None, dict(zip(names, (x.numpy(), past.numpy()))))[1]


print("torch.export, with type_as:", error(torch.export.export(Write(True), (x, past)).module()(x, past)[1]))
print("torch.onnx, with type_as:", error(of_file(True)))
print("torch.onnx, without it:", error(of_file(False)))
PYTHON
)
echo "$seen"
diff <(sed -n '/^# Seen:$/,/^set /s/^#   //p' "$0") <(echo "$seen")
