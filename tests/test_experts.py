"""Experts: their routing, their products, what keeps them busy, and what a run says of them."""

import itertools
import json
import types
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from setups import EXPERTS
from test_memory import DTYPES, autocast, kept_by_a_block

from common.errors import UserError
from components.ffns.experts import products
from components.ffns.experts.module import Experts, Routing
from components.ffns.experts.products import BACKENDS, Expert
from components.spec import MicroBatch
from flops_parameter_counting.costs.memory import block_bytes
from flops_parameter_counting.costs.model_cost import model_cost
from flops_parameter_counting.costs.setting import COMPUTE_BYTES
from model_builder import build_model
from model_config import resolve_architecture
from training_logger import load_fields

SMALL = {"arch_preset": "llama3", "ffn_pattern": "E", "n_layer": 1, "n_head": 4, "n_embd": 64, "block_size": 48,
         "vocab_size": 97, "expert_d_ff": 24}  # fmt: skip


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(gate) * up


def config_of(**keys):
    return resolve_architecture(SMALL | keys)


def experts_of(**keys) -> Experts:
    """With weights of a size at which choices differ."""
    torch.manual_seed(0)
    made = Experts(config_of(**keys))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    made.reset_parameters()
    return made


# ---------------------------------------------------------------------------------------------------------------------
# Products


@st.composite
def given_rows(draw):
    """Tokens, weights, choices and experts, of which some may have no token, in float64."""
    count, tokens, width, hidden = (draw(st.integers(1, most)) for most in (5, 9, 6, 4))
    met, has_bias = draw(st.integers(1, count)), draw(st.booleans())
    torch.manual_seed(draw(st.integers(0, 99)))
    chosen = torch.stack([torch.randperm(count)[:met] for _ in range(tokens)])

    def stack(rows: int, columns: int):
        matrices, biases = torch.randn(count, rows, columns), torch.randn(count, rows)
        return matrices.double().requires_grad_(), biases.double().requires_grad_() if has_bias else None

    stacks = stack(hidden, width), stack(hidden, width), stack(width, hidden)
    x, weights = (torch.randn(tokens, size).double().requires_grad_() for size in (width, met))
    return x, weights, chosen, Expert(swiglu, *stacks)


def with_gradients(backend: str, x, weights, chosen, expert) -> list[torch.Tensor]:
    y = BACKENDS[backend](x, weights, chosen, expert)
    leaves = [x, weights, *(part for stack in (expert.gate, expert.up, expert.down) for part in stack)]
    leaves = [leaf for leaf in leaves if leaf is not None]
    slopes = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    return [y, *torch.autograd.grad(y, leaves, slopes)]


def errors(found: list[torch.Tensor], true: list[torch.Tensor]) -> list[float]:
    return [
        ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-9)).item()
        for a, b in zip(found, true, strict=True)
    ]


@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("at_once", [1, 60, 2**21])
@given(given_rows())
def test_segments_are_the_loop(at_once, pads, given):
    """One expert after the other, some at once, and all; also with the rows that two bytes are padded with."""
    with mock.patch.multiple(products, _AT_ONCE=at_once, _ALIKE=0.4, _pads=lambda like: pads):
        assert max(errors(with_gradients("segments", *given), with_gradients("loop", *given))) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("backend", ["segments", "grouped"])
def test_the_fast_backends_are_as_near_to_the_truth_as_the_loop(backend, has_bias, dtype):
    """Which is computed in float64. An expert of six has no token."""
    torch.manual_seed(0)
    sizes = [(6, 8, 16), (6, 8, 16), (6, 16, 8)]
    masters = [torch.randn(size, requires_grad=True) for size in sizes]
    biases = [torch.randn(size[:2], requires_grad=True) if has_bias else None for size in sizes]
    x, weights = torch.randn(40, 16).to(dtype).requires_grad_(), torch.rand(40, 2).requires_grad_()
    chosen = torch.stack([torch.randperm(5)[:2] for _ in range(40)])

    def in_dtype(wide: torch.dtype, of_master: torch.dtype) -> list[torch.Tensor]:
        def cast(tensor, to):
            return None if tensor is None else tensor.detach().to(dtype).to(to).requires_grad_()

        stacks = [(cast(a, of_master), cast(b, of_master)) for a, b in zip(masters, biases, strict=True)]
        leaves = cast(x, wide), weights.detach().to(of_master).requires_grad_()
        name = "loop" if wide == torch.float64 or of_master == dtype != torch.float32 else backend
        return with_gradients(name, *leaves, chosen, Expert(swiglu, *stacks))

    true = in_dtype(torch.float64, torch.float64)
    mine = errors(in_dtype(dtype, torch.float32), true)
    rounding = torch.finfo(dtype).eps
    assert max(mine) < (2 if dtype == torch.bfloat16 else 4) * rounding, mine


def test_frozen_matrices_get_no_gradient():
    experts = experts_of(experts_backend="segments")
    experts.up_proj.weight.requires_grad_(False)
    y, _, _ = experts(torch.randn(2, 5, 64))
    y.sum().backward()
    assert experts.up_proj.weight.grad is None and experts.gate_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("shape", [{"n_embd": 60, "n_head": 6}, {"expert_d_ff": 20}])
def test_grouped_products_want_multiples_of_eight(shape):
    with pytest.raises(UserError, match="experts_backend='grouped' needs multiples of 8"):
        config_of(experts_backend="grouped", **shape)


# ---------------------------------------------------------------------------------------------------------------------
# Routing, against transformers'

ROUTERS = {
    "mixtral": ("MixtralTopKRouter", {}, {}),
    "qwen3_moe": ("Qwen3MoeTopKRouter", {"norm_topk_prob": False}, {"norm_topk_prob": False}),
    "olmoe": ("OlmoeTopKRouter", {"norm_topk_prob": True}, {}),
    "gpt_oss": ("GptOssTopKRouter", {}, {"expert_bias": True}),
    "deepseek_v2": (
        "DeepseekV2TopkRouter",
        {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 16.0},
        {"norm_topk_prob": False, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 16.0},
    ),
    "qwen3_next": ("Qwen3NextTopKRouter", {}, {}),
    "kimi_linear": (
        "KimiLinearTopkRouter",
        {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.446, "norm_topk_prob": True},
        {
            "router_scores": "sigmoid",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.446,
            "balance_bias": True,
        },
    ),
    "deepseek_v3": (
        "DeepseekV3TopkRouter",
        {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True},
        {"router_scores": "sigmoid", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "balance_bias": True},
    ),
}


@pytest.mark.parametrize("family", ROUTERS)
def test_tokens_meet_the_experts_that_transformers_choose(family):
    transformers = pytest.importorskip("transformers")
    name, theirs, ours = ROUTERS[family]
    module = __import__(f"transformers.models.{family}.modeling_{family}", fromlist=[name])
    sizes = {"num_local_experts": 16, "num_experts": 16, "n_routed_experts": 16, "num_experts_per_tok": 3}
    known = transformers.AutoConfig.for_model(family).to_dict() | sizes | theirs | {"hidden_size": 64}
    router = getattr(module, name)(types.SimpleNamespace(**known))
    torch.manual_seed(1)
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    bias = torch.randn(16) * 0.1 if ours.get("balance_bias") else None
    if bias is not None:
        router.e_score_correction_bias.copy_(bias)
    x = torch.randn(200, 64)
    _, expected, places = router(x)
    logits = torch.nn.functional.linear(x, router.weight, getattr(router, "bias", None))
    _, chosen, weights = Routing(config_of(n_experts=16, n_experts_per_token=3, **ours))(logits, bias)
    dense = torch.zeros(200, 16)
    torch.testing.assert_close(
        dense.scatter(1, chosen, weights), dense.scatter(1, places, expected), rtol=1e-6, atol=1e-7
    )


def test_the_whole_is_that_of_transformers_with_its_gradients():
    """Qwen3-MoE's, whose experts are stacked, gate and up in one."""
    pytest.importorskip("transformers")
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    ours = experts_of(norm_topk_prob=False, n_experts=8, n_experts_per_token=3)
    theirs = Qwen3MoeSparseMoeBlock(
        Qwen3MoeConfig(
            hidden_size=64, moe_intermediate_size=24, num_experts=8, num_experts_per_tok=3, norm_topk_prob=False
        )
    )
    with torch.no_grad():
        theirs.gate.weight.copy_(ours.router.weight)
        theirs.experts.gate_up_proj.copy_(torch.cat((ours.gate_proj.weight, ours.up_proj.weight), dim=1))
        theirs.experts.down_proj.copy_(ours.down_proj.weight)
    x = torch.randn(2, 30, 64)
    y, _, _ = ours(x)
    expected = theirs(x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    for result in (y, expected):
        result.cos().sum().backward()
    pairs = {
        "router": (ours.router.weight.grad, theirs.gate.weight.grad),
        "gate and up": (
            torch.cat((ours.gate_proj.weight.grad, ours.up_proj.weight.grad), dim=1), theirs.experts.gate_up_proj.grad
        ),
        "down": (ours.down_proj.weight.grad, theirs.experts.down_proj.grad),
    }  # fmt: skip
    for name, (mine, their) in pairs.items():
        assert ((mine - their).abs().max() / their.abs().max()).item() < 1e-5, name


def test_a_gate_and_a_shared_expert_are_those_of_qwen2_moe():
    """Routed sum + sigmoid(x . w) x shared expert, one expert after the other."""
    experts = experts_of(n_shared_experts=1, shared_expert_gate=True, balance_loss=0.0, expert_bias=True)
    x = torch.randn(1, 7, 64)
    y, added, load = experts(x)
    assert added == {} and load.sum().item() == pytest.approx(1)

    def gated(x, gate, up, down):
        return down(torch.nn.functional.silu(gate(x)) * up(x))

    def layer(stack, index):
        return lambda x: torch.nn.functional.linear(x, stack.weight[index], stack.bias[index])

    for token, got in zip(x[0], y[0], strict=True):
        scores = experts.router(token).softmax(-1)
        best = scores.topk(2)
        stacks = (experts.gate_proj, experts.up_proj, experts.down_proj)
        routed = sum(
            share / best.values.sum() * gated(token, *(layer(stack, e) for stack in stacks))
            for share, e in zip(best.values, best.indices, strict=True)
        )
        shared = gated(token, experts.shared_gate_proj, experts.shared_up_proj, experts.shared_down_proj)
        expected = routed + experts.shared_expert_gate(token).sigmoid() * shared
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Balance


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("over", ["batch", "sequence"])
def test_auxiliary_losses_by_hand(scores, over):
    experts = experts_of(router_scores=scores, balance_over=over, balance_loss=0.5, router_z_loss=0.25, n_experts=6)
    x = torch.randn(3, 8, 64)
    _, added, load = experts(x)
    logits = experts.router(x)
    probabilities = logits.softmax(-1) if scores == "softmax" else logits.sigmoid()
    means = []
    for group in [list(range(3))] if over == "batch" else [[0], [1], [2]]:
        tokens = probabilities[group].flatten(0, 1)
        mean = 0.0
        for expert in range(6):
            chosen = sum(expert in token.topk(2).indices for token in tokens) / (2 * len(tokens))
            mean += 6 * chosen * (tokens[:, expert] / tokens.sum(-1)).mean()
        means.append(mean)
    assert added["balance"].item() == pytest.approx(0.5 * (sum(means) / len(means)).item(), rel=1e-5)
    assert added["router_z"].item() == pytest.approx(0.25 * logits.logsumexp(-1).square().mean().item(), rel=1e-5)
    counted = torch.stack([(probabilities.topk(2).indices == expert).sum() for expert in range(6)]) / (2 * 24)
    torch.testing.assert_close(load, counted)


def test_the_balance_loss_is_one_in_balance_and_grows_by_layer():
    """Every expert chosen as often, with equal scores: 1. Where all tokens choose the same one of four, with all of the
    score: 4; and layers are not pooled, in which mirrored collapses would cancel."""
    experts = experts_of(n_experts=4, n_experts_per_token=1, balance_loss=1.0)
    logits = torch.eye(4).repeat(6, 1) * 1e-3
    scores = logits.softmax(-1)
    even = experts._added(logits, scores, scores.argmax(-1, keepdim=True), 1)["balance"]
    assert even.item() == pytest.approx(1, rel=1e-5)
    one = torch.tensor([[1.0, 0, 0, 0]]).repeat(24, 1)
    assert experts._added(one, one, torch.zeros(24, 1, dtype=torch.long), 1)["balance"].item() == 4
    model = build_model(config_of(n_layer=2, balance_loss=1.0, n_experts=4), seed=0)
    tokens = torch.randint(97, (2, 48))
    single = build_model(config_of(n_layer=1, balance_loss=1.0, n_experts=4), seed=0)(tokens, tokens)
    both = model(tokens, tokens)
    assert both.auxiliary["balance"].item() > 1.9 > single.auxiliary["balance"].item() > 0.9
    assert both.loads.keys() == {0, 1} and both.total().item() > both.cross_entropy.item()


def test_the_bias_goes_against_the_load_and_changes_choices_alone():
    experts = experts_of(balance_bias=True, balance_rate=0.5, router_scores="sigmoid")
    x = torch.randn(2, 40, 64)
    _, _, load = experts(x)
    experts.after_step(load)
    assert experts.balance_bias.tolist() == [0.5 if share < load.mean() else -0.5 for share in load]
    before = (load - 1 / 8).abs().max()
    for _ in range(200):
        experts.balance_rate = 0.01
        _, _, load = experts(x)
        experts.after_step(load)
    assert (load - 1 / 8).abs().max() < before / 3, "busier ones are chosen less"
    logits = torch.randn(5, 8)
    scores, chosen, weights = experts.routing(logits, experts.balance_bias)
    expected = scores.gather(1, chosen)
    torch.testing.assert_close(weights, expected / expected.sum(-1, keepdim=True))


def test_what_the_log_says_of_a_load():
    assert load_fields([0.25] * 4) == {"shares": [0.25] * 4, "entropy": 1.0, "dropped": 0.0}
    assert load_fields([1.0, 0.0]) == {"shares": [1.0, 0.0], "entropy": 0.0, "dropped": 0.0}
    assert load_fields([0.5, 0.25])["dropped"] == 0.25


# ---------------------------------------------------------------------------------------------------------------------
# What they cost

KINDS = [
    {},
    {"norm_topk_prob": False, "expert_type": "geglu"},
    {"router_scores": "sigmoid", "balance_over": "sequence", "router_z_loss": 0.1, "n_shared_experts": 1,
     "routed_scaling_factor": 2.5, "balance_bias": True, "n_group": 4, "topk_group": 2},
    {"expert_type": "swiglu_clamped", "n_shared_experts": 1},
    {"n_shared_experts": 2, "shared_expert_gate": True, "balance_loss": 0.0},
]  # fmt: skip


@pytest.mark.parametrize(
    ("backend", "dtype", "keys"), list(itertools.product(("loop", "segments", "grouped"), DTYPES, KINDS))
)
def test_kept_bytes_to_the_byte(backend, dtype, keys):
    """Whatever the choices are. The block's input is kept by its norm, and not counted by the test."""
    config = config_of(experts_backend=backend, **keys)
    estimate = block_bytes(MicroBatch(config, 3, COMPUTE_BYTES[dtype]), config.layers[0])
    with autocast(dtype):
        assert kept_by_a_block(build_model(config, seed=0), 3, dtype) == estimate - 4 * 3 * 48 * 64


def test_active_and_total_parameters():
    """3 matrices of 24 x 64 an expert, of which 8 are there, a token meets 2, and a third that is shared."""
    one = 3 * 24 * 64
    cost = model_cost(config_of(n_shared_experts=1))
    dense = model_cost(config_of(ffn_pattern="-", expert_d_ff=None))
    router, norm = 8 * 64, 64
    assert cost.n_params - dense.n_params == 9 * one + router + norm
    assert cost.n_active - dense.n_params == 3 * one + router + norm
    assert cost.forward_flops() - dense.forward_flops() == 2 * (3 * one + router)


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def records(path, kind: str) -> list[dict]:
    return [record for record in map(json.loads, path.read_text().splitlines()) if record["type"] == kind]


def test_a_run_says_how_busy_its_experts_are_and_resumes_with_their_bias(train, tmp_path):
    keys = [*EXPERTS, "--checkpoint_interval=4", "--decay_lr=False"]
    assert train(*keys, "--out_dir=whole", "--max_iters=8").returncode == 0
    assert train(*keys, "--out_dir=cut", "--max_iters=4").returncode == 0
    done = train(*keys, "--out_dir=cut", "--max_iters=8", "--init_from=auto")
    assert done.returncode == 0, done.stderr
    whole, cut = (records(tmp_path / name / "log.jsonl", "iter") for name in ("whole", "cut"))
    assert [record["loads"] for record in whole] == [record["loads"] for record in cut]
    for record in whole:
        assert set(record["loads"]) == {"1"} and set(record["auxiliary"]) == {"balance", "router_z"}
        assert sum(record["loads"]["1"]["shares"]) == pytest.approx(1, abs=1e-5)
        assert record["loads"]["1"]["dropped"] == 0 and 0 < record["loads"]["1"]["entropy"] <= 1
    (started,) = records(tmp_path / "whole/log.jsonl", "run")
    assert "MoE2of5+2" in json.dumps(started)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["--n_experts_per_token=9"], "n_experts_per_token=9 is more than n_experts=8"),
        (["--n_group=3"], "n_experts=8 is not divisible by n_group=3"),
        (["--n_group=2", "--topk_group=4"], "topk_group=4 is more than n_group=2"),
        (["--n_group=8", "--topk_group=1"], "n_experts_per_token=2 is more than the 1 experts of topk_group=1"),
        (["--shared_expert_gate=True"], "there is nothing to gate"),
        (["--expert_d_ff=64", "--expert_expansion_ratio=2"], "say the same thing twice"),
        (["--balance_rate=0.1"], "balance_rate=0.1 changes nothing where balance_bias=False"),
        (
            ["--balance_over=sequence", "--balance_loss=0"],
            "balance_over='sequence' changes nothing where balance_loss=0",
        ),
        (["--swiglu_limit=3"], "swiglu_limit=3.0 changes nothing where expert_type='swiglu'"),
        (["--expert_type=relu"], "expert_type='relu' is none of"),
        (["--ffn_pattern=F", "--n_experts=4"], "n_experts=4 is given, but no layer has experts"),
    ],
)
def test_what_cannot_be_is_one_line(train, keys, message):
    done = train("--ffn_pattern=E", *keys, "--dry_run")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1 and message in done.stderr
