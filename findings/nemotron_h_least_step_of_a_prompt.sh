#!/usr/bin/env bash
# transformers 5.23.0: Nemotron-H's class raises every step of Mamba-2 to time_step_min where it reads a prompt, and not
# where it goes on token by token: a text that is read at once and the same text that is read in steps are two functions
# where a step is smaller. time_step_limit, which bounds the steps in the config.json, is read by nothing in it. Here all
# steps are near 0.0001, and time_step_min is 0.001.
# Seen:
#   at once, and in steps: another function
#   with time_step_min=1e-30: the same
#   with time_step_limit=[0.5, 1.0]: the same as without it
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0
seen=$("$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import torch
from transformers import NemotronHConfig, NemotronHForCausalLM

sizes = dict(hidden_size=32, vocab_size=101, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
sizes |= dict(mamba_num_heads=4, mamba_head_dim=16, n_groups=2, ssm_state_size=8, intermediate_size=48)
sizes |= dict(layers_block_type=["linear_attention", "mlp", "full_attention"], pad_token_id=None)
tokens = torch.arange(24).view(1, 24)


@torch.no_grad()
def logits(in_steps=False, **keys):
    torch.manual_seed(0)
    model = NemotronHForCausalLM(NemotronHConfig(**sizes, **keys)).eval()
    for index, parameter in enumerate(model.parameters()):
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    model.model.layers[0].mixer.dt_bias.fill_(-9.0)
    model.model.layers[0].mixer.in_proj.weight[-4:] = 0.0  # the steps are softplus(dt_bias)
    if not in_steps:
        return model(tokens).logits
    found, cache = [], None
    for token in tokens.split(1, dim=1):
        output = model(token, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(output.logits)
    return torch.cat(found, dim=1)


def compared(one, other):
    return "the same" if (one - other).abs().max() < 1e-4 else "another function"


print("at once, and in steps:", compared(logits(), logits(in_steps=True)))
print("with time_step_min=1e-30:", compared(logits(time_step_min=1e-30), logits(in_steps=True, time_step_min=1e-30)))
print("with time_step_limit=[0.5, 1.0]:", compared(logits(time_step_limit=[0.5, 1.0]), logits()), "as without it")
PYTHON
)
echo "$seen"
diff <(sed -n '/^# Seen:$/,/^set /s/^#   //p' "$0") <(echo "$seen")
