"""The head and its loss in one: the numbers of the plain way, in a fraction of its memory."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from components.heads import cross_entropy
from components.heads.cross_entropy import each_cross_entropy, linear_cross_entropy
from components.heads.spec import CHUNK_BYTES, IGNORED


def plain(hidden, weight, targets):
    return F.cross_entropy(F.linear(hidden, weight).flatten(0, -2).float(), targets.flatten())


def mean_loss(hidden, weight, targets, cap=None):
    return linear_cross_entropy(hidden, weight, targets, cap) / targets.numel()


def inputs(batch=3, length=17, width=24, vocabulary=101, dtype=torch.float32):
    torch.manual_seed(0)
    hidden = torch.randn(batch, length, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(vocabulary, (batch, length))


def value_and_gradients(function, hidden, weight, targets):
    loss = function(hidden, weight, targets)
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


def relative_error(value, expected):
    return ((value.double() - expected.double()).norm() / expected.double().norm()).item()


@settings(max_examples=60)
@given(
    batch=st.integers(1, 4),
    length=st.integers(1, 9),
    width=st.integers(1, 9),
    vocabulary=st.integers(2, 40),
    rows_per_chunk=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    cap=st.sampled_from([None, 0.5, 30.0]),
)
def test_value_and_gradients_are_those_of_the_plain_way(batch, length, width, vocabulary, rows_per_chunk, dtype, cap):
    """Against float64 throughout, to what the float32 softmax has of precision. Any number of chunks, the last one
    short or not."""
    arguments = inputs(batch, length, width, vocabulary, dtype)
    hidden, weight, targets = arguments
    logits = F.linear(hidden.double(), weight.double()).flatten(0, -2)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    loss = F.cross_entropy(logits, targets.flatten())
    expected = (loss.detach(), *torch.autograd.grad(loss, (hidden, weight)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "loss_rows", lambda *shape: rows_per_chunk)
        values = value_and_gradients(functools.partial(mean_loss, cap=cap), *arguments)
    for value, exact in zip(values, expected, strict=True):
        torch.testing.assert_close(value.double(), exact.double(), rtol=1e-5, atol=1e-6)


def test_the_loss_is_a_float32_scalar_and_gradients_have_their_tensors_dtype():
    hidden, weight, targets = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        loss = mean_loss(hidden, weight, targets)
    loss.backward()
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize("rows_per_chunk", [7, 1000])
def test_under_autocast_it_is_as_close_to_the_truth_as_the_plain_way(rows_per_chunk, monkeypatch):
    """bfloat16 keeps 8 bits; the two round in different orders, so they are compared by their errors."""
    hidden, weight, targets = inputs(vocabulary=300)
    exact = value_and_gradients(plain, hidden, weight, targets)
    monkeypatch.setattr(cross_entropy, "loss_rows", lambda *shape: rows_per_chunk)
    with torch.autocast("cpu", torch.bfloat16):
        ours = value_and_gradients(mean_loss, hidden, weight, targets)
        theirs = value_and_gradients(plain, hidden, weight, targets)
    for value, rival, truth in zip(ours, theirs, exact, strict=True):
        assert relative_error(value, truth) < max(1.25 * relative_error(rival, truth), 2e-3)
        assert relative_error(value, truth) < 0.02


def test_float16_gradients_do_not_vanish():
    """1 / (rows x vocabulary) is 1.5e-8 here, below float16's least number of 6e-8; a scaler acts only afterwards."""
    torch.manual_seed(0)
    hidden = torch.randn(8192, 16, requires_grad=True)
    weight = (0.02 * torch.randn(8000, 16)).requires_grad_()
    targets = torch.randint(8000, (8192,))
    exact = value_and_gradients(plain, hidden, weight, targets)
    with torch.autocast("cpu", torch.float16):
        values = value_and_gradients(mean_loss, hidden, weight, targets)
    for value, truth in zip(values, exact, strict=True):
        assert relative_error(value, truth) < 1e-3  # float16 keeps 11 bits


def test_a_scaled_loss_scales_the_gradients():
    """Gradient accumulation and a gradient scaler scale it."""
    hidden, weight, targets = inputs()
    gradients = torch.autograd.grad(mean_loss(hidden, weight, targets), (hidden, weight))
    scaled = torch.autograd.grad(mean_loss(hidden, weight, targets) / 8 * 65536, (hidden, weight))
    for gradient, by_8192 in zip(gradients, scaled, strict=True):
        torch.testing.assert_close(by_8192, gradient * 8192, rtol=1e-6, atol=0)


def test_gradients_accumulate_over_micro_batches():
    hidden, weight, targets = inputs(batch=4)
    mean_loss(hidden, weight, targets).backward()
    whole, weight.grad = weight.grad, None
    for micro in range(4):
        (mean_loss(hidden[micro].detach(), weight, targets[micro]) / 4).backward()
    torch.testing.assert_close(weight.grad, whole)


@pytest.mark.parametrize("wanted", ["hidden", "weight"])
def test_only_the_gradients_that_are_wanted(wanted):
    hidden, weight, targets = inputs()
    expected = dict(zip(("hidden", "weight"), value_and_gradients(plain, hidden, weight, targets)[1:], strict=True))
    one = {"hidden": hidden.detach(), "weight": weight.detach()}
    one[wanted].requires_grad_()
    mean_loss(one["hidden"], one["weight"], targets).backward()
    torch.testing.assert_close(one[wanted].grad, expected[wanted])


def test_without_gradients_it_is_the_loss_alone():
    hidden, weight, targets = inputs()
    with torch.no_grad():
        loss = mean_loss(hidden, weight, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(hidden, weight, targets).detach())


def test_very_large_logits():
    hidden, weight, targets = inputs()
    expected = value_and_gradients(plain, 1000 * hidden, weight, targets)
    values = value_and_gradients(mean_loss, 1000 * hidden, weight, targets)
    for value, truth in zip(values, expected, strict=True):
        assert torch.isfinite(value).all()
        torch.testing.assert_close(value, truth, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("rows_per_chunk", [5, 1000])
def test_it_costs_what_the_plain_head_costs(rows_per_chunk, monkeypatch):
    hidden, weight, targets = inputs()
    monkeypatch.setattr(cross_entropy, "loss_rows", lambda *shape: rows_per_chunk)
    forward = 2 * 3 * 17 * 24 * 101
    with FlopCounterMode(display=False) as counter:
        mean_loss(hidden, weight, targets).backward()
    assert counter.get_total_flops() == 3 * forward
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mean_loss(hidden, weight, targets)
    assert counter.get_total_flops() == forward


class LargestTensor(TorchDispatchMode):
    """The most elements that any operation returns at once."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *(tensor.numel() for tensor in tensors)])
        return result


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_logits_never_exist_as_a_whole(dtype):
    """With Llama 3's vocabulary: 130 rows at a time are 64 MiB, all 1,024 of them would be half a gigabyte."""
    vocabulary, rows, width = 128256, 1024, 8
    hidden, weight, targets = inputs(2, rows // 2, width, vocabulary)
    with LargestTensor() as largest, torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        loss = mean_loss(hidden, weight, targets)
        loss.backward()
    assert largest.elements * 4 <= max(CHUNK_BYTES, 4 * vocabulary * width)
    assert largest.elements < vocabulary * rows / 7
    assert loss.item() == pytest.approx(math.log(vocabulary) + width / 2, rel=0.05)  # of normal logits of variance 8


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(2, 40), st.integers(1, 40), st.data())
def test_targets_that_do_not_count_are_as_if_they_were_not_there(rows, vocabulary, rows_per_chunk, data):
    """Neither in the loss nor in any gradient; also where none counts."""
    hidden, weight, targets = inputs(1, rows, 5, vocabulary, torch.float64)
    counts = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))[None]
    ignored = torch.where(counts, targets, IGNORED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "loss_rows", lambda *shape: rows_per_chunk)
        values = value_and_gradients(linear_cross_entropy, hidden, weight, ignored)
    logits = F.linear(hidden, weight).flatten(0, -2)
    loss = F.cross_entropy(logits, ignored.flatten(), reduction="sum", ignore_index=IGNORED)
    expected = (loss.detach(), *torch.autograd.grad(loss, (hidden, weight)))
    for value, exact in zip(values, expected, strict=True):
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)


@settings(max_examples=40)
@given(
    length=st.integers(1, 9),
    vocabulary=st.integers(2, 40),
    rows_per_chunk=st.integers(1, 20),
    cap=st.sampled_from([None, 0.5, 30.0]),
    seed=st.integers(0, 99),
)
def test_each_targets_loss_and_gradients_of_any_function_of_them(length, vocabulary, rows_per_chunk, cap, seed):
    """Of a function in which what one target counts depends on the others', and of targets that do not count."""
    hidden, weight, targets = inputs(2, length, 5, vocabulary)
    ignored = torch.rand(targets.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    targets = targets.masked_fill(ignored, IGNORED)

    def function(losses):  # (B, T)
        return F.softplus(losses[0].sum() - 2 * losses[1].sum()) + losses.square().sum()

    logits = F.linear(hidden.double(), weight.double())
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    plain = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED)
    exact = function(plain.reshape(targets.shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "loss_rows", lambda *shape: rows_per_chunk)
        each = each_cross_entropy(hidden, weight, targets, cap)
        ours = function(each)
        values = (ours, *torch.autograd.grad(ours, (hidden, weight)))
    assert each.shape == targets.shape and each.dtype == torch.float32 and not each[ignored].any()
    expected = (exact, *torch.autograd.grad(exact, (hidden, weight)))
    for value, truth in zip(values, expected, strict=True):
        torch.testing.assert_close(value.double(), truth.double(), rtol=2e-5, atol=1e-5)


def test_each_targets_loss_under_autocast_is_that_of_their_sum():
    """The same products in the same dtype, also in the backward pass, which runs outside of autocast."""
    arguments = inputs(vocabulary=300)

    def by_each(hidden, weight, targets):
        with torch.autocast("cpu", torch.bfloat16):
            losses = each_cross_entropy(hidden, weight, targets)
        return losses.sum()

    def at_once(hidden, weight, targets):
        with torch.autocast("cpu", torch.bfloat16):
            return linear_cross_entropy(hidden, weight, targets)

    for ours, expected in zip(
        value_and_gradients(by_each, *arguments), value_and_gradients(at_once, *arguments), strict=True
    ):
        assert torch.equal(ours, expected)
