"""The fused kernels of Mamba-2's scan. On a GPU they are held against the recurrence (test_gpu.py); here, what they are
called with, and when they are taken."""

import math
import re
import sys
import types
from unittest.mock import Mock

import pytest
import torch
from test_mamba import assert_near, by_token, ssd_inputs, values_and_gradients, with_steps

from common.errors import UserError
from components.mixers.mamba2 import kernels as fused
from components.mixers.mamba2.kernels import choose_backend, ssd_fla
from model_config import ModelArchitectureConfig, resolve_architecture


def simple_gated_linear_attention(q, k, v, g, scale, initial_state, output_final_state):
    """What flash-linear-attention defines, token by token: S <- exp(g) S + k v^T, o = scale q S."""
    batch, length, heads, size = q.shape
    state = q.new_zeros(batch, heads, size, v.shape[-1]) if initial_state is None else initial_state
    outputs = []
    for t in range(length):
        outer = torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        state = g[:, t, :, None, None].exp() * state + outer
        outputs.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    assert output_final_state
    return torch.stack(outputs, dim=1), state


@pytest.fixture
def kernels(monkeypatch):
    """A package of the kernels' name."""
    ops = types.ModuleType("fla.ops.simple_gla")
    ops.chunk_simple_gla = simple_gated_linear_attention
    for name, module in {"fla": types.ModuleType("fla"), "fla.ops": types.ModuleType("fla.ops")}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "fla.ops.simple_gla", ops)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_scan_is_gated_linear_attention(kernels, groups):
    inputs = ssd_inputs(7, groups=groups)
    scan = with_steps(lambda x, decay, B, C, state=None: ssd_fla(x, decay, B, C, 64, state))
    for ours, expected in zip(values_and_gradients(scan, inputs), values_and_gradients(by_token, inputs), strict=True):
        assert_near(ours, expected)
    without_state = [t.detach() for t in inputs[:5]]
    assert_near(scan(*without_state)[0], by_token(*without_state)[0])


def of_backend(backend: str, **keys) -> ModelArchitectureConfig:
    return resolve_architecture({"arch_preset": "mamba2", "n_embd": 64, "mamba_backend": backend, **keys})


CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_what_computes_the_scan_is_said():
    assert choose_backend(resolve_architecture({}), CPU, "float32")[1] is None
    for backend in ("auto", "chunked"):
        for dtype in ("float32", "bfloat16"):
            assert choose_backend(of_backend(backend), CPU, dtype)[1] == "chunked products in PyTorch"
    with pytest.raises(UserError, match="mamba_backend='fla': the fused kernels need a GPU, and the run is on cpu"):
        choose_backend(of_backend("fla"), CPU, "bfloat16")
    with pytest.raises(UserError, match="mamba_backend='flash' is none of: auto, chunked, fla"):
        choose_backend(of_backend("flash"), CPU, "bfloat16")


@pytest.mark.parametrize(
    ("deviation", "failure"),
    [
        (0.001, None),
        (0.3, "fla-core 1.2 is off by 0.3 here"),
        (math.nan, "fla-core 1.2 is off by nan here"),
        (RuntimeError("this GPU is too old\nTraceback"), "fla-core 1.2 does not run here: this GPU is too old"),
    ],
)
def test_auto_takes_kernels_that_run_and_agree(monkeypatch, deviation, failure):
    """In 16 bits: float32 they would round to TF32. What else it takes, it says why."""
    monkeypatch.setattr(fused.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(fused.importlib.metadata, "version", lambda name: "1.2")
    tried = Mock(side_effect=deviation if isinstance(deviation, Exception) else None, return_value=deviation)
    monkeypatch.setattr(fused, "deviation", tried)
    assert choose_backend(of_backend("auto"), GPU, "float32") == ("chunked", "chunked products in PyTorch")
    for dtype in ("bfloat16", "float16"):
        backend, said = choose_backend(of_backend("auto"), GPU, dtype)
        if failure is None:
            assert (backend, said) == ("fla", "fused kernels of fla-core 1.2")
        else:
            assert (backend, said) == ("chunked", f"chunked products in PyTorch ({failure})")
    if failure is not None:
        with pytest.raises(UserError, match=re.escape(f"mamba_backend='fla': {failure}; take auto or chunked")):
            choose_backend(of_backend("fla"), GPU, "bfloat16")


def test_without_the_package_auto_says_what_to_install(monkeypatch):
    monkeypatch.setattr(fused.importlib.util, "find_spec", lambda name: None)
    backend, said = choose_backend(of_backend("auto"), GPU, "bfloat16")
    assert backend == "chunked" and "fla-core is not installed: pip install -e '.[kernels]'" in said


def test_kernels_of_other_chunks_are_not_taken(monkeypatch):
    """The FLOPs are counted in the chunks of the configuration."""
    monkeypatch.setattr(fused.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(fused, "deviation", lambda *arguments: 0.0)
    assert choose_backend(of_backend("auto"), GPU, "bfloat16")[0] == "fla"
    said = "chunked products in PyTorch (the fused kernels have chunks of 64 tokens, and mamba_chunk_size=128)"
    assert choose_backend(of_backend("auto", mamba_chunk_size=128), GPU, "bfloat16") == ("chunked", said)


def test_kernels_without_a_version(monkeypatch):
    """The package is on the path and not installed."""

    def version(name: str) -> str:
        raise fused.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(fused.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(fused.importlib.metadata, "version", version)
    monkeypatch.setattr(fused, "deviation", lambda *arguments: 0.0)
    said = "fused kernels of fla-core of unknown version"
    assert choose_backend(of_backend("auto"), GPU, "bfloat16") == ("fla", said)


def test_what_the_kernels_are_tried_on_tells_right_from_wrong(kernels, monkeypatch):
    """Right ones, and ones that forget a little too fast."""
    assert fused.deviation(of_backend("fla"), CPU, torch.float32) < 1e-4
    right = sys.modules["fla.ops.simple_gla"].chunk_simple_gla
    wrong = lambda q, k, v, g, **rest: right(q, k, v, 1.1 * g, **rest)  # noqa: E731
    monkeypatch.setattr(sys.modules["fla.ops.simple_gla"], "chunk_simple_gla", wrong)
    assert fused.deviation(of_backend("fla"), CPU, torch.float32) > fused.CLOSE
