"""Which targets count, which documents are kept apart, what components add, and what is frozen."""

import fnmatch
import re

import pytest
import torch
from checkpoints import last_checkpoint, tensors
from conftest import training as run_training
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from test_memory import counting_kept_bytes
from test_parallel import CPU, build, small_configuration
from torch.utils.flop_counter import FlopCounterMode

from components.heads.spec import IGNORED
from configurator import load
from data.loader import Batch
from flops_parameter_counting.costs.memory import rank_memory
from flops_parameter_counting.costs.model_cost import parameter_names, training_flops
from model_builder import LossParts, build_model
from model_config import resolve_architecture
from parallel.compute import Compute
from parallel.ranks import ALONE, Ranks
from parallel.strategy import whole
from runs.logs import read_run
from training.plan import plan_run
from training.step import take_step

TINY = {"arch_preset": "custom", "n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 24, "vocab_size": 61}

# ---------------------------------------------------------------------------------------------------------------------
# Targets that count


def batches_of(rows: int, batch_size: int) -> list[Batch]:
    """The same sequences, of which very different numbers of targets count, in micro-batches of some size."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(256, (rows, 16), generator=generator)
    targets = tokens.roll(-1, 1)
    targets[torch.arange(16) >= torch.arange(1, rows + 1)[:, None] * 2] = IGNORED  # 2, 4, ... of the rows' targets
    parts = zip(tokens.split(batch_size), targets.split(batch_size), strict=True)
    return [Batch(a, b, n_targets=int((b != IGNORED).sum())) for a, b in parts]


def step_of(ranks: Ranks, batch_size: int, keys: list[str]) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Loss, norm and weights after one step on 8 sequences."""
    steps = 8 // batch_size
    configuration = small_configuration(*keys, f"--batch_size={batch_size}", f"--gradient_accumulation_steps={steps}")
    training, run = build(configuration, ranks), configuration.run
    mine = ranks.share(range(run.gradient_accumulation_steps))
    batches = iter(batches_of(8, batch_size)[mine.start : mine.stop])
    result = take_step(training, batches, run, 1e-2, Compute(CPU, "float32", ranks))
    return result.loss, result.grad_norm, {n: whole(p.detach()) for n, p in training.model.named_parameters()}


def test_every_target_weighs_the_same_however_a_batch_is_divided():
    """Against the mean over all that count, in one piece; in micro-batches, and over ranks, with and without FSDP."""
    (everything,) = batches_of(8, 8)
    training = build(small_configuration(), ALONE)
    logits = training.model(everything.tokens).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, everything.targets.flatten(), ignore_index=IGNORED)
    expected.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in training.model.parameters()])
    alone = step_of(ALONE, 8, [])
    assert alone[0] == pytest.approx(expected.item(), rel=1e-6) and alone[1] == pytest.approx(norm.item(), rel=1e-6)
    others = [step_of(ALONE, 2, []), step_of(ALONE, 1, [])]
    others += on_ranks(2, step_of, 2, []) + on_ranks(2, step_of, 1, ["--use_fsdp=True"])
    for loss, grad_norm, weights in others:
        assert (loss, grad_norm) == (pytest.approx(alone[0], rel=1e-6), pytest.approx(alone[1], rel=1e-6))
        for name, value in weights.items():
            torch.testing.assert_close(value, alone[2][name], rtol=1e-4, atol=1e-6)


def test_a_step_in_which_no_target_counts_is_no_division_by_zero():
    training = build(small_configuration(), ALONE)
    tokens = torch.zeros(2, 16, dtype=torch.long)
    batch = Batch(tokens, torch.full_like(tokens, IGNORED), n_targets=0)
    run = small_configuration("--gradient_accumulation_steps=1").run
    result = take_step(training, iter([batch]), run, 1e-2, Compute(CPU, "float32"))
    assert (result.loss, result.grad_norm, result.skipped) == (0.0, 0.0, False)


def test_the_parts_add_up():
    parts = LossParts(torch.tensor(6.0), torch.tensor(3), {"balance": torch.tensor(0.5), "z": torch.tensor(0.25)}, {})
    assert parts.mean.item() == 2.0
    assert parts.total().item() == 6.0 + 3 * 0.75


# ---------------------------------------------------------------------------------------------------------------------
# What is frozen

PATTERNS = """
embedding.* position.* final_norm.* lm_head.* blocks.0.* blocks.1.* blocks.*.mixer.* *norm* blocks.*.ffn.down_proj.*
blocks.1.mixer.q_proj.weight blocks.*.mixer_norm.* blocks.*.mixer.gate_proj.*
blocks.1.mixer.sinks.* blocks.*.mixer.value_weight.*
""".split()

OPTIONS = {"attention_sinks": True, "attention_output_gate": "head", "value_residual": True}
OPTIONS |= {"attention_backend": "manual"}


@settings(max_examples=60)
@given(
    frozen=st.sets(st.sampled_from(PATTERNS), min_size=1, max_size=4),
    keys=st.sampled_from(
        [{}, {"weight_tying": False}, {"norm_position": "post"}, {"bias": True, "ffn_pattern": "F-"}, OPTIONS]
    ),
)
def test_flops_of_training_a_part_are_pytorchs(frozen, keys):
    """Twice forward for what is trained, once for what gradients pass through, nothing below."""
    config = resolve_architecture(TINY | {"attention_backend": "manual"} | keys)
    model = build_model(config, seed=0)

    def is_frozen(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in frozen)

    assert {name for name, _ in model.named_parameters()} == parameter_names(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_frozen(name))
    if all(map(is_frozen, parameter_names(config))):
        return
    tokens = torch.zeros(2, 24, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens, tokens).total().backward()
    assert training_flops(config, is_frozen).by_convention["full"] * 2 * 24 == counter.get_total_flops()


def test_where_everything_is_trained_training_takes_three_times_forward():
    config = resolve_architecture(TINY)
    assert training_flops(config).by_part == training_flops(config, lambda name: False).by_part
    assert training_flops(config).masked == training_flops(config, lambda name: False).masked


FROZEN = "--frozen=embedding.*, blocks.0.*"


def test_a_run_trains_what_is_not_frozen_and_remembers_nothing_of_the_rest(data_dir, tmp_path):
    """Weights stay to the last bit; the optimizer has no state of them; report, log and MFU count what is computed."""
    run = tmp_path / "run"
    assert run_training(data_dir, run, "--max_iters=0").returncode == 0
    before = tensors(last_checkpoint(run))
    keys = ["--init_from=auto", FROZEN]
    assert run_training(data_dir, run, *keys, "--max_iters=4").returncode == 0
    after = tensors(last_checkpoint(run))
    frozen = [name for name in before if name.startswith(("embedding.", "blocks.0."))]
    trained = before.keys() - frozen
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    assert not any(torch.equal(before[name], after[name]) for name in trained)
    with_state = {name.removeprefix("optimizer.").rpartition(".")[0] for name in after if name.startswith("optimizer.")}
    assert with_state == trained
    config = load([f"{run}/config.py"])
    assert read_run(run / "log.jsonl").run["flops_per_token"]["full"] == plan_run(config, None).flops_per_token["full"]
    # What was frozen is trained from here on, with an optimizer that has seen nothing of it
    assert run_training(data_dir, run, "--init_from=auto", "--max_iters=6").returncode == 0
    last = tensors(last_checkpoint(run))
    assert not any(torch.equal(after[name], last[name]) for name in frozen)
    assert last[f"optimizer.{frozen[0]}.step"].item() == 2 and last["optimizer.final_norm.weight.step"].item() == 6


def test_memory_of_a_part_that_is_trained():
    """By hand: gradients and moments of the trained parameters alone."""
    configuration = load([f"--{key}={value}" for key, value in TINY.items()] + [FROZEN])
    model = build_model(configuration.model, seed=0)
    trained = sum(p.numel() for n, p in model.named_parameters() if not n.startswith(("embedding.", "blocks.0.")))
    found = rank_memory(configuration.model, configuration.run, 1, "float32")
    assert (found["gradients"], found["optimizer"]) == (4 * trained, 8 * trained)
    assert found["weights"] == 4 * sum(p.numel() for p in model.parameters())


@settings(max_examples=30)
@given(
    frozen=st.sets(st.sampled_from(PATTERNS), min_size=1, max_size=4),
    keys=st.sampled_from([{}, {"norm_position": "post"}, {"layer_pattern": "AM", "mamba_head_dim": 16}, OPTIONS]),
)
def test_what_is_frozen_makes_autograd_keep_no_more(frozen, keys):
    """docs/memory.md: activations are counted as if everything were trained, which is the most that they can be."""
    config = resolve_architecture(TINY | keys)
    model = build_model(config, seed=0)
    tokens = torch.zeros(2, 24, dtype=torch.long)

    def kept() -> int:
        with counting_kept_bytes(model) as found:
            model(tokens, tokens)
        return sum(size for size, _ in found.values())

    everything = kept()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(fnmatch.fnmatchcase(name, one) for one in frozen))
    assert kept() <= everything


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        ("blocks.2.*", r"frozen: 'blocks\.2\.\*' is no parameter's name: they are such as blocks\.0\."),
        ("*", r"frozen='\*' leaves nothing to be trained"),
    ],
)
def test_what_cannot_be_frozen_is_refused_before_anything_is_built(frozen, message, data_dir, tmp_path):
    done = run_training(data_dir, tmp_path / "run", f"--frozen={frozen}")
    assert done.returncode == 2 and re.search(message, done.stderr) and not (tmp_path / "run").exists()
