"""Matrices in 8 or 4 bits (components/quantized/spec.py), each as a tensor that stands for a float32 one: where a model
multiplies by it or looks rows up, codes do; wherever else it is read, the matrix that the codes are nearest to."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.quantized.spec import CODE_BITS, Form

FEW_ROWS = 16  # up to so many inputs at once a CPU multiplies by codes as they are; by more, by the matrix
LARGEST = {"int8": 127.0, "int8_dynamic": 127.0, "int4": 7.0, "fp8": 448.0}  # codes; beyond, float8_e4m3fn saturates


class QuantizedMatrix(Tensor):
    """A matrix (..., rows, columns) in `codes`, of which 4-bit ones lie two in a byte, the first in the lower half and
    8 above what it means, and `scales` (..., rows, groups). It takes no gradients; what it multiplies may."""

    codes: Tensor
    scales: Tensor
    form: Form
    _packed: tuple[Tensor, Tensor] | None

    @staticmethod
    def __new__(cls, codes: Tensor, scales: Tensor, form: Form) -> "QuantizedMatrix":
        shape = (*codes.shape[:-1], codes.shape[-1] * 8 // CODE_BITS[form.method])
        new = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32, device=codes.device)
        new.codes, new.scales, new.form, new._packed = codes, scales, form, None
        return new

    # What PyTorch asks of a tensor that has others within it
    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["codes", "scales"], self.form

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, Tensor], context: Any, *_: Any) -> "QuantizedMatrix":
        return cls(inner["codes"], inner["scales"], context)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in HANDLED and isinstance(found := HANDLED[function](*args, **kwargs), Tensor):
            return found
        if function in OF_THE_TENSOR or getattr(function, "__name__", "") in ("__get__", "__set__"):
            with torch._C.DisableTorchFunctionSubclass():  # what it returns is of no other class
                return function(*args, **kwargs)
        return function(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """What comes here was not a call of PyTorch's in Python: a copy that moves, and else the matrix."""
        if function is torch.ops.aten.detach.default or function is torch.ops.aten.alias.default:
            return args[0].moved()
        if function is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") in (None, torch.float32):
            return args[0].moved((kwargs or {}).get("device"))
        return function(*map(_plain, args), **{name: _plain(value) for name, value in (kwargs or {}).items()})

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Of codes and scales, and of what has been made of them for a CPU's products since."""
        made = () if self._packed is None else (one for one in self._packed if one is not self.codes)
        return self.codes.nbytes + self.scales.nbytes + sum(one.nbytes for one in made)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"QuantizedMatrix({tuple(self.shape)}, {self.form})"

    def moved(self, device: Any = None) -> "QuantizedMatrix":
        """The same, on a device."""
        codes, scales = (self.codes, self.scales) if device is None else (self.codes.to(device), self.scales.to(device))
        return QuantizedMatrix(codes, scales, self.form)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix."""
        return dequantized(self.codes, self.scales, self.form).to(dtype)

    def rows(self, index: Tensor) -> Tensor:
        """Those of a table, in float32."""
        return dequantized(self.codes[index], self.scales[index], self.form)

    def product(self, x: Tensor) -> Tensor:
        """x (..., columns) -> (..., rows)."""
        if x.requires_grad and torch.is_grad_enabled():
            return cast(Tensor, _Product.apply(x, self))
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        dtype, count = _compute_dtype(x), math.prod(x.shape[:-1])
        if self.form.method == "int8_dynamic" and x.device.type == "cpu":  # a GPU's takes some shapes only
            return dynamic_product(x, self.codes, self.scales[:, 0])
        if x.device.type != "cpu" or not 0 < count <= FEW_ROWS or not self._has_product:
            return F.linear(x.to(dtype), self.dequantized(dtype))
        narrow = x.reshape(count, -1).bfloat16()
        if self._packed is None:
            self._packed = packed(self.codes, self.scales, self.form)
        if self.form.method == "int8":
            y = torch._weight_int8pack_mm(narrow, *self._packed)
        else:
            codes, scales = self._packed
            y = torch._weight_int4pack_mm_for_cpu(narrow, codes, x.shape[-1] // scales.shape[0], scales)
        return y.to(dtype).view(*x.shape[:-1], -1)

    @property
    def _has_product(self) -> bool:
        """Whether PyTorch multiplies by such codes on a CPU, which it does in tiles, and surely of whole ones."""
        rows, columns = self.shape
        return self.form.method in ("int8", "int4") and rows % 16 == 0 and columns % 32 == 0


class _Product(torch.autograd.Function):
    """Of what is trained below a frozen matrix: the matrix is made anew backward, and not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: QuantizedMatrix) -> Tensor:
        ctx.weight, ctx.dtype = weight, x.dtype
        dtype = _compute_dtype(x)
        return F.linear(x.to(dtype), weight.dequantized(dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient @ ctx.weight.dequantized(gradient.dtype)).to(ctx.dtype), None


# ---------------------------------------------------------------------------------------------------------------------
# Codes


def quantized(matrix: Tensor, form: Form) -> QuantizedMatrix:
    """A matrix (..., rows, columns), each element to its nearest code. Of int4 the scale of a group is that of several
    smaller than its largest element asks for, with the least error: a few large elements are worth cutting."""
    grouped = _grouped(matrix.float(), form)
    scales = scales_of(grouped, form)
    return QuantizedMatrix(joined(codes_of(grouped, scales, form), form), scales, form)


SHRINKS = torch.linspace(0.6, 1.05, 19)


def scales_of(grouped: Tensor, form: Form, importance: Tensor | None = None) -> Tensor:
    """Groups (..., rows, groups, columns of a group) -> their scales (..., rows, groups). `importance` (groups, columns
    of a group) weighs squared errors; None: all alike."""
    largest = grouped.abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny * 1e6) / LARGEST[form.method]
    if form.method != "int4":
        return largest
    best, least = largest.to(torch.bfloat16), torch.full_like(largest, math.inf)
    for shrink in SHRINKS.tolist():
        scales = (largest * shrink).to(torch.bfloat16)
        errors = (decoded(codes_of(grouped, scales, form), form) * scales.float()[..., None] - grouped).square()
        error = (errors if importance is None else errors * importance).sum(-1)
        best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
    return best


def codes_of(grouped: Tensor, scales: Tensor, form: Form) -> Tensor:
    """Elements and the scale of each group -> their codes, not yet two in a byte, of the groups' shape."""
    exact = grouped / scales.float()[..., None]
    if form.method == "fp8":
        return exact.clamp(-LARGEST["fp8"], LARGEST["fp8"]).to(torch.float8_e4m3fn)
    if form.method != "int4":
        return exact.round().clamp(-127, 127).to(torch.int8)
    return (exact.round().clamp(-8, 7) + 8).to(torch.uint8)


def decoded(codes: Tensor, form: Form) -> Tensor:
    """What codes mean, in float32, without their scale."""
    return codes.float() - 8 if form.method == "int4" else codes.float()


def joined(codes: Tensor, form: Form) -> Tensor:
    """Codes (..., rows, groups, columns of a group) -> (..., rows, columns), or, of 4 bits, half as many bytes."""
    flat = codes.flatten(-2)
    return flat[..., 0::2] | flat[..., 1::2] << 4 if form.method == "int4" else flat


def dequantized(codes: Tensor, scales: Tensor, form: Form) -> Tensor:
    """Codes as they are kept, and scales -> the matrix, in float32."""
    if form.method == "int4":
        codes = torch.stack((codes & 15, codes >> 4), -1).flatten(-2)
    return decoded(_grouped(codes, form), form).mul_(scales.float()[..., None]).flatten(-2)


def _grouped(matrix: Tensor, form: Form) -> Tensor:
    return matrix.unflatten(-1, (-1, form.group or matrix.shape[-1]))


def packed(codes: Tensor, scales: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """As PyTorch's products for a CPU take codes and scales."""
    if form.method == "int8":
        return codes, scales[:, 0].bfloat16()
    whole = torch.stack((codes & 15, codes >> 4), -1).flatten(-2).int()
    zeros = torch.stack((scales, torch.zeros_like(scales)), -1).transpose(0, 1).contiguous()
    return torch._convert_weight_to_int4pack_for_cpu(whole, 1), zeros


def dynamic_product(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """x (..., columns), each row of which gets a scale and codes of 8 bits of its own, times codes (rows, columns) with
    scales (rows,), in integers (Dettmers et al. 2022, LLM.int8(), section 2.1) -> (..., rows)."""
    flat = x.reshape(-1, x.shape[-1]).float()
    of_rows = flat.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny * 1e6) / 127
    product = torch._int_mm((flat / of_rows).round().to(torch.int8), codes.t())
    return (product.float() * of_rows * scales).to(_compute_dtype(x)).view(*x.shape[:-1], len(codes))


# ---------------------------------------------------------------------------------------------------------------------
# What PyTorch does with one


def _linear(x: Tensor, weight: Any, bias: Tensor | None = None) -> Any:
    if not isinstance(weight, QuantizedMatrix) or weight.ndim != 2:
        return None
    y = weight.product(x)
    return y if bias is None else y + bias.type_as(y)


def _embedding(index: Tensor, weight: Any, *_: Any, **__: Any) -> Any:
    return weight.rows(index) if isinstance(weight, QuantizedMatrix) else None


def _of_stack(stack: Any, index: Any) -> Any:
    """One of several matrices is one, too."""
    if not isinstance(stack, QuantizedMatrix) or stack.ndim != 3 or not isinstance(index, int):
        return None
    return QuantizedMatrix(stack.codes[index], stack.scales[index], stack.form)


def _empty_like(matrix: Any, device: Any = None, **_: Any) -> Any:
    """What `to_empty` asks for."""
    if not isinstance(matrix, QuantizedMatrix):
        return None
    codes, scales = (torch.empty_like(one, device=device) for one in (matrix.codes, matrix.scales))
    return QuantizedMatrix(codes, scales, matrix.form)


def _new_zeros(matrix: Any, *size: Any, **_: Any) -> Any:
    """As mixers make caches, which need no elements of it."""
    return torch.zeros(*size, device=matrix.device) if isinstance(matrix, QuantizedMatrix) else None


HANDLED: dict[Any, Any] = {
    Tensor.new_zeros: _new_zeros,
    F.linear: _linear,
    F.embedding: _embedding,
    Tensor.__getitem__: _of_stack,
    torch.empty_like: _empty_like,
}
OF_THE_TENSOR = {  # what holds of one as of any tensor
    Tensor.detach, Tensor.requires_grad_, Tensor.size, Tensor.dim, Tensor.numel, Tensor.to, Tensor.element_size,
    Tensor.is_floating_point, Tensor.is_complex, Tensor.__repr__, Tensor.data_ptr, Tensor.stride, Tensor.is_contiguous,
    Tensor.__hash__, Tensor.__len__, Tensor.dim_order, Tensor.untyped_storage,
}  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, QuantizedMatrix):
        return value.dequantized()
    return type(value)(map(_plain, value)) if isinstance(value, list | tuple) else value


def _compute_dtype(x: Tensor) -> torch.dtype:
    device: Any = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


# ---------------------------------------------------------------------------------------------------------------------
# Of a model

PARTS = ("codes", "scales")


def flat(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under their names; each quantized matrix as its parts: `NAME.int4.codes` and `NAME.int4.scales`."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, QuantizedMatrix):
            found |= {f"{name}.{tensor.form.method}.{part}": getattr(tensor, part) for part in PARTS}
        else:
            found[name] = tensor
    return found


def method_of(tensors: Mapping[str, Tensor]) -> str | None:
    """The method by which a model's tensors were quantized; None where none was. Of int4 some take int8."""
    found = {one.form.method for one in tensors.values() if isinstance(one, QuantizedMatrix)}
    return "int4" if "int4" in found else next(iter(found), None)


def adopt(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives a model the quantized matrices, still empty, that a checkpoint has: tensors by their names in it."""
    for name, codes in tensors.items():
        whole, _, part = name.rpartition(".")
        place, _, method = whole.rpartition(".")
        if part != "codes" or method not in CODE_BITS:
            continue
        scales = tensors[f"{whole}.scales"]
        groups = scales.shape[-1]
        columns = codes.shape[-1] * 8 // CODE_BITS[method]
        put(model, place, empty(model.get_parameter(place), Form(method, None if groups == 1 else columns // groups)))


def empty(like: Tensor, form: Form) -> QuantizedMatrix:
    """Of the shape of a matrix, on its device, with codes and scales that mean nothing yet."""
    *copies, columns = like.shape
    groups = 1 if form.group is None else columns // form.group
    kind = {"int4": torch.uint8, "fp8": torch.float8_e4m3fn}.get(form.method, torch.int8)
    scale = torch.bfloat16 if form.method == "int4" else torch.float32
    codes = torch.empty(*copies, columns * CODE_BITS[form.method] // 8, dtype=kind, device=like.device)
    return QuantizedMatrix(codes, torch.empty(*copies, groups, dtype=scale, device=like.device), form)


def put(model: nn.Module, name: str, matrix: Tensor) -> None:
    """A matrix in place of a parameter, which gets no gradients."""
    module, _, own = name.rpartition(".")
    setattr(model.get_submodule(module), own, nn.Parameter(matrix, requires_grad=False))
