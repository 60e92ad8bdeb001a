"""The gated short convolution against Hugging Face's, and what it costs."""

import pytest
import torch
from recurrent import sees_no_future
from test_costs import TINY, count_convolutions, flops_of
from test_mamba import assert_near
from test_memory import DTYPES, assert_kept_to_the_byte
from torch.utils.flop_counter import FlopCounterMode
from transformers import Lfm2Config
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

from components.registry import spec
from model_components import component
from model_config import resolve_architecture

SMALL = {"arch_preset": "custom", "layer_pattern": "V", "position_encoding": "none", "n_layer": 2, "n_embd": 16}
SMALL |= {"block_size": 23, "vocab_size": 61}


def mixer(dtype=torch.float64, **keys):
    torch.manual_seed(0)
    module = component("mixer", "short_convolution")(resolve_architecture(SMALL | keys))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.to(dtype)


@pytest.mark.parametrize(
    "keys", [{}, {"short_conv_bias": True, "short_conv_kernel_dim": 5}, {"short_conv_kernel_dim": 1}]
)
def test_it_is_that_of_lfm2(keys):
    """Values and gradients, whose one projection gives B, C and x one below the other."""
    ours = mixer(**keys)
    config = Lfm2Config(
        hidden_size=16, conv_bias="short_conv_bias" in keys, conv_L_cache=keys.get("short_conv_kernel_dim", 3)
    )
    theirs = Lfm2ShortConv(config, layer_idx=0).double()
    kinds = ("weight", "bias") if "short_conv_bias" in keys else ("weight",)
    with torch.no_grad():
        for kind in kinds:
            parts = [getattr(getattr(ours, f"{name}_proj"), kind) for name in ("B", "C", "x")]
            getattr(theirs.in_proj, kind).copy_(torch.cat(parts))
            getattr(theirs.out_proj, kind).copy_(getattr(ours.o_proj, kind))
            their_conv = getattr(theirs.conv, kind)
            their_conv.copy_(getattr(ours.conv, kind).view_as(their_conv))
    x = torch.randn(2, 11, 16, dtype=torch.float64, requires_grad=True)
    expected, found = theirs(x), ours(x)
    assert_near(found, expected)
    weights = torch.randn_like(expected)
    (their_gradient,) = torch.autograd.grad((expected * weights).sum(), x)
    (our_gradient,) = torch.autograd.grad((found * weights).sum(), x)
    assert_near(our_gradient, their_gradient)


@pytest.mark.parametrize("pieces", [[1] * 9, [4, 1, 4], [9], [2, 7], [7, 2]])
def test_it_continues_from_its_cache(pieces):
    module, x = mixer(), torch.randn(3, 9, 16, dtype=torch.float64)
    with torch.no_grad():
        cache = module.empty_cache(3)
        parts = [module(piece, cache=cache) for piece in x.split(pieces, dim=1)]
        assert_near(torch.cat(parts, dim=1), module(x))
    remembered = spec("mixer", "short_convolution").remembers(resolve_architecture(SMALL), 9, with_current=False)
    assert cache.convolution.numel() == 3 * sum(one.elements for one in remembered)


def test_it_sees_no_future():
    sees_no_future(mixer(torch.float32))


@pytest.mark.parametrize("keys", [{}, {"short_conv_bias": True, "short_conv_kernel_dim": 4}])
def test_it_takes_the_flops_and_has_the_parameters_that_its_cost_says(keys):
    config = resolve_architecture(TINY).replace(**keys)
    module, cost = component("mixer", "short_convolution")(config), flops_of("mixer", "short_convolution", config, 7)
    with FlopCounterMode(display=False) as counter:
        module(torch.randn(2, 7, config.n_embd))
    assert counter.get_total_flops() == 14 * cost["matmul"]
    assert count_convolutions(module, 2, 7) == 14 * cost["short_convolution"]
    stated = spec("mixer", "short_convolution").all_weights(config)
    assert {name: tuple(one.shape) for one in stated for name in one.names} == {
        name: tuple(parameter.shape) for name, parameter in module.named_parameters()
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", [{}, {"short_conv_bias": True, "short_conv_kernel_dim": 5, "layer_pattern": "VVA"}])
def test_what_it_keeps_to_the_byte(keys, dtype):
    assert_kept_to_the_byte(resolve_architecture(SMALL | {"n_embd": 48, "n_layer": 3} | keys), dtype)
