"""What is asked of every mixer with a state and a convolution, such as the Mambas and the delta rules."""

import torch
from torch import nn


def continues(module: nn.Module, pieces: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The output in such pieces, from a cache, which is updated in place; and of all at once. (3, T, 16), float64."""
    x = torch.randn(3, sum(pieces), 16, dtype=torch.float64)
    with torch.no_grad():
        whole, cache = module(x), module.empty_cache(3)
        storages = [cache.convolution.data_ptr(), cache.state.data_ptr()]
        parts = [module(piece, cache=cache) for piece in x.split(pieces, dim=1)]
    assert storages == [cache.convolution.data_ptr(), cache.state.data_ptr()]
    return torch.cat(parts, dim=1), whole


def sees_no_future(module: nn.Module) -> None:
    """A token's output is of those before it and of itself."""
    x = torch.randn(2, 20, 16)
    changed = x.clone()
    changed[:, 13:] += 1
    before, after = module(x), module(changed)
    torch.testing.assert_close(before[:, :13], after[:, :13])
    assert not torch.isclose(before[:, 13:], after[:, 13:]).all(-1).any()


def is_near_under_autocast(module: nn.Module, roundings: int) -> None:
    """So many roundings to bfloat16 stand in a row at most, each off by 2^-9 of the number; in gradients, which go
    there and back, twice as many."""
    x = torch.randn(2, 200, 64)
    outputs, gradients = [], []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs.append(module(x))
        gradients.append(torch.autograd.grad(outputs[-1].float().square().mean(), list(module.parameters())))
    assert outputs[1].dtype == torch.bfloat16
    assert (outputs[1].float() - outputs[0]).norm() < roundings * 2**-9 * outputs[0].norm()
    for ours, expected in zip(gradients[1], gradients[0], strict=True):
        assert ours.dtype == torch.float32
        assert (ours - expected).norm() < 2 * roundings * 2**-9 * expected.norm()
