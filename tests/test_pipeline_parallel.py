"""Pipelines: how blocks are divided, the same numbers as one process, what a stage holds and sends, checkpoints."""

import collections
import dataclasses
import itertools
import json
import re
import shutil
import signal

import processes
import pytest
from checkpoints import last_checkpoint, same, tensors
from conftest import environment, small_run
from hypothesis import given
from hypothesis import strategies as st
from journeys import STEPS, Hop, all_hops
from ranks import on_ranks
from setups import (
    BF16,
    CHECKPOINTING,
    DDP,
    EXPERTS,
    F16,
    FOUR_STAGES,
    FSDP,
    GATED_DELTA,
    GPIPE,
    GPT2,
    HYBRID,
    LATENT,
    LLAMA,
    MAMBA2,
    MORE_EXPERTS,
    MUON,
    ODD,
    OFFLOAD,
    OPTIONS,
    PIPELINE,
    POST_NORM,
    SHARED_EXPERTS,
    TENSOR,
    ZERO1,
    ZERO2,
)
from test_checkpoint import alone as alone_hops
from test_faults import FAULTY_RUN, HANG, KILL, kill_everything, read_until
from test_interrupts import signalled_run
from test_memory import allocation_peak
from test_parallel import FEW, GEMMA, IN_PART, MIXED, PACKED, Trained, all_trained, compare, small_configuration
from test_rank_costs import counted_steps, prepared_step
from test_rank_costs import small_configuration as small_costs
from test_resume import curve

import sample
from components.spec import MicroBatch
from flops_parameter_counting.costs.communication import stage_exchanges
from flops_parameter_counting.costs.memory import block_bytes, stage_memory
from flops_parameter_counting.costs.model_cost import WHOLE, Stage, model_cost, named_weights
from flops_parameter_counting.costs.pipeline import bubble, divided, head_flops, stage_flops, stages_of
from flops_parameter_counting.costs.setting import COMPUTE_BYTES
from flops_parameter_counting.costs.sharding import mesh_of
from parallel.ranks import Ranks

# ---------------------------------------------------------------------------------------------------------------------
# How the blocks are divided


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_no_division_has_a_smaller_largest_stage(costs, data):
    count = data.draw(st.integers(1, len(costs)))

    def largest(cuts) -> int:
        return max(sum(costs[a:b]) for a, b in itertools.pairwise((0, *cuts, len(costs))))

    found = divided(costs, count)
    assert len(found) == count and all(found)
    assert [index for run in found for index in run] == list(range(len(costs)))
    best = min(map(largest, itertools.combinations(range(1, len(costs)), count - 1)))
    assert max(sum(costs[index] for index in run) for run in found) == best


def test_equal_blocks_are_divided_evenly_and_what_is_left_comes_last():
    assert divided([5] * 6, 3) == [range(2), range(2, 4), range(4, 6)]
    assert divided([5] * 7, 3) == [range(1), range(1, 4), range(4, 7)]
    assert divided([1, 1, 1, 3], 2) == [range(3), range(3, 4)]


@pytest.mark.parametrize("model", [GPT2, MIXED, EXPERTS, [*LLAMA, "--n_layer=5"]], ids=" ".join)
def test_the_stages_are_the_model_once(model):
    """FLOPs and parameters, of which the last stage has a tied embedding too."""
    config = small_configuration(*model).model
    stages = stages_of(config, 2)
    assert sum(stage_flops(config, stage) for stage in stages) == model_cost(config).forward_flops()
    assert head_flops(config) == model_cost(config).flops["lm_head"]

    def names(stage: Stage) -> list[str]:
        return [name for found in named_weights(config, stage) for one in found.weights for name in one.names]

    assert [name for stage in stages for name in names(stage)] == names(WHOLE)


def test_the_bubble_of_gpipe():
    """Huang et al. 2019, section 2.3: negligible with four times as many micro-batches as stages."""
    assert bubble(4, 1) == 3 / 4 and bubble(1, 8) == 0
    assert bubble(4, 16) == pytest.approx(3 / 19)


# ---------------------------------------------------------------------------------------------------------------------
# The same numbers as one process

FOUR_LAYERS = "--n_layer=4"
# Values that two stages in the middle pass on without a use for them, and their gradients, of many micro-batches
PASSING_ON = [*MAMBA2, FOUR_LAYERS, "--layer_pattern=AMMA", "--value_residual=True", "--gradient_accumulation_steps=8"]
Case = tuple[int, list[str], list[str]]  # ranks, strategy, model
QUICK: list[Case] = [
    *[(2, PIPELINE, model) for model in (LLAMA, GPT2, EXPERTS, OPTIONS, MIXED)],
    *[(2, PIPELINE, [*model, *PACKED]) for model in (GPT2, MAMBA2)],
    (2, [*PIPELINE, GPIPE, CHECKPOINTING], [*OPTIONS, BF16]),
    (2, PIPELINE, [MUON, *GPT2]),
    (2, PIPELINE, [*IN_PART, FOUR_LAYERS]),
    (4, PIPELINE, GPT2),
    (4, [*PIPELINE, *FSDP], EXPERTS),
    (4, FOUR_STAGES, [*OPTIONS, FOUR_LAYERS, "--layer_pattern=AWAW"]),
    (4, [*FOUR_STAGES, GPIPE], PASSING_ON),
]
SLOW: list[Case] = [
    *[(2, PIPELINE, model) for model in (ODD, POST_NORM, LATENT, GEMMA, GATED_DELTA, [*EXPERTS, BF16])],
    *[(4, [*PIPELINE, *strategy], LLAMA) for strategy in (FSDP, ZERO2, HYBRID, OFFLOAD)],
    *[(4, [*PIPELINE, *FSDP], model) for model in (GPT2, OPTIONS, [MUON, *GPT2], [*LLAMA, BF16])],
    (4, [*PIPELINE, *FSDP, CHECKPOINTING], ODD),
    (4, [*PIPELINE, GPIPE, *FSDP], ODD),
    (4, PIPELINE, [MUON, *EXPERTS]),
    (4, FOUR_STAGES, [*GPT2, FOUR_LAYERS]),
    (4, [*FOUR_STAGES, GPIPE], [*LLAMA, FOUR_LAYERS, "--gradient_accumulation_steps=2"]),
    (2, [*PIPELINE, "--compile=True"], LLAMA),
]


def named(case: Case) -> str:
    size, strategy, model = case
    return f"{size} ranks {' '.join([*strategy, *model])}"


@pytest.fixture(scope="module", params=["quick", pytest.param("slow", marks=pytest.mark.slow)])
def results(request, data_dir):
    """The cases, and for each what one process got, and each rank."""
    cases = QUICK if request.param == "quick" else SLOW
    found: list[tuple[Case, Trained, list[Trained]]] = []
    data = data_dir / "tiny"
    (ones,) = on_ranks(1, all_trained, [model for _, _, model in cases], data, FEW)
    for size in (2, 4):
        own = [case for case in cases if case[0] == size]
        ranks = on_ranks(size, all_trained, [[*strategy, *model] for _, strategy, model in own], data, FEW)
        for case, *of_ranks in zip(own, *ranks, strict=True):
            found.append((case, ones[cases.index(case)], of_ranks))
    return found


def test_a_pipeline_trains_as_one_process_does(results):
    """To a few times the rounding of float32, 1.2e-7, at whatever compute dtype: stages round nothing anew."""
    for case, alone, of_ranks in results:
        for one in of_ranks:
            differences = compare(one, alone)
            assert max(differences.values()) <= 1e-6, (named(case), differences)


# ---------------------------------------------------------------------------------------------------------------------
# What a stage holds and sends

EIGHT = "--gradient_accumulation_steps=8"
COUNTED: dict[int, list[list[str]]] = {
    2: [
        *[[*PIPELINE, EIGHT, *model] for model in (GPT2, [*OPTIONS, BF16], MORE_EXPERTS)],
        [*PIPELINE, EIGHT, GPIPE, MUON, *GPT2],
        [*PIPELINE, EIGHT, *IN_PART, FOUR_LAYERS],
        [*PIPELINE, EIGHT, "--frozen=embedding.*", *GPT2],
    ],
    4: [
        [*PIPELINE, EIGHT, *GPT2],
        *[[*PIPELINE, EIGHT, *strategy, *ODD] for strategy in (FSDP, ZERO2, HYBRID)],
        [*PIPELINE, EIGHT, *FSDP, BF16, MUON, *EXPERTS],
        [*FOUR_STAGES, EIGHT, *OPTIONS, FOUR_LAYERS, "--layer_pattern=AWAW"],
    ],
}


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_stage_sends_and_holds_what_the_closed_forms_say(size):
    """The first rank of each, to the byte: by kind of exchange and size of the group, and weights, gradients and
    moments. No other of its stage sends or holds more. Nothing passes uncounted."""
    for keys, *of_ranks in zip(COUNTED[size], *on_ranks(size, counted_steps, COUNTED[size]), strict=True):
        configuration = small_costs(*keys)
        model, run = configuration.model, configuration.run
        mesh = mesh_of(run, size)
        for stage in stages_of(model, mesh.pipeline):
            first, *others = own = of_ranks[stage.index * mesh.data : (stage.index + 1) * mesh.data]
            expected: collections.Counter[tuple[str, int]] = collections.Counter()
            for exchange in stage_exchanges(model, run, size, run.dtype, stage):
                expected[exchange.kind, exchange.ranks] += exchange.payload
            given = sum((of_rank.payload for of_rank in own), collections.Counter())
            assert given.keys() == expected.keys()
            for exchange in [exchange for exchange in expected if exchange[0] == "all_to_all"]:
                assert given[exchange] == mesh.data * expected.pop(exchange), keys  # not all give as much
            held = stage_memory(model, run, mesh, COMPUTE_BYTES[run.dtype], stage)
            assert {exchange: first.payload[exchange] for exchange in expected} == expected, keys
            assert first.held == {part: held[part] for part in first.held}, keys
            for one in others:
                assert all(one.payload[exchange] <= of for exchange, of in expected.items())
                assert all(of <= held[part] for part, of in one.held.items())
            assert all(one.calls == one.seen_by_the_backend for one in own)


def test_what_travels_between_stages():
    """Huang et al. 2019, section 2.2: activations at the boundaries, forth and back, whatever the number of stages."""
    for stages in (2, 4):
        configuration = small_costs(*GPT2, FOUR_LAYERS, EIGHT, f"--pipeline_parallel={stages}")
        model, run = configuration.model, configuration.run
        found = [stage_exchanges(model, run, stages, "float32", stage) for stage in stages_of(model, stages)]
        sent = sum(one.sent for of_stage in found for one in of_stage if one.kind == "send")
        assert sent == 2 * (stages - 1) * 8 * 4 * run.batch_size * model.block_size * model.n_embd


def peaks_of_steps(ranks: Ranks, cases: list[list[str]]) -> list[int]:
    peaks = []
    for keys in cases:
        configuration = small_costs(*keys)
        stages = configuration.run.pipeline_parallel
        _, step = prepared_step(configuration, dataclasses.replace(ranks, pipeline_parallel=stages))
        step()
        peaks.append(min(allocation_peak(step) for _ in range(2)))
    return peaks


# Wide and long enough that what the formulas count is what there is
WIDE = ["--n_embd=64", "--batch_size=4", "--block_size=64", "--vocab_size=1000", "--gradient_accumulation_steps=12"]
PEAKS = [[*LLAMA, FOUR_LAYERS, *WIDE, *keys] for keys in ([], [GPIPE], [CHECKPOINTING], [BF16])]


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_activations_of_the_micro_batches_that_a_stage_has_begun(size):
    """Steps after the first, in which gradients and activations pass: no more than the sum, and on a stage without a
    head what a block takes for its backward pass; and not much less."""
    cases = [[f"--pipeline_parallel={size}", *keys] for keys in PEAKS]
    for keys, *peaks in zip(cases, *on_ranks(size, peaks_of_steps, cases), strict=True):
        configuration = small_costs(*keys)
        model, run = configuration.model, configuration.run
        mesh, e = mesh_of(run, size), COMPUTE_BYTES[run.dtype]
        of_block = block_bytes(MicroBatch(model, run.batch_size, e), model.layers[0])
        for stage, peak in zip(stages_of(model, size), peaks, strict=True):
            parts = stage_memory(model, run, mesh, e, stage)
            passing = sum(parts[part] for part in ("gradients", "activations", "logits", "received"))
            assert 0.65 * passing < peak < 1.01 * passing + (not stage.is_last) * of_block, (keys, stage, parts)


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints

Journey = tuple[list[str], list[list[str]]]  # the model, and its strategies at so many ranks
JOURNEYS: list[tuple[tuple[int, ...], list[Journey]]] = [
    ((2, 1, 2), [(GPT2, [PIPELINE, DDP, FSDP]), ([*MORE_EXPERTS, MUON], [FSDP, DDP, [*PIPELINE, GPIPE]])]),
    (
        (4, 2, 1, 4),
        [(GPT2, [PIPELINE, PIPELINE, DDP, HYBRID]), (ODD, [[*PIPELINE, *FSDP], DDP, DDP, [*PIPELINE, *FSDP]])],
    ),
]


@pytest.fixture(params=[0, pytest.param(1, marks=pytest.mark.slow)], ids=lambda which: f"{JOURNEYS[which][0]} ranks")
def journeys(request, data_dir, tmp_path):
    """For each journey its hops, on every rank; and the folder with the run of each hop."""
    sizes, travelling = JOURNEYS[request.param]
    found = [list[list[Hop]]() for _ in travelling]
    for leg, size in enumerate(sizes):
        hops = []
        for number, (model, strategies) in enumerate(travelling):
            source = tmp_path / f"{number}.{leg - 1}/checkpoints/step_{STEPS:08d}" if leg else None
            hops.append(([*strategies[leg], *model], source, tmp_path / f"{number}.{leg}"))
        data = data_dir / "tiny"
        ranks = on_ranks(size, all_hops, hops, data) if size > 1 else alone_hops(hops, data)
        for journey, of_ranks in zip(found, zip(*ranks, strict=True), strict=True):
            journey.append(list(of_ranks))
    return found, tmp_path


def test_from_a_pipeline_to_any_strategy_and_back(journeys):
    """No tensor changes a bit on the way, all go on with the same losses, up to rounding, and each resumes itself bit
    for bit."""
    found, folder = journeys
    for number, hops in enumerate(found):
        start = hops[0][0]
        for leg, of_ranks in enumerate(hops):
            assert same(tensors(last_checkpoint(folder / f"{number}.{leg}")), start.held), "what the files say"
            for one in of_ranks:
                assert same(one.held, start.held) and one.samples == start.samples > 0
                assert one.losses == pytest.approx(start.losses, rel=1e-5)
                assert one.norms == pytest.approx(start.norms, rel=1e-4)
                assert one.resumed_exactly, leg


# ---------------------------------------------------------------------------------------------------------------------
# The command

KEYS = ["--n_layer=4", "--gradient_stats_interval=4", "--lr_decay_iters=12", "--learning_rate=2e-3"]


def test_a_run_of_two_stages_is_evaluated_resumed_and_sampled_from(train, tmp_path, monkeypatch, capsys):
    """By what the commands do with any run; another strategy may continue it."""
    assert train(*KEYS, "--out_dir=whole").returncode == 0
    half = train(*KEYS, *PIPELINE, "--max_iters=8", ranks=2)
    assert half.returncode == 0, half.stderr
    assert re.search(r"^Pipeline: +blocks 0-1 \([0-9.]+%\), blocks 2-3 \(", half.stdout, flags=re.MULTILINE)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    before = (tmp_path / "run/log.jsonl").read_bytes()
    evaluated = train(*KEYS, *PIPELINE, "--max_iters=8", "--eval_only=True", "--init_from=resume", ranks=2)
    assert evaluated.returncode == 0 and (tmp_path / "run/log.jsonl").read_bytes() == before
    assert train(*KEYS, *PIPELINE, "--init_from=resume", ranks=2).returncode == 0
    assert train(*KEYS, "--init_from=resume", "--out_dir=copy").returncode == 0
    whole = curve(tmp_path / "whole/log.jsonl")
    for name in ("run", "copy"):
        found = curve(tmp_path / name / "log.jsonl")
        assert found.keys() == whole.keys()
        for step, value in found.items():
            assert value == pytest.approx(whole[step], rel=1e-4), (name, step)
    records = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    (first, *_) = [record for record in records if record["type"] == "run"]
    assert first["stages"] == [[0, 1], [2, 3]] and first["hardware"]["ranks"] == 2
    (stats, *_) = [record["gradients"] for record in records if "gradients" in record]
    assert [name for name in stats if name.startswith("blocks")] == [f"blocks.{block}" for block in range(4)]
    monkeypatch.setattr("sys.argv", ["sample.py", "run", "--device=cpu", "--num_samples=1", "--max_new_tokens=5"])
    with pytest.raises(SystemExit) as end:
        sample.main()
    assert not end.value.code and capsys.readouterr().out


STAGES = ["--dry_run", "--world_size=4", "--n_layer=4", "--gradient_accumulation_steps=8"]
TOO_FEW = (
    "pipeline_schedule='1f1b' needs 4 micro-batches, pipeline_parallel=4 for each of 1 pipelines, and "
    "gradient_accumulation_steps=2: take as many, or pipeline_schedule='gpipe'"
)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["--pipeline_parallel=3"], "4 ranks are no multiple of pipeline_parallel x fsdp_replicas = 3 x 1"),
        ([*PIPELINE, *HYBRID, "--fsdp_replicas=4"], "are no multiple of pipeline_parallel x fsdp_replicas = 2 x 4"),
        ([*FOUR_STAGES, "--n_layer=3"], "pipeline_parallel=4 is more than n_layer=3: a stage has one at least"),
        ([*FOUR_STAGES, "--gradient_accumulation_steps=2"], TOO_FEW),
        ([*PIPELINE, "--gradient_accumulation_steps=5"], "gradient_accumulation_steps=5 is not divisible by the 2"),
        ([*PIPELINE, "--dropout=0.1"], "pipeline_parallel needs dropout=0"),
        ([*PIPELINE, *ZERO1], "use_zero1 and pipeline_parallel exclude each other: beside pipeline_parallel take"),
        ([*PIPELINE, *TENSOR], "tensor_parallel and pipeline_parallel exclude each other"),
        ([*PIPELINE, "--ffn_pattern=E", *SHARED_EXPERTS], "expert_parallel and pipeline_parallel exclude each other"),
        ([*PIPELINE, F16], "dtype='float16' and pipeline_parallel exclude each other"),
        ([*PIPELINE, "--frozen=embedding.*,position.*,blocks.[01].*"], "leaves nothing to be trained in blocks 0-1"),
        ([*PIPELINE, "--pipeline_schedule=zero"], "pipeline_schedule='zero' is none of: 1f1b, gpipe"),
        ([GPIPE], "pipeline_schedule='gpipe' is for a pipeline: add --pipeline_parallel"),
    ],
)
def test_a_pipeline_that_cannot_be_is_one_line(train, keys, message):
    given = {key.partition("=")[0]: key for key in [*STAGES, *keys]}
    done = train(*given.values())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "call"), [("training.step:backward_pass", 3), ("training.validation:precision", 2)]
)
def test_a_signal_to_one_stage_stops_all_after_the_same_step(train, tmp_path, function, call):
    keys = [*KEYS, *PIPELINE]
    stopped = train(*keys, ranks=2, script=signalled_run(tmp_path, function, call, signal.SIGTERM, rank=1))
    assert stopped.returncode == 1 and "143" in stopped.stderr
    summary = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert summary["reason"] == "SIGTERM"
    assert train(*keys, "--init_from=auto", ranks=2).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [PIPELINE, [*PIPELINE, *FSDP]], ids=["DDP", "FSDP"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [(KILL, "rank 2 has gone in step 6: .*--init_from=auto"), (HANG, "ranks? 2.* not come to an exchange of step 6")],
    ids=["killed", "hung"],
)
def test_a_lost_stage_is_named(data_dir, tmp_path, fault, message, strategy):
    script = tmp_path / "faulty_run.py"
    script.write_text(FAULTY_RUN.format(step=6, rank=2, fault=fault))
    keys = [*KEYS, *strategy, "--out_dir=run", "--comm_timeout=5", "--gradient_accumulation_steps=4"]
    torchrun = ["--standalone", "--nproc_per_node=4"]
    process, output = processes.start_speaking(script, small_run(data_dir, *keys), tmp_path, environment(), torchrun)
    try:
        line = read_until(output, "^error: ")
        assert re.search(message, line), line
    finally:
        kill_everything(process.pid, output)
