#!/usr/bin/env bash
# safetensors 0.8.0: save_file writes a new file beside the target and renames it, where 0.7.0 wrote into the target. So
# a symbolic link such as latest.safetensors is no link afterwards, and what it pointed to keeps the old weights; a hard
# link keeps them too. What the system refuses is an OSError in reading and none in writing: a folder that is not there
# raises SafetensorError, whose only base is Exception.
# Seen:
#   0.7.0: a link stays a link: True; its target has the new weights: True
#   0.8.0: a link stays a link: False; its target has the new weights: False
#   0.8.0: load_file, no such file: FileNotFoundError, an OSError: True
#   0.8.0: save_file, no such folder: SafetensorError, an OSError: False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/links.py" <<'PYTHON'
import os

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

version = safetensors.__version__
save_file({"weight": np.zeros(4, np.float32)}, "step_1.safetensors")
os.symlink("step_1.safetensors", "latest.safetensors")
save_file({"weight": np.ones(4, np.float32)}, "latest.safetensors")
is_new = bool(load_file("step_1.safetensors")["weight"].all())
is_link = os.path.islink("latest.safetensors")
print(f"{version}: a link stays a link: {is_link}; its target has the new weights: {is_new}")
if version == "0.8.0":
    attempts = {
        "load_file, no such file": lambda: load_file("missing.safetensors"),
        "save_file, no such folder": lambda: save_file({"weight": np.zeros(4)}, "missing/weights.safetensors"),
    }
    for what, attempt in attempts.items():
        try:
            attempt()
        except Exception as error:
            print(f"{version}: {what}: {type(error).__name__}, an OSError: {isinstance(error, OSError)}")
PYTHON
seen=$(for version in 0.7.0 0.8.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install -q "safetensors==$version" numpy==2.2.6 2>/dev/null
    (cd "$folder/$version" && bin/python ../links.py)
done)
echo "$seen"
diff <(sed -n '/^# Seen:$/,/^set /s/^#   //p' "$0") <(echo "$seen")
