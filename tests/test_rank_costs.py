"""What the ranks send in a step and hold after it, counted in real steps against the closed forms."""

import collections
import dataclasses
import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from ranks import on_ranks
from setups import (
    BF16,
    CHECKPOINTING,
    CONTEXT,
    DDP,
    DORA,
    EXPERTS,
    FSDP,
    GPT2,
    HYBRID,
    KIMI_DELTA,
    LATENT,
    LLAMA,
    LORA,
    MAMBA1,
    MAMBA2,
    MORE_EXPERTS,
    MUON,
    ODD,
    OFFLOAD,
    OPTIONS,
    POST_NORM,
    SHARED_EXPERTS,
    TENSOR,
    WITH_STATES,
    ZERO1,
    ZERO2,
)
from test_memory import micro_batches
from torch.profiler import ProfilerActivity, profile

from benchmarks.distributed import CollectiveBytes
from common.units import bytes_text
from components.parts import own_part
from configurator import Configuration, load
from data.loader import Batch
from flops_parameter_counting.costs.communication import sent_by_part, step_exchanges
from flops_parameter_counting.costs.memory import rank_memory
from flops_parameter_counting.costs.model_cost import model_cost
from flops_parameter_counting.costs.optimizer import trained_matrices
from flops_parameter_counting.costs.sharding import parameters
from model_builder import LanguageModel
from parallel.compute import Compute
from parallel.ranks import Ranks
from parallel.strategy import device_mesh, parallelize, settle_buckets, settle_gradients
from parallel.zero import ZeroOptimizer
from runs.checkpoint import Training
from runs.folder import Progress
from training.optimizer import build_optimizer
from training.plan import plan_run
from training.report import startup_report
from training.step import backward_pass, take_step

CPU = torch.device("cpu")
SIZES = "--n_layer=2 --n_head=4 --n_embd=32 --block_size=16 --vocab_size=256 --batch_size=2".split()
ACCUMULATION = "--gradient_accumulation_steps=8"

# Blocks of three sizes, the last neither the largest nor the smallest; rows that no number of ranks divides
MIXED = "--arch_preset=hybrid --layer_pattern=ASM --ffn_after=attention --n_layer=3 --mamba_head_dim=8".split()
MIXED += ["--mamba_d_state=5"]
FROZEN = ["--frozen=embedding.*,blocks.0.*,blocks.1.mixer*", "--frozen=embedding.*,blocks.*", "--frozen=blocks.1.ffn.*"]
IN_PART = [*LLAMA, "--frozen=embedding.*,blocks.0.*,blocks.*.mixer.k_proj.*"]

WINDOW = [*LLAMA, "--layer_pattern=WA", "--attention_window=10"]
BALANCED = [*MORE_EXPERTS, "--balance_loss=0.1", "--balance_over=sequence"]

# What ranks add up within a mixer comes out of frozen parameters alone
SUMS_WITHOUT_GRADIENT = [
    ([*MAMBA2, "--layer_pattern=AM"], "blocks.1.mixer.[!no]*"),
    ([*MAMBA1, "--layer_pattern=AS"], "blocks.1.mixer.x_*,blocks.1.mixer.selection_*"),
]


def few_each(size: int, keys: list[str]) -> list[str]:
    """Three micro-batches on each data rank: a first, one between, and a last one; two on each of four."""
    sharing = [int(key.partition("=")[2]) for key in keys if key.startswith(("--tensor_par", "--context_par"))]
    data_ranks = size // math.prod(sharing)
    return [f"--gradient_accumulation_steps={8 if data_ranks == 4 else 3 * data_ranks}", *keys]


CASES = [
    *[(size, [*strategy, *model]) for size in (2, 4) for strategy in (DDP, ZERO1, FSDP) for model in (GPT2, ODD)],
    *[(size, [*ZERO2, *model]) for size in (2, 4) for model in (LLAMA,)],
    (2, MIXED),
    (2, IN_PART),
    *[(2, [*strategy, *EXPERTS]) for strategy in (DDP, ZERO1, FSDP, TENSOR)],
    (4, [*TENSOR, *FSDP, *EXPERTS]),
    *[(2, [*strategy, *IN_PART]) for strategy in (ZERO1, FSDP, ZERO2, TENSOR)],
    (2, [*TENSOR, CHECKPOINTING, *IN_PART]),
    (2, [*TENSOR, *POST_NORM, "--frozen=blocks.*,lm_head.*"]),
    (2, [*TENSOR, *GPT2, "--frozen=embedding.*,blocks.*"]),
    (2, [*TENSOR, *LLAMA, "--ffn_pattern=F-"]),
    *[(size, [*strategy, *MIXED]) for size in (2, 4) for strategy in (ZERO1, FSDP)],
    *[(2, [*FSDP, BF16, *model]) for model in (LLAMA, MIXED)],
    (2, [*FSDP, BF16, "--fsdp_reduce_dtype=bfloat16", *LLAMA]),
    (2, [*ZERO2, BF16, "--fsdp_reduce_dtype=bfloat16", *ODD]),
    (2, [*FSDP, CHECKPOINTING, *GPT2]),
    (2, [*OFFLOAD, *LLAMA]),
    *[(2, [*TENSOR, *model]) for model in (GPT2, LLAMA, POST_NORM)],
    *[(2, [*TENSOR, BF16, CHECKPOINTING, *model]) for model in (LLAMA, POST_NORM)],
    (4, [*HYBRID, *ODD]),
    (4, [*HYBRID, BF16, "--fsdp_reduce_dtype=bfloat16", *LLAMA]),
    *[(4, [*TENSOR, *model]) for model in (GPT2, LLAMA)],
    (4, ["--tensor_parallel=4", *GPT2]),
    *[(2, [*keys, *LATENT]) for keys in (FSDP, TENSOR, [*TENSOR, BF16, CHECKPOINTING])],
    (4, [*TENSOR, *FSDP, *LATENT]),
    *[(4, [*TENSOR, *FSDP, *model]) for model in (GPT2, LLAMA)],
    (4, [*TENSOR, *ZERO2, BF16, *LLAMA]),
    *[(2, [*strategy, *OPTIONS]) for strategy in (ZERO1, FSDP, TENSOR, [*TENSOR, CHECKPOINTING])],
    (4, [*TENSOR, *FSDP, *OPTIONS]),
    *[(2, [*strategy, MUON, *model]) for strategy in (ZERO1, FSDP, TENSOR) for model in (GPT2, EXPERTS)],
    *[(4, [*strategy, MUON, *model]) for strategy in (ZERO1, FSDP, HYBRID) for model in (ODD, EXPERTS)],
    *[(4, [*TENSOR, *FSDP, MUON, *model]) for model in (EXPERTS, LATENT)],
    (2, [*FSDP, MUON, *IN_PART]),
    *[(size, [*SHARED_EXPERTS, *strategy, *MORE_EXPERTS]) for size in (2, 4) for strategy in (DDP, FSDP, ZERO2)],
    (2, [*SHARED_EXPERTS, BF16, CHECKPOINTING, *MORE_EXPERTS]),
    (4, [*SHARED_EXPERTS, *HYBRID, BF16, *MORE_EXPERTS]),
    (4, ["--expert_parallel=4", *FSDP, *MORE_EXPERTS]),
    *[(2, [*SHARED_EXPERTS, CHECKPOINTING, *MORE_EXPERTS, frozen]) for frozen in FROZEN],
    *[(4, [*SHARED_EXPERTS, *strategy, MUON, *MORE_EXPERTS]) for strategy in (DDP, FSDP)],
    *[(2, [*TENSOR, *keys, *model]) for keys in ([], [BF16, CHECKPOINTING]) for model in (*WITH_STATES, MIXED)],
    (2, [*TENSOR, CHECKPOINTING, *POST_NORM, "--layer_pattern=AM", "--mamba_head_dim=8", "--ffn_pattern=F-"]),
    *[(2, [*TENSOR, *model, f"--frozen=embedding.*,blocks.0.*,{names}"]) for model, names in SUMS_WITHOUT_GRADIENT],
    *[(2, [*TENSOR, *model, "--frozen=embedding.*"]) for model, _ in SUMS_WITHOUT_GRADIENT],
    *[(4, [*TENSOR, *FSDP, *model]) for model in WITH_STATES],
    (4, [*TENSOR, *MAMBA2]),
    (4, ["--tensor_parallel=4", *MAMBA2]),
    *[(2, [*TENSOR, MUON, *model]) for model in (MAMBA2, MAMBA1, KIMI_DELTA)],
    (4, [*TENSOR, *FSDP, MUON, *MAMBA1]),
    *[(size, [*CONTEXT, *keys, *model]) for size, keys in ((2, []), (4, FSDP)) for model in (GPT2, WINDOW, LATENT)],
    *[(2, [*CONTEXT, BF16, CHECKPOINTING, *model]) for model in (LLAMA, BALANCED, *WITH_STATES)],
    *[(4, ["--context_parallel=4", *keys, *model]) for keys in ([], ZERO1) for model in (WINDOW, MIXED)],
    *[(4, [*CONTEXT, *TENSOR, *model]) for model in (LLAMA, LATENT, *WITH_STATES)],
    *[(4, [*CONTEXT, *keys, *BALANCED]) for keys in (SHARED_EXPERTS, ["--expert_parallel=4", *FSDP])],
    (2, [*CONTEXT, MUON, *MAMBA2]),
    (2, [*CONTEXT, *LLAMA, FROZEN[0]]),
    *[(2, [*keys, *LORA, *LLAMA]) for keys in (DDP, ZERO1, FSDP, CONTEXT, [*FSDP, MUON], [*FSDP, BF16])],
    *[(4, [*keys, *DORA, *EXPERTS]) for keys in (ZERO1, HYBRID)],
]
CASES = [(size, few_each(size, keys)) for size, keys in CASES]


def small_configuration(*keys: str) -> Configuration:
    chosen = {key.partition("=")[0]: key for key in [*SIZES, ACCUMULATION, "--device=cpu", "--dtype=float32", *keys]}
    return load(list(chosen.values()))


def prepared_step(configuration: Configuration, ranks: Ranks):
    """A function that takes a training step, as train.py does, on any tokens."""
    run, model_config = configuration.run, configuration.model
    compute = Compute(CPU, run.dtype, ranks, device_mesh(run, ranks, CPU))
    model, wrapped = parallelize(configuration, compute, compiles=False)
    optimizer = build_optimizer(model, run, compute.mesh)
    length = model_config.block_size // run.context_parallel
    settle_buckets(wrapped, run.batch_size, length, CPU)
    training = Training(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), Progress(), wrapped)
    tokens = torch.randint(model_config.vocab_size or 0, (run.batch_size, length))

    def step() -> None:
        batches = iter([Batch(tokens, tokens)] * run.gradient_accumulation_steps)
        take_step(training, batches, run, 1e-3, compute)

    return training, step


@dataclasses.dataclass
class Counted:
    payload: collections.Counter[tuple[str, int]]  # bytes by kind and size of the group
    calls: int
    seen_by_the_backend: int
    held: dict[str, int]  # bytes of weights, gradients and moments, after another backward pass


def counted_steps(ranks: Ranks, cases: list[list[str]]) -> list[Counted]:
    return [counted_step(ranks, small_configuration(*keys)) for keys in cases]


def counted_step(ranks: Ranks, configuration: Configuration) -> Counted:
    """What the second step costs: DDP agrees on its buckets in the first."""
    run = configuration.run
    ranks = ranks.sharing(run)
    training, step = prepared_step(configuration, ranks)
    step()
    with CollectiveBytes() as counter, profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    seen = sum(event.name().startswith("gloo:") for event in profiled.profiler.kineto_results.events())

    tokens = torch.zeros(run.batch_size, configuration.model.block_size // run.context_parallel, dtype=torch.long)
    backward_pass(training, itertools.repeat(Batch(tokens, tokens)), run, Compute(CPU, run.dtype, ranks))
    settle_gradients(training.model)
    optimizer, parameters = training.optimizer, list(training.model.parameters())
    states = optimizer.inner.state if isinstance(optimizer, ZeroOptimizer) else optimizer.state
    held = {
        "weights": sum(own_part(p.detach()).nbytes for p in parameters),
        "gradients": sum(own_part(p.grad).nbytes for p in parameters if p.grad is not None),
        "optimizer": sum(own_part(t).nbytes for state in states.values() for t in state.values() if t.ndim > 0),
    }
    return Counted(counter.payload, counter.calls, seen, held)


@pytest.fixture(scope="module")
def counted():
    """`counted(size, keys)`: what each rank counted. All cases of a number of ranks run in the same processes."""
    known: dict[int, list[list[Counted]]] = {}

    def get(size: int, keys: list[str]) -> list[Counted]:
        cases = [keys for ranks, keys in CASES if ranks == size]
        if size not in known:
            known[size] = on_ranks(size, counted_steps, cases)
        return [of_rank[cases.index(keys)] for of_rank in known[size]]

    return get


def trained_matrix_names(configuration: Configuration) -> set[str]:
    """Of what Muon updates, where it is the optimizer."""
    run = configuration.run
    matrices = trained_matrices(configuration.model, run) if run.optimizer == "muon" else []
    return {name for one in matrices for name in one.names}


def named(value) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "keys"), CASES, ids=named)
def test_a_step_sends_what_the_closed_form_says(size, keys, counted):
    """To the byte, by kind of collective and size of the group, scalars included; and nothing passes uncounted."""
    configuration = small_configuration(*keys)
    expected: collections.Counter[tuple[str, int]] = collections.Counter()
    for exchange in step_exchanges(configuration.model, configuration.run, size, configuration.run.dtype):
        expected[exchange.kind, exchange.ranks] += exchange.payload
    ranks = counted(size, keys)
    given = sum((of_rank.payload for of_rank in ranks), collections.Counter())
    for members in (2, 4):  # of a group; not all of them give as much
        exchanged = [counts.pop(("all_to_all", members), 0) for counts in (given, expected)]
        sent, passed = given.pop(("send", members), 0), expected.pop(("pass", members), 0)
        assert exchanged[0] + members * sent == size * (exchanged[1] + passed)
    for of_rank in ranks:
        alike = {kind: of for kind, of in of_rank.payload.items() if kind[0] not in ("all_to_all", "send")}
        assert alike == expected
        assert of_rank.calls == of_rank.seen_by_the_backend


@pytest.mark.slow
@pytest.mark.parametrize(("size", "keys"), CASES, ids=named)
def test_the_state_of_a_rank(size, keys, counted):
    """The first rank's to the byte; no other has more, and together they have every copy of the model once, and of
    experts that some of them share."""
    configuration = small_configuration(*keys)
    run = configuration.run
    found = [one.held for one in counted(size, keys)]
    estimate = rank_memory(configuration.model, run, size, run.dtype)
    assert {part: estimate[part] for part in found[0]} == found[0]
    for part, held in found[0].items():
        assert max(one[part] for one in found) == held
    with torch.device("meta"):
        model = LanguageModel(configuration.model)
        if run.adapters is not None:
            model.adapt(run.adapters)
        named = list(model.named_parameters())
    matrices = trained_matrix_names(configuration)
    divided = {"weights": run.use_fsdp, "gradients": run.use_fsdp, "optimizer": run.use_fsdp or run.use_zero1}
    for part, is_divided in divided.items() if run.tensor_parallel == 1 else ():
        together = 0
        for name, parameter in named:
            is_shared = run.expert_parallel > 1 and re.search(r"ffn\.(gate|up|down)_proj", name) and ".1." in name
            copies = size // run.expert_parallel if is_shared else run.fsdp_replicas if is_divided else size
            numbers = (2 - (name in matrices)) * (part == "optimizer") or 1
            if part == "weights" or not run.freezes(name):
                together += copies * 4 * numbers * parameter.numel()
        assert sum(one[part] for one in found) == together


# The closed forms against the papers' figures


def sent(size: int, *keys: str, dtype: str = "float32") -> float:
    """Bytes by one rank, less the scalars."""
    configuration = small_configuration(*keys)
    exchanges = step_exchanges(configuration.model, configuration.run, size, dtype)
    return sum(exchange.sent for exchange in exchanges if exchange.part != "scalars")


@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_volumes_of_the_zero_paper(size):
    """Rajbhandari et al. 2020, section 7, in units of (n-1)/n 4N; every size here divides by the ranks."""
    unit = (size - 1) / size * 4 * model_cost(small_configuration(*GPT2).model).n_params
    one_each = f"--gradient_accumulation_steps={size}"
    assert sent(size, *GPT2) == pytest.approx(2 * unit)
    assert sent(size, *GPT2, *ZERO1) == pytest.approx(3 * unit)
    assert sent(size, *GPT2, *ZERO2, one_each) == pytest.approx(2 * unit)
    parts = model_cost(small_configuration(*GPT2).model).parameters
    once = parts["embedding"] + parts["position"] + parts["norms"] + (parts["attention"] + parts["ffn"]) // 2
    thrice = 3 * unit - (size - 1) / size * 4 * once  # but what lies outside the blocks, and the last of the two
    assert sent(size, *GPT2, *FSDP, one_each) == pytest.approx(thrice)


def test_replicas_take_the_traffic_off_the_slower_links():
    """No more than a shard of the gradients leaves the group of ranks that share a replica, and that once a step."""
    keys = [*LLAMA, *FSDP, "--gradient_accumulation_steps=16"]
    configuration = small_configuration(*keys, "--fsdp_replicas=4")
    between = [one for one in step_exchanges(configuration.model, configuration.run, 8, "float32") if one.ranks == 4]
    assert {one.kind for one in between} == {"all_reduce"}
    assert sum(one.sent for one in between) == pytest.approx(
        2 * 3 / 4 * 4 * model_cost(configuration.model).n_params / 2
    )


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_layer_under_tensor_parallelism_sends_four_all_reduces(ranks):
    """Shoeybi et al. 2019: two of batch x sequence x width forward, two backward; along the sequence the same bytes
    (Korthikanti et al. 2022, section 4.2.2). In bfloat16, three quarters: inputs stay float32."""
    keys = [*GPT2, f"--tensor_parallel={ranks}", "--gradient_accumulation_steps=1", "--batch_size=64"]
    for dtype, share in (("float32", 1), ("bfloat16", 3 / 4)):
        deeper, shallower = (sent(ranks, *keys, f"--n_layer={n}", dtype=dtype) for n in (4, 3))
        norms = 2 * (ranks - 1) / ranks * 4 * 4 * 32  # the gradients of two norms' weights and biases
        all_reduce = 2 * (ranks - 1) / ranks * 4 * 64 * 16 * 32
        assert deeper - shallower - norms == pytest.approx(4 * share * all_reduce)


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_state_sends_what_attention_does_unless_its_heads_share_something(ranks):
    """Dao and Gu 2024, section 8.1: with groups that the ranks divide, no more than attention; a norm over all heads
    takes a number a token more, and Mamba-1 what it selects, each reduced forward and backward."""
    shared = ["--arch_preset=hybrid", f"--tensor_parallel={ranks}", "--gradient_accumulation_steps=1"]

    def activations(letter: str, *own: str) -> float:
        configuration = small_configuration(*shared, f"--layer_pattern=A{letter}", *own)
        return sent_by_part(step_exchanges(configuration.model, configuration.run, ranks, "float32"))["activations"]

    of_attention, all_reduce = activations("A"), 2 * (ranks - 1) / ranks * 4 * 2 * 16
    assert activations("M", "--mamba_head_dim=8", f"--mamba_n_groups={ranks}") == of_attention
    assert activations("M", "--mamba_head_dim=8") - of_attention == pytest.approx(2 * all_reduce)
    selecting = activations("S", "--mamba_dt_rank=3", "--mamba_d_state=5")
    assert selecting - of_attention == pytest.approx(2 * (3 + 5 + 5) * all_reduce)
    assert {activations(letter, "--linear_num_value_heads=4") for letter in "DK"} == {of_attention}


def test_one_rank_sends_nothing():
    assert all(not sent(1, *strategy, *LLAMA) for strategy in (DDP, ZERO1, FSDP))


@settings(max_examples=60)
@given(micro_batches())
def test_the_shapes_are_those_of_the_model(micro_batch):
    config, _, _ = micro_batch
    with torch.device("meta"):
        model = LanguageModel(config)
    shapes = sorted((p.shape[0], p.shape[1] if p.dim() == 2 else 1) for p in model.parameters())
    counted = [p.copies * [(p.rows, p.width)] for p in parameters(config).all]
    assert sorted(itertools.chain(*counted)) == shapes


# The dry run


def report_of(size: int, *keys: str) -> str:
    configuration = small_configuration(*keys)
    return startup_report(configuration, plan_run(configuration, None), [], size)


def test_the_report_says_what_a_rank_of_64_holds_and_sends():
    keys = [*LLAMA, *FSDP, "--fsdp_replicas=8", "--gradient_accumulation_steps=128"]
    configuration, text = small_configuration(*keys), report_of(64, *keys)
    parts = sent_by_part(step_exchanges(configuration.model, configuration.run, 64, "float32"))
    assert "Ranks:                 64 = 8 replicas x 8 shards of one x 1 that share every layer\n" in text
    assert "(of each of 64 ranks, without PyTorch itself)" in text
    for part, size in parts.items():
        assert re.search(rf"^  {part} +{bytes_text(size)}$", text, flags=re.MULTILINE)
    for part, size in rank_memory(configuration.model, configuration.run, 64, "float32").items():
        assert re.search(rf"^  {part} +{bytes_text(size)}$", text, flags=re.MULTILINE)
    by_token = 64 * sum(parts.values()) / (128 * 2 * 16)
    assert re.search(rf"^  bytes a token +{by_token:,.1f} B   \(of all ranks\)$", text, flags=re.MULTILINE)


def test_the_report_of_one_process_has_nothing_to_send():
    assert "Sent in a step" not in report_of(1, *GPT2) and "(of each process, without" in report_of(1, *GPT2)


def test_the_report_says_what_is_in_main_memory():
    keys = [*LLAMA, *OFFLOAD, "--n_embd=2048", "--vocab_size=32000"]
    text = report_of(8, *keys)
    memory = rank_memory(small_configuration(*keys).model, small_configuration(*keys).run, 8, "float32")
    offloaded = {"weights", "gradients", "optimizer"}
    assert set(re.findall(r"^  (\w+) .* in main memory$", text, re.MULTILINE)) == offloaded
    on_the_device = sum(size for part, size in memory.items() if part not in offloaded)
    assert f"Memory estimate:       {bytes_text(on_the_device)} in float32   (of each of 8 ranks" in text


def test_sizes_are_printed_to_four_digits():
    sizes = [0, 7, 999, 1000, 12_346, 1_004_000_000, 465_931_598_000, 7.5e14, 2.5e15, 99_999_000, 999_999]
    printed = ["0 B", "7 B", "999 B", "1.000 kB", "12.35 kB", "1.004 GB", "465.9 GB", "750.0 TB"]
    printed += ["2,500 TB", "100.0 MB", "1.000 MB"]  # not 1,000.0 kB
    assert [bytes_text(size) for size in sizes] == printed
