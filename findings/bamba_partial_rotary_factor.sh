#!/usr/bin/env bash
# transformers 5.23.0: BambaConfig(partial_rotary_factor=1.0) rotates half of each head, without a word. The argument,
# and a config.json that says so at its top level, is replaced by 0.5; only one inside rope_parameters is kept.
# LlamaConfig keeps the same argument. Beside it, the dictionary that the caller passes as rope_parameters is changed.
# Seen:
#   Bamba, argument: 0.5
#   Llama, argument: 0.25
#   Bamba, in rope_parameters: 1.0
#   the caller's dictionary has gained: partial_rotary_factor
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.23.0
seen=$("$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
from transformers import BambaConfig, LlamaConfig

factor = "partial_rotary_factor"
print("Bamba, argument:", BambaConfig(partial_rotary_factor=1.0).rope_parameters[factor])
print("Llama, argument:", LlamaConfig(partial_rotary_factor=0.25).rope_parameters[factor])
inside = {"rope_type": "default", "rope_theta": 1e4, factor: 1.0}
print("Bamba, in rope_parameters:", BambaConfig(rope_parameters=inside).rope_parameters[factor])
given = {"rope_type": "default", "rope_theta": 1e4}
BambaConfig(rope_parameters=given)
print("the caller's dictionary has gained:", *sorted(given.keys() - {"rope_type", "rope_theta"}))
PYTHON
)
echo "$seen"
diff <(sed -n '/^# Seen:$/,/^set /s/^#   //p' "$0") <(echo "$seen")
