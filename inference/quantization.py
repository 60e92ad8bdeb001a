"""A model's matrices into few bits, and what each loses by it.

Of 4 bits the nearest code to each element is not the best: with the inputs that a matrix meets known, later columns
make up for what earlier ones lost.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from components.precision import widest
from components.quantized.module import QuantizedMatrix, codes_of, decoded, joined, put, quantized, scales_of
from components.quantized.spec import Form, forms_of
from flops_parameter_counting.costs.model_cost import named_weights
from model_builder import LanguageModel

DAMPING = 0.01  # of the mean of the Hessian's diagonal, added to it


@dataclasses.dataclass(frozen=True)
class Loss:
    """What a matrix lost: of the root of the sum of its squares, and, if the inputs are known that it meets, of its
    outputs' likewise."""

    name: str
    form: Form
    of_matrix: float
    of_outputs: float | None


@torch.no_grad()
def quantize_model(model: LanguageModel, method: str, windows: Sequence[Tensor] = ()) -> Iterator[Loss]:
    """Puts each matrix of the model into its form, block by block, and tells what it lost. `windows` of tokens (B, T)
    are what 4-bit matrices of linear layers are fitted to, each behind the blocks before it as they are by then; none:
    nearest codes."""
    forms = forms_of(method, (one for found in named_weights(model.config) for one in found.weights))
    for block, names in _by_block(forms).items():
        fitted = [name for name in names if forms[name].method == "int4" and _is_linear(model, name)]
        hessians = hessians_of(model, block, fitted, windows) if windows and fitted else {}
        for name in names:
            matrix, hessian = model.get_parameter(name).detach(), hessians.get(name)
            new = quantized(matrix, forms[name]) if hessian is None else gptq(matrix, hessian, forms[name])
            put(model, name, new)
            yield _lost(name, matrix, new, hessian)


def _by_block(forms: Iterable[str]) -> dict[int | None, list[str]]:
    found: dict[int | None, list[str]] = {}
    for name in forms:
        parts = name.split(".")
        found.setdefault(int(parts[1]) if parts[0] == "blocks" else None, []).append(name)
    return found


def _is_linear(model: LanguageModel, name: str) -> bool:
    return isinstance(model.get_submodule(name.removesuffix(".weight")), nn.Linear)


def _lost(name: str, matrix: Tensor, new: QuantizedMatrix, hessian: Tensor | None) -> Loss:
    error = new.dequantized() - matrix
    of_outputs = None if hessian is None else _share(_length(error, hessian), _length(matrix, hessian))
    return Loss(name, new.form, _share(error.norm(), matrix.norm()), of_outputs)


def _share(lost: Tensor, whole: Tensor) -> float:
    """Of nothing nothing is lost."""
    return (lost / whole).item() if whole else 0.0


def _length(matrix: Tensor, hessian: Tensor) -> Tensor:
    """That of the outputs, to the inputs that the Hessian is of."""
    return ((widest(matrix) @ hessian) * widest(matrix)).sum().clamp(min=0).sqrt()


# ---------------------------------------------------------------------------------------------------------------------
# Fitting to inputs


class _Read(Exception):
    """The block that is asked of has been read."""


def hessians_of(
    model: LanguageModel, block: int | None, names: Sequence[str], windows: Iterable[Tensor]
) -> dict[str, Tensor]:
    """By the name of each matrix the sum of x x^T over the inputs x that its layer meets, (columns, columns): half the
    Hessian of the squared error of its outputs, in any row. A layer that is never called has none."""
    found: dict[str, Tensor] = {}
    last: list[Any] = [None, None]  # an input, and its product, which neighbouring layers have in common

    def note(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            if last[0] is not given[0]:
                x = given[0].flatten(0, -2).float()
                last[:] = given[0], widest(x.T @ x)
            found[name] = found.get(name, 0) + last[1]

        return hook

    def stop(*_: Any) -> None:
        raise _Read

    modules = [(name, model.get_submodule(name.removesuffix(".weight"))) for name in names]
    hooks = [module.register_forward_pre_hook(note(name)) for name, module in modules]
    if block is not None:
        hooks.append(model.blocks[block].register_forward_hook(stop))
    try:
        for tokens in windows:
            with contextlib.suppress(_Read):
                model.hidden(tokens.to(model.embedding.weight.device))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def gptq(matrix: Tensor, hessian: Tensor, form: Form) -> QuantizedMatrix:
    """A matrix (rows, columns) to codes, column by column: what a column loses, the columns after it make up for as
    well as they can for inputs with this Hessian (Frantar et al. 2022, GPTQ, algorithm 1). The scales of a group are
    found when its first column is reached."""
    rest, columns, size = widest(matrix).clone(), matrix.shape[1], form.group or matrix.shape[1]
    damped = hessian.clone()
    damped.diagonal().add_(DAMPING * hessian.diagonal().mean() + torch.finfo(torch.float32).tiny)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    importance = hessian.diagonal().float()
    codes, scales = [], []
    for start in range(0, columns, size):
        end = start + size
        scale = scales_of(rest[:, None, start:end].float(), form, importance[start:end])  # (rows, 1)
        errors = torch.empty_like(rest[:, start:end])
        for place in range(start, end):
            code = codes_of(rest[:, place, None, None].float(), scale, form)[:, 0]  # (rows, 1)
            value = widest(decoded(code, form) * scale.float())[:, 0]
            error = (rest[:, place] - value) / inverse[place, place]
            rest[:, place + 1 : end] -= error[:, None] * inverse[place, place + 1 : end]
            errors[:, place - start] = error
            codes.append(code)
        rest[:, end:] -= errors @ inverse[start:end, end:]
        scales.append(scale)
    whole = torch.cat(codes, 1).unflatten(1, (-1, size))
    return QuantizedMatrix(joined(whole, form), torch.cat(scales, 1), form)
