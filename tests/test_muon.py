"""optimizer='muon' against torch.optim.Muon, under every strategy, and against what is said of its costs."""

import dataclasses
import itertools
import json
import re
import time
import zlib
from pathlib import Path

import pytest
import torch
from checkpoints import last_checkpoint, same, tensors
from conftest import ROOT
from journeys import all_hops
from orthogonal import in_float64
from ranks import on_ranks
from setups import DDP, EXPERTS, FSDP, GPT2, HYBRID, LATENT, MORE_EXPERTS, OFFLOAD, SHARED_EXPERTS, TENSOR, ZERO1
from setups import MUON as OPTIMIZER
from test_memory import allocation_peak
from test_parallel import CPU, MIXED, build, small_configuration
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from common.errors import UserError
from components import registry
from configurator import load
from data.loader import Batch
from flops_parameter_counting.costs.memory import rank_memory
from flops_parameter_counting.costs.model_cost import named_weights
from flops_parameter_counting.costs.optimizer import update_of
from flops_parameter_counting.costs.sharding import Mesh, mesh_of
from model_builder import build_model
from model_config import resolve_architecture
from parallel.compute import Compute
from parallel.ranks import Ranks
from parallel.strategy import keep_part, whole
from runs.config import RunConfig
from training.optimizer import build_optimizer, optimizer_tensors
from training.optimizers import registry as optimizers
from training.optimizers.dealing import Layout, deal, size
from training.step import take_step
from training.update_clock import UpdateClock

MUON = [OPTIMIZER]
EVERY = {"experts": EXPERTS, "GPT-2": GPT2, "latent attention": LATENT, "state spaces": MIXED}


def given(parameter_name: str, step: int, shape: torch.Size) -> Tensor:
    """A gradient that every rank can make for itself."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{parameter_name} {step}".encode()))
    return torch.randn(shape, generator=generator)


# ---------------------------------------------------------------------------------------------------------------------
# torch.optim.Muon's numbers


def reference_matrices(name: str, values: Tensor, rows: tuple[int, ...]) -> list[Tensor]:
    """Copies of the matrices of a parameter."""
    copies = values.unbind(0) if values.dim() == 3 else [values]
    return [matrix.detach().clone() for copy in copies for matrix in copy.split(rows)]


@pytest.mark.parametrize("model", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("keys", [[], ["--muon_nesterov=False", "--muon_adjust_lr=match_rms_adamw"]], ids=str)
def test_every_matrix_is_updated_as_by_torchs_class_step_by_step(model, keys):
    """To the last bit; experts one by one, and so what is fused; what is no matrix, as by AdamW alone."""
    configuration = small_configuration(*MUON, *model, "--weight_decay=0.2", "--muon_learning_rate=0.02", *keys)
    run = configuration.run
    ours, others = (build_model(configuration.model, seed=0) for _ in range(2))
    optimizer = build_optimizer(ours, run)
    stated = {name: one for found in named_weights(configuration.model) for one in found.weights for name in one.names}
    matrices = {
        name: reference_matrices(name, parameter, stated[name].rows_of_matrices)
        for name, parameter in ours.named_parameters()
        if stated[name].are_matrices
    }
    muon = torch.optim.Muon(
        [one for found in matrices.values() for one in found],
        lr=0.02, weight_decay=0.2, nesterov=run.muon_nesterov, adjust_lr_fn=run.muon_adjust_lr,
    )  # fmt: skip
    adamw = build_optimizer(others, dataclasses.replace(run, optimizer="adamw"))
    for step in range(3):
        for (name, parameter), other in zip(ours.named_parameters(), others.parameters(), strict=True):
            parameter.grad = given(name, step, parameter.shape)
            other.grad = parameter.grad.clone()
            if name in matrices:
                parts = reference_matrices(name, parameter.grad, stated[name].rows_of_matrices)
                for matrix, gradient in zip(matrices[name], parts, strict=True):
                    matrix.grad = gradient
        optimizer.step()
        muon.step()
        adamw.step()
    for (name, parameter), other in zip(ours.named_parameters(), others.parameters(), strict=True):
        if name not in matrices:
            assert torch.equal(parameter, other), name
            continue
        found = reference_matrices(name, parameter, stated[name].rows_of_matrices)
        assert all(torch.equal(a, b) for a, b in zip(found, matrices[name], strict=True)), name
    for name, found in matrices.items():
        momentum = optimizer_tensors(ours, optimizer)[f"{name}.momentum_buffer"]
        buffers = [muon.state[matrix]["momentum_buffer"] for matrix in found]
        assert torch.equal(torch.cat([one.flatten() for one in buffers]), momentum.flatten()), name


OWN: dict[str, list[str]] = {letter: ["n_head"] for letter in "AU"} | {
    "W": ["n_head", "attention_window"],
    "S": [],
    "V": [],
    "M": ["mamba_head_dim"],
}
OWN |= {letter: ["linear_num_value_heads"] for letter in "DK"}
OWN["C"] = ["n_head", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"]
ADAMW_HAS = r"embedding|lm_head|router|norm|bias|_?conv|A_log|\bD$|sinks|value_weight|shared_expert_gate"


def test_every_parameter_of_every_component_falls_on_one_side():
    """Of each mixer and FFN that is registered. What Muon has are matrices that multiply in the compute dtype."""
    letters = [one.letter for one in registry.specs("mixer").values() if registry.has_module("mixer", one.name)]
    seen = set()
    for letter, ffn in itertools.product(letters, registry.specs("ffn_type")):
        if not registry.has_module("ffn_type", ffn):
            continue
        keys = {"layer_pattern": letter, "n_layer": 1, "n_embd": 32, "vocab_size": 53, "ffn_type": ffn, "bias": True}
        keys |= {"block_size": 16, "position_encoding": "none", **dict.fromkeys(OWN[letter], 4)}
        keys |= {"attention_sinks": True, "attention_backend": "manual"} if letter in "AWU" else {}
        keys |= {"n_shared_experts": 1, "shared_expert_gate": True} if ffn == "experts" else {}
        model = build_model(resolve_architecture({"arch_preset": "custom", **keys}), seed=0)
        groups = build_optimizer(model, RunConfig(optimizer="muon")).param_groups
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        sides = [[names[id(parameter)] for parameter in group["params"]] for group in groups]
        assert sorted(itertools.chain(*sides)) == sorted(names.values()), "each once"
        for name in sides[0]:
            assert not re.search(ADAMW_HAS, name), name
            assert model.get_parameter(name).dim() in (2, 3)
        for name in itertools.chain(*sides[1:]):
            assert re.search(ADAMW_HAS, name), name
        seen.update(name.partition(".")[2].partition(".")[2] for name in sides[0])
    assert {"mixer.q_proj.weight", "mixer.selection_proj.weight", "mixer.B_proj.weight", "ffn.down_proj.weight"} <= seen


def test_a_tied_head_and_what_is_frozen_are_no_matrices_of_muon():
    configuration = small_configuration(*MUON, *GPT2, "--frozen=blocks.0.*")
    model = build_model(configuration.model, seed=0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not configuration.run.freezes(name))
    matrices, *others = build_optimizer(model, configuration.run).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(names[id(parameter)].startswith("blocks.1.") for parameter in matrices["params"])
    assert "embedding.weight" in {names[id(parameter)] for group in others for parameter in group["params"]}
    assert all(parameter.requires_grad for group in (matrices, *others) for parameter in group["params"])


def test_the_schedule_scales_both_learning_rates_alike():
    configuration = small_configuration(*MUON, *GPT2, "--learning_rate=1e-3", "--muon_learning_rate=0.02")
    training = build(configuration, Ranks(0, 0, 1))
    tokens = torch.zeros(2, 16, dtype=torch.long)
    take_step(training, itertools.repeat(Batch(tokens, tokens)), configuration.run, 5e-4, Compute(CPU, "float32"))
    rates = [group["lr"] for group in training.optimizer.param_groups]
    assert rates == pytest.approx([0.01, 5e-4, 5e-4])


def test_micro_batches_do_not_change_the_update():
    """1 x 4 and 4 x 1, of the same sequences: what is orthogonalised is the sum."""
    found = []
    for batch_size, accumulation in ((4, 1), (1, 4)):
        keys = [f"--batch_size={batch_size}", f"--gradient_accumulation_steps={accumulation}"]
        configuration = small_configuration(*MUON, *GPT2, *keys)
        training = build(configuration, Ranks(0, 0, 1))
        tokens = torch.randint(256, (4, 17), generator=torch.Generator().manual_seed(0))
        batches = [Batch(part[:, :-1], part[:, 1:]) for part in tokens.split(batch_size)]
        with in_float64():
            take_step(training, iter(batches), configuration.run, 1e-3, Compute(CPU, "float32"))
        found.append({name: p.detach() for name, p in training.model.named_parameters()})
    for name, one in found[0].items():
        assert (one - found[1][name]).abs().max() <= 1e-6 * one.abs().max().clamp(min=1e-4), name


# ---------------------------------------------------------------------------------------------------------------------
# Ranks


STRATEGIES = [
    *[(2, strategy) for strategy in (DDP, ZERO1, FSDP, TENSOR)],
    *[(4, strategy) for strategy in (ZERO1, FSDP, HYBRID, OFFLOAD, TENSOR, [*TENSOR, *FSDP])],
]
CASES = [
    (ranks, strategy, name)
    for ranks, strategy in STRATEGIES
    for name in EVERY
    if not (TENSOR[0] in strategy and name == "state spaces")
]


def set_rates(optimizer: torch.optim.Optimizer) -> None:
    """As a step of training does."""
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 * group["of_learning_rate"]


def updated(ranks: Ranks, cases: list[tuple[list[str], str]]) -> list[dict[str, Tensor]]:
    """Parameters and state after two updates with gradients that are the same on any ranks, and so, to a rounding of
    float32, must be whatever torch's class makes of them, in its own bfloat16."""
    found = []
    for strategy, name in cases:
        configuration = small_configuration(*MUON, *EVERY[name], *strategy, "--muon_learning_rate=0.02")
        of_case = ranks.sharing(configuration.run)
        training = build(configuration, of_case)
        for step in range(2):
            for name, parameter in training.model.named_parameters():
                parameter.grad = torch.zeros_like(parameter)
                keep_part(parameter.grad, given(name, step, parameter.shape))
            set_rates(training.optimizer)
            training.optimizer.step()
        values = dict(training.model.named_parameters())
        values |= optimizer_tensors(training.model, training.optimizer)
        found.append({name: whole(value.detach()).clone() for name, value in values.items()})
    return found


@pytest.fixture(scope="module")
def alone():
    names = list(EVERY)
    return dict(zip(names, on_ranks(1, updated, [([], name) for name in names])[0], strict=True))


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_update_whole_matrices_as_one_process_does(size, alone):
    """The parts of a matrix are brought together before it is orthogonalised, and its momentum is as divided as it."""
    cases = [(strategy, name) for ranks, strategy, name in CASES if ranks == size]
    for of_rank in on_ranks(size, updated, cases):
        for (strategy, name), found in zip(cases, of_rank, strict=True):
            assert found.keys() == alone[name].keys()
            for key, value in found.items():
                expected = alone[name][key]
                largest = expected.abs().max().clamp(min=1e-4)
                assert (value - expected).abs().max() <= 4 * torch.finfo(torch.float32).eps * largest, (strategy, key)


def test_a_part_orthogonalised_by_itself_would_be_another_update():
    """What the test above would see: the update is of elements of 1/sqrt(32), and halves differ by as much."""
    gradient = given("", 0, torch.Size((32, 32)))

    def update(matrix: Tensor) -> Tensor:
        parameter = torch.zeros_like(matrix)
        parameter.grad = matrix
        torch.optim.Muon([parameter], lr=1.0, weight_decay=0.0).step()
        return parameter

    halves = torch.cat([update(half) for half in gradient.split(16)])
    assert (halves - update(gradient)).abs().max() > 0.1


@pytest.mark.parametrize("sharers", [(2, 1), (3, 1), (1, 2), (2, 2), (4, 2)])
def test_matrices_are_dealt_out_evenly_and_every_part_is_given_once(sharers):
    """Layouts as of a model: matrices divided by rows, by columns and not at all, stacks, and fused rows."""
    shards, tensors = sharers
    layouts = [
        *[Layout((64, 32), (64,), 0), Layout((32, 64), (32,), 1), Layout((40, 32), (32, 8), None)] * 4,
        *[Layout((5, 24, 32), (24,), 1), Layout((5, 32, 24), (32,), 2)] * 2,
    ]
    if tensors == 1:
        layouts = [dataclasses.replace(layout, tensor_dim=None) for layout in layouts]
    dealt = deal(layouts, shards, tensors, lambda m, n: m * n)
    for number, layout in enumerate(layouts):
        copies = tensors if layout.tensor_dim is None else 1
        covered = torch.zeros(layout.shape)
        for one in (one for one in dealt if one.parameter == number):
            assert sum(map(size, one.parts)) == size(one.box)
            for part in one.parts:
                covered[tuple(slice(span.start, span.stop) for span in part)] += 1
        assert torch.equal(covered, torch.full(layout.shape, float(copies)))
    loads = [sum(size(one.box) for one in dealt if one.owner == rank) for rank in range(shards * tensors)]
    largest = max(size(one.box) for one in dealt)
    assert max(loads) - min(loads) <= largest * (1 + 5 * (shards > 1)), "but for experts, which stay where they lie"


# ---------------------------------------------------------------------------------------------------------------------
# Runs, their checkpoints and logs


SMALL_MUON = [*MUON, "--muon_learning_rate=0.02"]


def records(run: Path, kind: str) -> list[dict]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["type"] == kind]


def test_a_run_learns_and_says_how_long_its_optimizer_takes(train, tmp_path):
    done = train(*SMALL_MUON, "--max_iters=30")
    assert done.returncode == 0, done.stderr
    losses = [record["loss"] for record in records(tmp_path / "run", "iter")]
    assert losses[-1] < losses[0] - 1.5
    (run,) = records(tmp_path / "run", "run")
    assert run["optimizer_flops_per_step"] > 0
    timed = [record for record in records(tmp_path / "run", "iter") if record["step_ms"] is not None]
    assert timed and all(0 < record["optimizer_ms"] < record["step_ms"] for record in timed)
    for record in timed:
        model_flops = run["flops_per_token"]["full"] * record["tokens_per_second"]
        assert record["model_flops_per_second"]["full"] == pytest.approx(model_flops), "none of the optimizer's"
    (summary,) = records(tmp_path / "run", "summary")
    assert 0 < summary["optimizer_ms"] < summary["step_ms"]


def test_a_checkpoint_holds_tensors_alone_and_continues_bit_for_bit(train, tmp_path):
    keys = [*SMALL_MUON, "--decay_lr=False", "--dropout=0.1"]
    assert train(*keys, "--max_iters=8", "--out_dir=whole").returncode == 0
    assert train(*keys, "--max_iters=4").returncode == 0
    assert {path.suffix for path in last_checkpoint(tmp_path / "run").iterdir()} == {".safetensors", ".json"}
    held = tensors(last_checkpoint(tmp_path / "run"))
    kept = {name.rpartition(".")[2] for name in held if name.startswith("optimizer.")}
    assert kept == {"momentum_buffer", "step", "exp_avg", "exp_avg_sq"}
    resumed = train(*keys, "--max_iters=8", "--init_from=resume")
    assert resumed.returncode == 0, resumed.stderr
    assert same(tensors(last_checkpoint(tmp_path / "run")), tensors(last_checkpoint(tmp_path / "whole")))
    whole_losses, losses = (
        [record["loss"] for record in records(tmp_path / name, "iter")] for name in ("whole", "run")
    )
    assert losses == whole_losses


def test_the_clock_of_updates_knows_what_it_measured_once():
    clock = UpdateClock()
    with clock.around(CPU):
        time.sleep(0.02)
    assert 0.02 <= (clock.take() or 0) < 0.2 and clock.take() is None
    with clock.around(torch.device("mps")):
        pass
    assert clock.take() is None, "whose work goes on"


def test_another_optimizer_does_not_continue_a_run(train, tmp_path):
    assert train("--max_iters=4").returncode == 0
    refused = train(*MUON, "--max_iters=8", "--init_from=resume")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert re.search(r"has no tensor optimizer\.\S+momentum_buffer: another optimizer trained it", refused.stderr)
    begun = train(*MUON, "--max_iters=4", "--init_from=run", "--out_dir=other")
    assert begun.returncode == 0, begun.stderr


@pytest.mark.slow
def test_a_checkpoint_goes_from_strategy_to_strategy(data_dir, tmp_path):
    """Each loads what another wrote to the last bit, and resumes itself exactly."""
    model = [*SMALL_MUON, *EXPERTS]
    way = [(1, DDP), (2, ZERO1), (2, FSDP), (2, TENSOR), (4, [*TENSOR, *FSDP]), (4, HYBRID), (1, DDP)]
    source, held = None, {}
    for number, (ranks, strategy) in enumerate(way):
        target = tmp_path / f"{number}"
        hops = [([*strategy, *model], source, target)]
        for ((one,),) in [on_ranks(ranks, all_hops, hops, data_dir / "tiny")[:1]]:
            assert one.resumed_exactly, strategy
            assert source is None or same(one.held, held), strategy
            held = one.held
        source = next((target / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["--optimizer=moun"], "optimizer='moun' is none of: adamw, muon"),
        (["--muon_momentum=0.9"], "muon_momentum=0.9 changes nothing beside optimizer='adamw': drop it, or take"),
        (["--muon_adjust_lr=match_rms_adamw"], "muon_adjust_lr='match_rms_adamw' changes nothing beside"),
        ([*MUON, "--muon_adjust_lr=rms"], "muon_adjust_lr='rms' is none of: original, match_rms_adamw"),
        ([*MUON, "--muon_ns_steps=0"], "muon_ns_steps=0 must be at least 1"),
        ([*MUON, "--muon_ns_steps=100"], "muon_ns_steps=100 must be below 100"),
        ([*MUON, "--muon_momentum=1"], "muon_momentum=1.0 must be below 1"),
        ([*MUON, "--learning_rate=0", "--min_lr=0", "--muon_learning_rate=0.1"], "which is 0: give both, or neither"),
    ],
)
def test_what_cannot_be_is_one_line(keys, message):
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        load(keys)
    assert "\n" not in str(raised.value)


def test_an_optimizer_is_one_file(train, tmp_path, monkeypatch):
    """What the page's file registers is planned, trained and resumed; one that needs whole parameters is refused on
    ranks that divide them."""
    monkeypatch.setattr(optimizers, "SPECS", dict(optimizers.optimizers()))
    (file,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/optimizers.md").read_text(), flags=re.DOTALL)
    exec(file, {})
    with pytest.raises(UserError, match="optimizer 'adagrad' is registered already"):
        exec(file, {})
    keys = ["--optimizer=adagrad", "--decay_lr=False"]
    assert train(*keys, "--max_iters=6", "--out_dir=whole").returncode == 0
    assert train(*keys, "--max_iters=3").returncode == 0
    assert train(*keys, "--max_iters=6", "--init_from=resume").returncode == 0
    assert same(tensors(last_checkpoint(tmp_path / "run")), tensors(last_checkpoint(tmp_path / "whole")))
    of_each = [load(["--vocab_size=64", f"--optimizer={name}"]) for name in ("adagrad", "adamw")]
    one, two = (rank_memory(each.model, each.run, 1, "float32")["optimizer"] for each in of_each)
    assert two == 2 * one
    monkeypatch.setattr(type(optimizers.SPECS["adagrad"]), "is_elementwise", False)
    refused = train(*keys, "--use_fsdp=True", "--out_dir=other")
    assert refused.returncode == 2 and "optimizer='adagrad' needs whole parameters on every rank" in refused.stderr


def test_the_startup_report_says_what_an_update_computes_and_takes(train):
    done = train(*MUON, "--dry_run")
    assert done.returncode == 0 and re.search(
        r"^Optimizer: +Muon with AdamW, [\d.e+]+ FLOPs a step, ", done.stdout, re.M
    )
    assert re.search(r"^  update +\d", done.stdout, re.M)
    plain = train("--dry_run").stdout
    assert "Optimizer:" not in plain and "update" not in plain


# ---------------------------------------------------------------------------------------------------------------------
# Costs


@pytest.mark.parametrize("model", EVERY.values(), ids=EVERY)
def test_the_flops_of_a_step_are_those_of_its_products(model):
    """Counted by PyTorch in a real one."""
    configuration = small_configuration(*MUON, *model, "--muon_ns_steps=4")
    built = build_model(configuration.model, seed=0)
    optimizer = build_optimizer(built, configuration.run)
    for name, parameter in built.named_parameters():
        parameter.grad = given(name, 0, parameter.shape)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert update_of(configuration.model, configuration.run, Mesh(1, 1, 1)).flops == counter.get_total_flops() > 0


def updates_of_ranks(ranks: Ranks, cases: list[list[str]]) -> list[tuple[int, int]]:
    """FLOPs of an update, and the bytes that another one allocates at most."""
    found = []
    for keys in cases:
        configuration = small_configuration(*keys)
        of_case = ranks.sharing(configuration.run)
        training = build(configuration, of_case)
        for name, parameter in training.model.named_parameters():
            parameter.grad = torch.zeros_like(parameter)
            keep_part(parameter.grad, given(name, 0, parameter.shape))
        set_rates(training.optimizer)
        with FlopCounterMode(display=False) as counter:
            training.optimizer.step()
        found.append((counter.get_total_flops(), allocation_peak(training.optimizer.step)))
    return found


def test_ranks_divide_the_work():
    """And the busiest computes, and the one that takes most memory for it takes, what is said."""
    wide = ["--n_embd=128", "--expert_d_ff=64"]
    cases = [
        [*MUON, *strategy, *model, *(wide if model == EXPERTS else wide[:1])]
        for strategy in (ZERO1, FSDP, TENSOR)
        for model in (GPT2, EXPERTS)
    ]
    cases.append([*MUON, *FSDP, *SHARED_EXPERTS, *MORE_EXPERTS, *wide])
    for keys, *counted in zip(cases, *on_ranks(2, updates_of_ranks, cases), strict=True):
        configuration = small_configuration(*keys)
        update = update_of(configuration.model, configuration.run, mesh_of(configuration.run, 2))
        flops, peaks = zip(*counted, strict=True)
        assert max(flops) == update.of_busiest < 0.75 * update.flops and sum(flops) == update.flops
        assert 0.95 * update.scratch < max(peaks) < 1.005 * update.scratch, "but for some kB of kernels"


def test_the_memory_of_an_update():
    """One float32 of every element of a matrix; and during the step the scratch of the largest matrix."""
    keys = [*MUON, *GPT2, "--n_embd=256", "--vocab_size=64"]
    configuration = small_configuration(*keys)
    model, run = build_model(configuration.model, seed=0), configuration.run
    optimizer = build_optimizer(model, run)

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad.copy_(torch.ones(()))
        optimizer.step()

    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    step()
    memory = rank_memory(configuration.model, run, 1, "float32")
    held = [value for value in optimizer_tensors(model, optimizer).values() if value.dim() > 0]
    assert memory["optimizer"] == sum(value.nbytes for value in held)
    copy = 2 * 256 * 1024  # of the iterate, in bfloat16, which products of some processors make and others do not
    with_it, without = memory["update"], memory["update"] - copy  # where kernels have some 100 kB instead
    assert allocation_peak(step) in (pytest.approx(with_it, rel=0.005), pytest.approx(without + 100_000, rel=0.005))
    plain = dataclasses.replace(run, optimizer="adamw")
    assert "update" not in rank_memory(configuration.model, plain, 1, "float32")
