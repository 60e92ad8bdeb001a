#!/usr/bin/env bash
# transformers 5.23.0: where a config.json has both rope_parameters (the new name) and rope_scaling (the old one), the
# old one wins, whole: nothing of rope_parameters is left, its rope_theta neither, and nothing is said. A file that was
# converted to 5 and kept the old key for older readers is read by the old key.
# Seen:
#   rope_type: linear
#   rope_theta: 10000.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0
seen=$("$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
from transformers import LlamaConfig

new = {"rope_type": "default", "rope_theta": 500000.0}
old = {"rope_type": "linear", "factor": 2.0}
read = LlamaConfig.from_dict({"rope_parameters": new, "rope_scaling": old}).rope_parameters
print("rope_type:", read["rope_type"])
print("rope_theta:", read.get("rope_theta"))
PYTHON
)
echo "$seen"
diff <(sed -n '/^# Seen:$/,/^set /s/^#   //p' "$0") <(echo "$seen")
