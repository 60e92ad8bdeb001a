"""Recounts what can be recounted: the parameters of public checkpoints from their config.json; with PyTorch installed
the parameters and FLOPs of small real models by PyTorch's own counters; and with transformers installed those of every
family, small and of public sizes, by its classes (interop/audit.py).

    python flops_parameter_counting/validate.py
"""

import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

from common.errors import UserError, exit_cleanly
from flops_parameter_counting.costs.model_cost import model_cost
from interop.configurations import FAMILIES, has_room
from interop.model_files import check_can_trace, model_from_values
from interop.samples import PUBLIC, public, small
from model_config import ModelArchitectureConfig, resolve_architecture


@dataclasses.dataclass(frozen=True)
class Check:
    what: str
    counted: int  # by this package
    expected: int  # by somebody else

    @property
    def passed(self) -> bool:
        return self.counted == self.expected


def _gpt2(n_layer: int, n_head: int, n_embd: int) -> dict[str, Any]:
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "n_positions": 1024, "vocab_size": 50257}
    return {"model_type": "gpt2", **sizes}


def _llama(layers: int, heads: int, width: int, d_ff: int, kv_heads: int, vocab_size: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": width,
        "intermediate_size": d_ff,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab_size,
    }


# The sizes in the config.json of public checkpoints (Hugging Face hub: openai-community, meta-llama, Qwen,
# state-spaces, ibm-ai-platform, deepseek-ai), and the parameters that the checkpoints hold, without buffers.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "gpt2": (_gpt2(12, 12, 768), 124_439_808),
    "gpt2-medium": (_gpt2(24, 16, 1024), 354_823_168),
    "llama-2-7b": (_llama(32, 32, 4096, 11008, 32, 32000), 6_738_415_616),
    "llama-2-13b": (_llama(40, 40, 5120, 13824, 40, 32000), 13_015_864_320),
    "llama-3.1-8b": (_llama(32, 32, 4096, 14336, 8, 128256), 8_030_261_248),
    "llama-3.1-70b": (_llama(80, 64, 8192, 28672, 8, 128256), 70_553_706_496),
    "llama-3.1-405b": (_llama(126, 128, 16384, 53248, 8, 128256), 405_853_388_800),
    "qwen2.5-0.5b": (
        {**_llama(24, 14, 896, 4864, 2, 151936), "model_type": "qwen2", "tie_word_embeddings": True},
        494_032_768,
    ),
    "mamba-130m": (
        {"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}, "pad_vocab_size_multiple": 8},
        129_135_360,
    ),
    "mamba2-130m": (
        {
            "d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"},
            "pad_vocab_size_multiple": 16, "tie_embeddings": True,
        },
        128_989_632,
    ),
    "bamba-9b": (
        {
            **_llama(32, 32, 4096, 14336, 8, 128256), "model_type": "bamba", "attn_layer_indices": [9, 18, 27],
            "mamba_n_heads": 128, "mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_groups": 1, "mamba_d_conv": 4,
            "mamba_expand": 2,
        },
        9_780_235_392,
    ),
    "deepseek-v2-lite": (
        {
            **_llama(27, 16, 2048, 10944, 16, 102400), "model_type": "deepseek_v2", "moe_intermediate_size": 1408,
            "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
            "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
            "v_head_dim": 128,
        },
        15_706_484_224,
    ),
}  # fmt: skip

# The same by the keys of a config file of this repository: what train.py builds.
OURS: dict[str, dict[str, Any]] = {
    "mamba-130m": {"arch_preset": "mamba1", "n_layer": 24, "n_embd": 768, "vocab_size": 50280},
    "mamba2-130m": {"arch_preset": "mamba2", "n_layer": 24, "n_embd": 768, "vocab_size": 50288},
    "bamba-9b": {
        "arch_preset": "hybrid", "layer_pattern": 9 * "M" + 2 * ("A" + 8 * "M") + "A" + 4 * "M", "n_layer": 32,
        "n_head": 32, "num_key_value_heads": 8, "n_embd": 4096, "d_ff": 14336, "vocab_size": 128256,
        "weight_tying": False,
    },
}  # fmt: skip
LAYERS = 6  # of public sizes, for an audit: those that repeat would say the same
PUBLISHED_ACTIVE = {"deepseek-v2-lite": 2_661_150_208}  # that a token meets

_SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 61, "attention_backend": "manual"}
SMALL_MODELS: dict[str, dict[str, Any]] = {
    "small gpt2": {**_SMALL, "arch_preset": "gpt2"},
    "small llama": {**_SMALL, "arch_preset": "llama"},
    "small llama3, grouped queries": {**_SMALL, "arch_preset": "llama3", "num_key_value_heads": 2},
}


def published_checks() -> Iterator[Check]:
    """Parameters do not depend on the sequence length, which is 1 here."""
    for name, (values, expected) in PUBLISHED.items():
        cost = model_cost(model_from_values(values, name).architecture, 1)
        yield Check(f"{name}: parameters", cost.n_params, expected)
        if name in PUBLISHED_ACTIVE:
            yield Check(f"{name}: active parameters", cost.n_active, PUBLISHED_ACTIVE[name])
    for name, keys in OURS.items():
        counted = model_cost(resolve_architecture(keys)).n_params
        yield Check(f"{name}, by arch_preset={keys['arch_preset']}: parameters", counted, PUBLISHED[name][1])


def torch_checks() -> Iterator[Check]:
    """Needs PyTorch."""
    for name, keys in SMALL_MODELS.items():
        config = resolve_architecture(keys)
        cost = model_cost(config)
        parameters, flops = _count_with_torch(config)
        yield Check(f"{name}: parameters", cost.n_params, parameters)
        yield Check(f"{name}: training FLOPs", cost.training_flops() * 2 * config.block_size, flops)


def _count_with_torch(config: ModelArchitectureConfig) -> tuple[int, int]:
    """Parameters of the module, and FLOPs of forward and backward over 2 whole sequences."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from model_builder import build_model

    model = build_model(config, seed=0)
    tokens = torch.zeros(2, config.block_size, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    with counter:
        model(tokens).sum().backward()
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops()


def audited() -> Iterator[tuple[str, dict[str, Any]]]:
    """The models of an audit: a small one of every family, and the first layers of those of public sizes, in which all
    kinds of their layers are."""
    yield from ((f"audit of a small {model_type}", small(model_type)) for model_type in FAMILIES)
    sizes = (name for name in PUBLIC if has_room(PUBLIC[name]))
    yield from ((f"audit of {name}, {LAYERS} layers", public(name, LAYERS)) for name in sizes)


def audit_checks() -> Iterator[Check]:
    """Needs transformers."""
    for name, values in audited():
        yield from audit_checks_of(name, values)


def audit_checks_of(name: str, values: dict[str, Any]) -> Iterator[Check]:
    """A line for each sum, and for each part that differs."""
    from interop.audit import audit

    found = audit(values, name)
    for what, parts in found.tables.items():
        compared = {part: counts for part, counts in parts.items() if part not in found.not_compared}
        if what != "active parameters" or found.active != found.parameters:
            yield Check(f"{name}: {what}", *(sum(counts) for counts in zip(*compared.values(), strict=True)))
        yield from (Check(f"{name}: {part} {what}", *both) for part, both in compared.items() if both[0] != both[1])


def validate() -> int:
    """Prints every check with PASS or FAIL; 0 if all passed, else 1."""
    checks = list(published_checks())
    skipped = importlib.util.find_spec("torch") is None
    if not skipped:
        checks += torch_checks()
    not_audited = None
    try:
        check_can_trace("the audit of every family: not made")
        checks += audit_checks()
    except UserError as error:
        not_audited = str(error)
    print(f"{'':<58}{'counted':>20}{'expected':>20}")
    for check in checks:
        verdict = "PASS" if check.passed else "FAIL"
        print(f"{check.what:<58}{check.counted:>20,}{check.expected:>20,}  {verdict}")
    if skipped:
        print("small real models: not checked, PyTorch is not installed")
    if not_audited is not None:
        print(not_audited)
    failed = sum(not check.passed for check in checks)
    print(f"{len(checks) - failed} of {len(checks)} passed")
    return 1 if failed else 0


if __name__ == "__main__":
    exit_cleanly(validate)()
