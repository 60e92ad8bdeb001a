"""Mamba-2's scan in fused kernels for a GPU: those of flash-linear-attention (Yang and Zhang 2024), the extra
`kernels`.

Its simple gated linear attention, state <- exp(g) state + k v^T, y = q state, is the scan with q = C, k = B, v = x
and g = decay. The kernels have chunks of their own, of FUSED_CHUNK tokens, and every head has its own q and k: those of
a group are repeated for each of its heads. Products of float32 inputs are made in TF32.
"""

import importlib.metadata
import importlib.util

import torch
from torch import Tensor

from common.errors import UserError
from components.mixers.mamba2.scan import ssd_chunked
from components.mixers.mamba2.spec import FUSED_CHUNK
from components.precision import wide
from components.registry import Choice, module, register_choice, register_module, spec
from model_config import ModelArchitectureConfig

PACKAGE = "fla-core"
IN_PYTORCH = "chunked products in PyTorch"
CLOSE = 0.02  # of the norm, to the reference: 16-bit kernels round some ten times, by 2^-9 at most

register_module("mamba_backend", "auto", "chunked")(ssd_chunked)


@register_module("mamba_backend", "fla")
def ssd_fla(
    x: Tensor, decay: Tensor, B: Tensor, C: Tensor, chunk_size: int, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x (B, T, H, P), decay (B, T, H), B and C (B, T, G, N) -> y (B, T, H, P) and the final state (B, H, P, N), as
    `ssd_chunked`, but in chunks of FUSED_CHUNK, by the kernels of flash-linear-attention (Yang and Zhang 2024).

        state[t] = exp(decay[t]) state[t - 1] + B[t] x[t]^T,  y[t] = C[t] state[t]
    """
    from fla.ops.simple_gla import chunk_simple_gla  # seconds, and only who has a GPU needs it

    shared_by = x.shape[2] // B.shape[2]  # heads of a group
    y, state = chunk_simple_gla(
        q=C.repeat_interleave(shared_by, dim=2),  # (B, T, H, N)
        k=B.repeat_interleave(shared_by, dim=2),
        v=x.type_as(C),  # (B, T, H, P)
        g=wide(decay),  # (B, T, H)
        scale=1.0,
        initial_state=None if initial_state is None else wide(initial_state).mT.contiguous(),  # (B, H, N, P)
        output_final_state=True,
    )
    return y.type_as(C), wide(state).mT


@register_choice
def choose(config: ModelArchitectureConfig, device: torch.device, dtype: str) -> Choice:
    backend, words = choose_backend(config, device, dtype)
    return Choice("mamba_backend", backend, words, heading="Scan", log_field="mamba_scan")


def choose_backend(config: ModelArchitectureConfig, device: torch.device, dtype: str) -> tuple[str, str | None]:
    """The backend of a run's Mamba-2 layers in place of `auto`, and what computes their scans, in words: None without
    such layers.

    `auto` takes the fused kernels on a GPU in 16 bits, where they run and agree with the reference. Raises UserError
    where `mamba_backend='fla'` cannot run.
    """
    wanted = config.mamba_backend
    module("mamba_backend", wanted)  # an unknown name is an error
    if not config.layers_with(spec("mixer", "mamba2").letter):
        return wanted, None
    if wanted not in ("auto", "fla"):
        return wanted, IN_PYTORCH if wanted == "chunked" else wanted
    if wanted == "auto" and (device.type != "cuda" or dtype == "float32"):  # float32 they would round to TF32
        return "chunked", IN_PYTORCH
    failure = why_not(config, device, dtype)
    if failure is None:
        return "fla", f"fused kernels of {installed()}"
    if wanted == "fla":
        raise UserError(f"mamba_backend='fla': {failure}; take auto or chunked")
    return "chunked", f"{IN_PYTORCH} ({failure})"


def why_not(config: ModelArchitectureConfig, device: torch.device, dtype: str) -> str | None:
    """Why the fused kernels cannot compute this model's scans, in words; None if they can. It tries, on a few tokens,
    forward and backward."""
    if device.type != "cuda":
        return f"the fused kernels need a GPU, and the run is on {device.type}"
    if config.mamba_chunk_size != FUSED_CHUNK:
        return f"the fused kernels have chunks of {FUSED_CHUNK} tokens, and mamba_chunk_size={config.mamba_chunk_size}"
    if any(importlib.util.find_spec(name) is None for name in ("fla", "triton")):
        return f"{PACKAGE} is not installed: pip install -e '.[kernels]'"
    try:
        error = deviation(config, device, getattr(torch, dtype))
    except Exception as refusal:  # whatever a version of the kernels meets on a GPU or a compiler that it does not know
        return f"{installed()} does not run here: {_first_line(refusal)}"
    return None if error < CLOSE else f"{installed()} is off by {error:.2g} here"  # so is what is no number


def installed() -> str:
    """The package and its version, which only an installed one has, and not one on the path."""
    try:
        return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{PACKAGE} of unknown version"


def deviation(config: ModelArchitectureConfig, device: torch.device, dtype: torch.dtype) -> float:
    """How far the kernels' output and gradients lie from the chunked products' in float32 of the same inputs: the
    largest relative distance, by the norm."""
    mixer = spec("mixer", "mamba2")
    heads, groups = mixer.heads(config), config.mamba_n_groups
    generator = torch.Generator().manual_seed(0)
    width, state = config.mamba_head_dim, mixer.state(config)
    shapes = {"x": (1, 100, heads, width), "dt": (1, 100, heads), "A": (heads,)}
    shapes |= dict.fromkeys(("B", "C"), (1, 100, groups, state))
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    drawn |= {"dt": 0.1 * drawn["dt"].exp(), "A": -drawn["A"].exp()}
    rounded = {name: values.to(device, dtype if name in "xBC" else None) for name, values in drawn.items()}

    def results(scan: object, inputs: list[Tensor]) -> list[Tensor]:
        x, dt, A, B, C = (t.requires_grad_() for t in inputs)
        y, _ = scan(x * dt[..., None], dt * A, B, C, FUSED_CHUNK)  # type: ignore[operator]
        return [y, *torch.autograd.grad(y.float().square().sum(), inputs)]

    ours = results(ssd_fla, [t.detach().clone() for t in rounded.values()])
    expected = results(ssd_chunked, [t.detach().float() for t in rounded.values()])
    pairs = zip(ours, expected, strict=True)
    return max(((a.float() - b).norm() / b.norm()).item() for a, b in pairs)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
