"""What experts make of their tokens: x (N, D), weights (N, k) and chosen (N, k) -> (N, D), the sum over a token's k
experts of weight x expert(x). One readable form, and two fast ones with its gradients.

R = N k rows, a row for each choice; the fast forms have them sorted by expert.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from common.errors import UserError
from components.ffns.experts.spec import OWN_MULTIPLE

Stack = tuple[Tensor, Tensor | None]  # matrices (E, rows, columns), and biases (E, rows)


@dataclasses.dataclass(frozen=True)
class Expert:
    """The gated FFN that every expert is, with the matrices of all."""

    gated: Callable[[Tensor, Tensor], Tensor]  # of what gate and up give, elementwise
    gate: Stack  # (E, F, D)
    up: Stack
    down: Stack  # (E, D, F)


def loop(x: Tensor, weights: Tensor, chosen: Tensor, expert: Expert) -> Tensor:
    """The readable reference: one expert after the other, each with the rows that chose it."""
    y = torch.zeros_like(x, dtype=weights.dtype)
    for index in range(expert.gate[0].shape[0]):
        rows, choice = (chosen == index).nonzero(as_tuple=True)
        xs = x[rows]
        hidden = expert.gated(_linear(xs, expert.gate, index), _linear(xs, expert.up, index))
        met = _linear(hidden, expert.down, index)
        y = y.index_add(0, rows, weights[rows, choice, None] * met)
    return y


def _linear(x: Tensor, stack: Stack, index: int) -> Tensor:
    weight, bias = stack
    return F.linear(x, weight[index], None if bias is None else bias[index])


@dataclasses.dataclass(frozen=True)
class Order:
    """Rows sorted by expert."""

    rows: Tensor  # (R,) of the choices, of which each token has k one after the other
    counts: Tensor  # (E,)
    per_token: int

    @property
    def ends(self) -> Tensor:
        """(E,), after the last row of each expert, as grouped_mm takes them."""
        return self.counts.cumsum(0).to(torch.int32)

    @property
    def experts(self) -> Tensor:
        """(R,), whose rows they are."""
        every = torch.arange(len(self.counts), device=self.rows.device)
        return every.repeat_interleave(self.counts, output_size=len(self.rows))

    @property
    def tokens(self) -> Tensor:
        """(R,), the tokens that they are rows of."""
        return self.rows.div(self.per_token, rounding_mode="floor")


def sorted_by_expert(chosen: Tensor, n_experts: int) -> Order:
    return Order(chosen.flatten().argsort(stable=True), counts_of(chosen, n_experts), chosen.shape[1])


def counts_of(chosen: Tensor, n_experts: int) -> Tensor:
    """(N, k) -> (E,), how often each expert is chosen."""
    flat = chosen.flatten()
    return flat.new_zeros(n_experts).scatter_add(0, flat, torch.ones_like(flat))


def _weights_of(order: Order, weights: Tensor) -> Tensor:
    """(N, k) -> (R, 1)."""
    return weights.flatten()[order.rows, None]


# ---------------------------------------------------------------------------------------------------------------------
# Both fast forms keep what each expert's activation is given, (R, F) twice, and compute the rest again


class _Segments(torch.autograd.Function):
    """One expert after the other, as the loop, but each on rows that lie together: what is between the products stays
    in the processor's cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, order: Order, expert: Expert, *stacks: Tensor | None) -> Tensor:
        ctx.gated, ctx.counts = expert.gated, order.counts.tolist()
        ctx.dtypes = [None if stack is None else stack.dtype for stack in stacks]
        gate_of, up_of, down_of, *biases = cast = _cast(stacks, x.dtype)
        y, hidden = weights.new_zeros(x.shape), gate_of.shape[1]
        gate, up = (x.new_empty(len(order.rows), hidden) for _ in range(2))
        tokens, weight = order.tokens, _weights_of(order, weights)
        for e, own in _segments(ctx.counts):
            count, bias = own.stop - own.start, [None if one is None else one[e] for one in biases]
            xs = _padded(x.index_select(0, tokens[own]))
            inputs = F.linear(xs, gate_of[e], bias[0]), F.linear(xs, up_of[e], bias[1])
            met = F.linear(expert.gated(*inputs), down_of[e], bias[2])
            gate[own], up[own] = (one[:count] for one in inputs)
            y.index_add_(0, tokens[own], weight[own] * met[:count])
        ctx.save_for_backward(x, weights, order.rows, gate, up, *cast)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, weights, rows, gate, up, gate_of, up_of, down_of, *biases = ctx.saved_tensors
        order, needed = Order(rows, torch.tensor(ctx.counts), weights.shape[1]), ctx.needs_input_grad[4:]
        tokens, weight = order.tokens, _weights_of(order, weights)
        found = [
            torch.empty(stack.shape, dtype=dtype, device=x.device) if is_needed else None
            for stack, dtype, is_needed in zip((gate_of, up_of, down_of, *biases), ctx.dtypes, needed, strict=True)
        ]
        for whole, e in itertools.product(found, [e for e, count in enumerate(ctx.counts) if not count]):
            if whole is not None:
                whole[e].zero_()
        dx, dweight, dy_in_dtype = torch.zeros_like(x, dtype=dy.dtype), torch.empty_like(weight), dy.to(x.dtype)
        for e, own in _segments(ctx.counts):
            count, share = own.stop - own.start, _padded(weight[own], like=x)
            xs, dmet = (_padded(one.index_select(0, tokens[own])) for one in (x, dy_in_dtype))
            dweighted = torch.mul(dmet, share, out=torch.empty_like(dmet))
            hidden, inputs = _again(ctx.gated, _padded(gate[own]), _padded(up[own]))
            dhidden = dmet @ down_of[e]
            dweight[own] = (dhidden * hidden.detach())[:count].sum(-1, keepdim=True, dtype=dweight.dtype)
            if biases[2] is not None:
                dweight[own] += (dmet[:count] * biases[2][e]).sum(-1, keepdim=True)
            dgate, dup = _through(hidden, inputs, dhidden * share.to(x.dtype))
            dxs = torch.addmm(dgate @ gate_of[e], dup, up_of[e])
            dx.index_add_(0, tokens[own], dxs[:count].to(dx.dtype))
            pairs = ((dgate, xs), (dup, xs), (dweighted, hidden.detach()))
            for whole, (left, right) in zip(found[:3], pairs, strict=True):
                if whole is not None:
                    _into(whole[e], left.T, right)
            for whole, (left, _) in zip(found[3:], pairs, strict=True):
                if whole is not None:
                    whole[e] = left.sum(0, dtype=whole.dtype)
        return dx.to(x.dtype), _by_token(order, dweight[:, 0], weights.shape), None, None, *found


def _cast(stacks: Sequence[Tensor | None], dtype: torch.dtype) -> Any:
    return [None if stack is None else stack.to(dtype) for stack in stacks]


def _segments(counts: list[int]) -> Any:
    """Every expert that has rows, and which."""
    start = 0
    for e, count in enumerate(counts):
        if count:
            yield e, slice(start, start + count)
        start += count


def _padded(rows: Tensor, like: Tensor | None = None) -> Tensor:
    """With rows of zeros up to one of 16 numbers between any power of two and the next, where the processor would
    compile a product for every number of rows (oneDNN: those in two bytes), which takes ten times as long."""
    dtype, count = (rows if like is None else like).dtype, len(rows)
    if rows.is_cuda or dtype in (torch.float32, torch.float64):
        return rows
    step = max(1, 2 ** (count.bit_length() - 5))
    more = -count % step
    return torch.cat((rows, rows.new_zeros(more, rows.shape[1]))) if more else rows


def _again(gated: Callable[..., Tensor], *given: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the gated FFN makes, with the graph to what it is given."""
    with torch.enable_grad():
        inputs = [one.detach().requires_grad_() for one in given]
        return gated(*inputs), inputs


def _through(hidden: Tensor, inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """The gradients of what `_again` was given. (PyTorch's FLOP counter cannot follow autograd.grad here.)"""
    torch.autograd.backward(hidden, gradient)
    return [cast(Tensor, one.grad) for one in inputs]


def _into(out: Tensor, left: Tensor, right: Tensor) -> None:
    """The product, where `out` may be wider than its factors."""
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(left @ right)


def _by_token(order: Order, of_rows: Tensor, shape: torch.Size) -> Tensor:
    """(R, ...) of the sorted rows -> (N, k, ...)."""
    return torch.empty_like(of_rows).index_copy_(0, order.rows, of_rows).view(*shape, *of_rows.shape[1:])


def _flat(expert: Expert) -> list[Tensor | None]:
    stacks = (expert.gate, expert.up, expert.down)
    return [stack[0] for stack in stacks] + [stack[1] for stack in stacks]


@torch.compiler.disable
def segments(x: Tensor, weights: Tensor, chosen: Tensor, expert: Expert) -> Tensor:
    order = sorted_by_expert(chosen, expert.gate[0].shape[0])
    return _Segments.apply(x, weights, order, expert, *_flat(expert))


class _Grouped(torch.autograd.Function):
    """One product for all experts, which a GPU computes at once; the processor is told nothing of the counts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, order: Order, expert: Expert, *stacks: Tensor | None) -> Tensor:
        ctx.gated, ctx.counts = expert.gated, order.counts
        ctx.dtypes = [None if stack is None else stack.dtype for stack in stacks]
        gate_of, up_of, down_of, *biases = cast = _cast(stacks, x.dtype)
        xs = x[order.tokens]
        gate, up = (_grouped(xs, stack, bias, order) for stack, bias in ((gate_of, biases[0]), (up_of, biases[1])))
        met = _grouped(expert.gated(gate, up), down_of, biases[2], order)
        ctx.save_for_backward(x, weights, order.rows, gate, up, *cast)
        return _by_token(order, _weights_of(order, weights) * met, weights.shape).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, weights, rows, gate, up, gate_of, up_of, down_of, *biases = ctx.saved_tensors
        order, needed = Order(rows, ctx.counts, weights.shape[1]), ctx.needs_input_grad[4:]
        tokens, weight = order.tokens, _weights_of(order, weights)
        xs, dmet = x[tokens], dy[tokens]
        dweighted = (weight * dmet).to(x.dtype)
        hidden, inputs = _again(ctx.gated, gate, up)
        dhidden = _grouped(dmet.to(x.dtype), down_of.mT, None, order)
        dweight = (dhidden * hidden.detach()).sum(-1, dtype=weight.dtype)
        if biases[2] is not None:
            dweight += (dmet * biases[2][order.experts]).sum(-1)
        dgate, dup = _through(hidden, inputs, dhidden * weight.to(x.dtype))
        dxs = _grouped(dgate, gate_of.mT, None, order) + _grouped(dup, up_of.mT, None, order)
        dx = _by_token(order, dxs.to(dy.dtype), weights.shape).sum(1)
        pairs = ((dgate, xs), (dup, xs), (dweighted, hidden.detach()))
        found = [
            F.grouped_mm(left.mT, right, offs=order.ends).to(dtype) if is_needed else None
            for (left, right), is_needed, dtype in zip(pairs, needed, ctx.dtypes, strict=False)
        ]
        for (left, _), bias, is_needed, dtype in zip(pairs, biases, needed[3:], ctx.dtypes[3:], strict=True):
            of_bias = torch.zeros(bias.shape, dtype=dtype, device=x.device) if is_needed else None
            found.append(None if of_bias is None else of_bias.index_add_(0, order.experts, left.to(dtype)))
        return dx.to(x.dtype), _by_token(order, dweight, weights.shape), None, None, *found


def _grouped(rows: Tensor, stack: Tensor, bias: Tensor | None, order: Order) -> Tensor:
    """(R, columns) x (E, rows, columns) -> (R, rows), each row with its expert's matrix."""
    y = F.grouped_mm(rows, stack.mT, offs=order.ends)
    return y if bias is None else y + bias[order.experts]


def grouped(x: Tensor, weights: Tensor, chosen: Tensor, expert: Expert) -> Tensor:
    if not HAS_GROUPED:
        raise UserError(f"experts_backend='grouped': PyTorch {torch.__version__} has no grouped_mm; take segments")
    order = sorted_by_expert(chosen, expert.gate[0].shape[0])
    return _Grouped.apply(x, weights, order, expert, *_flat(expert))


HAS_GROUPED = hasattr(F, "grouped_mm")


def best(x: Tensor, weights: Tensor, chosen: Tensor, expert: Expert) -> Tensor:
    """Grouped products where the device has a kernel of them, which is in bfloat16 on GPUs since Ampere."""
    has_kernel = x.is_cuda and x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) >= (8, 0)
    is_aligned = not any(size % OWN_MULTIPLE for size in expert.gate[0].shape[1:])
    return (grouped if HAS_GROUPED and has_kernel and is_aligned else segments)(x, weights, chosen, expert)


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, Expert], Tensor]] = {
    "auto": best,
    "loop": loop,
    "segments": segments,
    "grouped": grouped,
}
