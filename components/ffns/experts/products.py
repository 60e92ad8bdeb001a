"""What experts make of their tokens: x (N, D), weights (N, k) and chosen (N, k) -> (N, D), the sum over a token's k
experts of weight x expert(x). One readable form, and two fast ones with its gradients.

R = N k rows, a row for each choice; the fast forms have them sorted by expert.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
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
    adapters: tuple[Any, Any, Any] = (None, None, None)  # components.lora, of each of these, which `loop` alone takes


def loop(x: Tensor, weights: Tensor, chosen: Tensor, expert: Expert) -> Tensor:
    """The readable reference: one expert after the other, each with the rows that chose it."""
    y = torch.zeros_like(x, dtype=weights.dtype)
    for index in range(expert.gate[0].shape[0]):
        rows, choice = (chosen == index).nonzero(as_tuple=True)
        xs = x[rows]
        of_gate, of_up, of_down = expert.adapters
        hidden = expert.gated(_linear(xs, expert.gate, index, of_gate), _linear(xs, expert.up, index, of_up))
        met = _linear(hidden, expert.down, index, of_down)
        y = y.index_add(0, rows, weights[rows, choice, None] * met)
    return y


def _linear(x: Tensor, stack: Stack, index: int, adapter: Any) -> Tensor:
    weight, bias = stack
    own_bias = None if bias is None else bias[index]
    y = F.linear(x, weight[index], own_bias)
    return y if adapter is None else adapter(x, y, weight, own_bias, index)


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
# Both fast forms keep what each expert's activation is given, (R, F) twice, and compute the rest again. They cast the
# matrices again, too: copies of all experts' would be many times what a token meets.


class _Segments(torch.autograd.Function):
    """A few experts after others, as the loop, each on rows that lie together; those of as many rows at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, order: Order, expert: Expert, *stacks: Tensor | None) -> Tensor:
        ctx.gated, ctx.counts, hidden = expert.gated, order.counts.tolist(), expert.gate[0].shape[1]
        y, kept = weights.new_zeros(x.shape), x.new_empty(len(order.rows), 2 * hidden)
        tokens, weight = order.tokens, _weights_of(order, weights)
        for group in _groups(ctx.counts, 2 * hidden, x):
            (joined, down), (joined_bias, down_bias) = group.matrices(stacks, x.dtype)
            both = _products(group.of(x, tokens), joined.mT, joined_bias)
            met = _products(expert.gated(*both.chunk(2, -1)), down.mT, down_bias)
            group.put(kept, both)
            group.add(y, tokens, met.to(y.dtype).mul_(group.share(weight)))
        ctx.save_for_backward(x, weights, order.rows, kept, *stacks)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, weights, rows, kept, *stacks = ctx.saved_tensors
        order = Order(rows, torch.tensor(ctx.counts), weights.shape[1])
        tokens, weight = order.tokens, _weights_of(order, weights)
        found = _Gradients(stacks, ctx.needs_input_grad[4:], ctx.counts)
        dx, dweight, dy_in_dtype = torch.zeros_like(x, dtype=dy.dtype), torch.empty_like(weight), dy.to(x.dtype)
        for group in _groups(ctx.counts, kept.shape[1], x):
            (joined, down), (_, down_bias) = group.matrices(stacks, x.dtype)
            xs, dmet, share = group.of(x, tokens), group.of(dy_in_dtype, tokens), group.share(weight).to(x.dtype)
            hidden, inputs = _again(lambda both: ctx.gated(*both.chunk(2, -1)), group.of(kept))
            dhidden = torch.bmm(dmet, down)
            of_weight = (dhidden * hidden.detach()).sum(-1, keepdim=True, dtype=dweight.dtype)
            if down_bias is not None:
                of_weight += (dmet * down_bias).sum(-1, keepdim=True, dtype=dweight.dtype)
            group.put(dweight, of_weight)
            (dboth,), dmet = _through(hidden, inputs, dhidden.mul_(share)), dmet.mul_(share)
            group.add(dx, tokens, torch.bmm(dboth, joined).to(dx.dtype))
            found.of(group, dboth, xs, dmet, hidden.detach())
        return dx.to(x.dtype), _by_token(order, dweight[:, 0], weights.shape), None, None, *found.stacks


_AT_ONCE = 2**21  # numbers that a group's first products are: 4 MB in bfloat16
_ALIKE = 0.85  # times the rows of a group's largest expert, all of it have where rows are padded


@dataclasses.dataclass(frozen=True)
class _Group:
    """Experts, G of them, with as many rows each, C: those that have fewer meet their last one again, and share
    nothing of it."""

    experts: list[int]
    rows: Tensor  # (G, C) of those sorted by expert
    is_own: Tensor | None  # (G, C); None: all are

    def of(self, values: Tensor, places: Tensor | None = None) -> Tensor:
        """What is there of each row (R, n), or at its place -> (G, C, n)."""
        at = self.rows.flatten() if places is None else places[self.rows.flatten()]
        return values.index_select(0, at).view(*self.rows.shape, -1)

    def share(self, weight: Tensor) -> Tensor:
        """(R, 1) -> (G, C, 1), 0 for rows that are not a group's own."""
        found = self.of(weight)
        return found if self.is_own is None else found * self.is_own[..., None]

    def put(self, whole: Tensor, values: Tensor) -> None:
        """(G, C, n) into (R, n)."""
        whole.index_copy_(0, self.rows.flatten(), values.flatten(0, 1))

    def add(self, whole: Tensor, places: Tensor, values: Tensor) -> None:
        """(G, C, n) at the places of rows."""
        whole.index_add_(0, places[self.rows.flatten()], values.flatten(0, 1))

    def matrices(self, stacks: Sequence[Tensor | None], dtype: torch.dtype) -> Any:
        """Those of gate and up as one (G, 2F, D), and of down (G, D, F); and biases (G, 1, n), or None."""
        gate, up, down, *biases = stacks
        joined_bias = None if biases[0] is None else self._together(biases[:2], dtype)[:, None]
        down_bias = None if biases[2] is None else self._together(biases[2:], dtype)[:, None]
        return (self._together([gate, up], dtype), self._together([down], dtype)), (joined_bias, down_bias)

    def _together(self, stacks: Sequence[Any], dtype: torch.dtype) -> Tensor:
        """Of each expert what is its own of the stacks, one below the other: in one pass, with the cast."""
        if len(stacks) == len(self.experts) == 1:
            (e,) = self.experts
            return cast(Tensor, stacks[0][e : e + 1].to(dtype))
        rows = stacks[0].shape[1]
        out = stacks[0].new_empty(len(self.experts), rows * len(stacks), *stacks[0].shape[2:], dtype=dtype)
        for own, e in zip(out, self.experts, strict=True):
            for part, stack in zip(own.split(rows), stacks, strict=True):
                part.copy_(stack[e])
        return out


def _groups(counts: list[int], width: int, like: Tensor) -> Iterator[_Group]:
    """All experts that have rows, those of as many together; where rows are padded, of nearly as many."""
    pads = _pads(like)
    groups: list[list[int]] = []
    for e in sorted((e for e, count in enumerate(counts) if count), key=lambda e: -counts[e]):
        most = counts[groups[-1][0]] if groups else 0
        if counts[e] >= (_ALIKE if pads else 1) * most > 0 and (len(groups[-1]) + 1) * most * width <= _AT_ONCE:
            groups[-1].append(e)
        else:
            groups.append([e])
    starts = [0, *itertools.accumulate(counts)]
    for experts in groups:
        most = counts[experts[0]]
        place = torch.arange(_rounded(most) if pads else most, device=like.device)
        start, count = (torch.tensor([of[e] for e in experts], device=like.device)[:, None] for of in (starts, counts))
        yield _Group(experts, start + place.minimum(count - 1), place < count if pads else None)


def _pads(like: Tensor) -> bool:
    """A CPU compiles a product in two bytes anew for every number of rows (oneDNN), which takes ten times as long."""
    return not like.is_cuda and like.element_size() == 2


def _rounded(count: int) -> int:
    """Up to one of 16 numbers between any power of two and the next."""
    return count + -count % max(1, 2 ** (count.bit_length() - 5))


def _products(x: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
    """(G, C, columns) x (G, columns, rows) -> (G, C, rows)."""
    return torch.bmm(x, matrices) if bias is None else torch.baddbmm(bias, x, matrices)


class _Gradients:
    """Of the stacks that need one: 0 for experts that nobody chose."""

    def __init__(self, stacks: Sequence[Tensor | None], needed: Sequence[bool], counts: list[int]):
        self.stacks = [
            torch.empty_like(cast(Tensor, stack)) if is_needed else None
            for stack, is_needed in zip(stacks, needed, strict=True)
        ]
        idle = [e for e, count in enumerate(counts) if not count]
        for whole, e in itertools.product(self.stacks, idle):
            if whole is not None:
                whole[e].zero_()

    def of(self, group: _Group, dboth: Tensor, xs: Tensor, dmet: Tensor, hidden: Tensor) -> None:
        """Those of a group: (G, C, 2F), (G, C, D), (G, C, D), (G, C, F)."""
        gate, up, down, *biases = self.stacks
        for wholes, left, right in (([gate, up], dboth, xs), ([down], dmet, hidden)):
            if any(whole is not None for whole in wholes):
                self._put(group, wholes, torch.bmm(left.mT, right))
        for wholes, left in ((biases[:2], dboth), (biases[2:], dmet)):
            if any(whole is not None for whole in wholes):
                self._put(group, wholes, left.sum(1, dtype=torch.promote_types(left.dtype, torch.float32)))

    def _put(self, group: _Group, wholes: Sequence[Tensor | None], values: Tensor) -> None:
        for own, e in zip(values, group.experts, strict=True):
            for whole, part in zip(wholes, own.chunk(len(wholes)), strict=True):
                if whole is not None:
                    whole[e].copy_(part)


def _again(gated: Callable[..., Tensor], *given: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the gated FFN makes, with the graph to what it is given."""
    with torch.enable_grad():
        inputs = [one.detach().requires_grad_() for one in given]
        return gated(*inputs), inputs


def _through(hidden: Tensor, inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """The gradients of what `_again` was given. (PyTorch's FLOP counter cannot follow autograd.grad here.)"""
    torch.autograd.backward(hidden, gradient)
    return [cast(Tensor, one.grad) for one in inputs]


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
        gate_of, up_of, down_of, *biases = _cast(stacks, x.dtype)
        xs = x[order.tokens]
        gate, up = (_grouped(xs, stack, bias, order) for stack, bias in ((gate_of, biases[0]), (up_of, biases[1])))
        met = _grouped(expert.gated(gate, up), down_of, biases[2], order)
        ctx.save_for_backward(x, weights, order.rows, gate, up, *stacks)
        return _by_token(order, _weights_of(order, weights) * met, weights.shape).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, weights, rows, gate, up, *stacks = ctx.saved_tensors
        gate_of, up_of, down_of, *biases = _cast(stacks, x.dtype)
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
            F.grouped_mm(left.mT, right, offs=order.ends).to(stack.dtype) if is_needed else None
            for (left, right), is_needed, stack in zip(pairs, needed, stacks, strict=False)
        ]
        for (left, _), bias, is_needed in zip(pairs, stacks[3:], needed[3:], strict=True):
            of_bias = torch.zeros_like(bias) if is_needed else None
            found.append(None if of_bias is None else of_bias.index_add_(0, order.experts, left.to(bias.dtype)))
        return dx.to(x.dtype), _by_token(order, dweight, weights.shape), None, None, *found


def _cast(stacks: Sequence[Tensor | None], dtype: torch.dtype) -> Any:
    return [None if stack is None else stack.to(dtype) for stack in stacks]


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
