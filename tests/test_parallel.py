"""The same numbers under every strategy and on any number of ranks."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import same
from orthogonal import in_float64
from ranks import on_ranks
from setups import (
    BF16,
    CHECKPOINTING,
    CONTEXT,
    DDP,
    DORA,
    EXPERTS,
    F16,
    FSDP,
    GATED_DELTA,
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

from configurator import Configuration, load
from data.dataset import open_dataset
from data.loader import WindowLoader
from parallel.compute import Compute
from parallel.pipeline import Pipeline
from parallel.ranks import Ranks
from parallel.strategy import device_mesh, parallelize, settle_buckets, whole
from runs.checkpoint import Training
from runs.folder import Progress
from training.optimizer import build_optimizer, optimizer_tensors
from training.step import backward_pass, settle_gradients, take_step
from training.validation import evaluate

CPU = torch.device("cpu")
AT_ONCE = 32  # cases
FEW, MANY = 5, 20  # steps; of fewer, biases that began at zero are so small that the rounding in them is not
SIZES = "--n_layer=2 --n_head=4 --n_embd=32 --block_size=16 --vocab_size=256".split()
# Adam divides gradients by their root mean square and epsilon, which lifts the rounding of an element by as much as the
# largest gradient of its tensor is above epsilon: that of a gradient which is zero but for it (the bias of keys) to the
# size of a step. With an epsilon above all clipped gradients what is compared is the strategy and not that.
RUN = """
--batch_size=2 --gradient_accumulation_steps=4 --learning_rate=1e-3 --adam_eps=1e-1 --decay_lr=False --eval_iters=5
--dtype=float32 --grad_clip=0.1
""".split()


# Attention with its FFN, Mamba-2 and Mamba-1 without
MIXED = "--arch_preset=hybrid --layer_pattern=AMS --ffn_after=attention --n_layer=3 --mamba_head_dim=8".split()
MIXED += ["--mamba_d_state=5", "--mamba_chunk_size=8"]
WINDOW = [*LLAMA, "--layer_pattern=WA", "--attention_window=5"]
IN_PART = [*LLAMA, "--frozen=embedding.*,blocks.0.*,blocks.*.mixer.k_proj.*"]


ALIBI = [*LLAMA, "--position_encoding=alibi"]
# Terms of the loss that are means over all tokens of a micro-batch, or of a sequence
BALANCED = [*MORE_EXPERTS, "--balance_loss=0.1"]
BALANCED_BY_SEQUENCE = [*BALANCED, "--balance_over=sequence"]


GEMMA = "--arch_preset=gemma2 --attention_window=5 --n_layer=2 --num_key_value_heads=2 --logits_scaling=0.5".split()
NEOX = "--arch_preset=neox --partial_rotary_factor=0.5 --residual_multiplier=0.5".split()
LATENT_OF_STREAM = [*LATENT, "--q_lora_rank=None", "--attention_backend=manual"]
PACKED = ["--mask_documents=True", "--gradient_accumulation_steps=2"]
# One block of experts alone, in groups, of which half are met; the weights as they are
SOFTMAX_EXPERTS = [*LLAMA, *"--ffn_pattern=E --n_experts=4 --n_group=2 --topk_group=1 --norm_topk_prob=False".split()]
OLMO = "--arch_preset=olmo2 --num_key_value_heads=2".split()  # norms within mixers, which FSDP gathers with them


def small_configuration(*keys: str) -> Configuration:
    given = {key.partition("=")[0]: key for key in [*SIZES, *RUN, *keys]}
    return load(list(given.values()))


def build(configuration: Configuration, ranks: Ranks) -> Training:
    run = configuration.run
    compute = Compute(CPU, run.dtype, ranks, device_mesh(run, ranks, CPU))
    model, wrapped = parallelize(configuration, compute, compiles=run.compile is True)
    optimizer = build_optimizer(model, run, compute.mesh)
    settle_buckets(wrapped, run.batch_size, configuration.model.block_size // run.context_parallel, CPU)
    scaler = torch.amp.GradScaler("cpu", enabled=run.dtype == "float16")
    return Training(model, optimizer, scaler, Progress(), wrapped)


def of_all_stages(training: Training, found: dict[str, Any]) -> dict[str, Any]:
    """What a rank has found by name; of a pipeline, what all its stages have."""
    return training.wrapped.of_all_stages(found) if isinstance(training.wrapped, Pipeline) else found


@dataclasses.dataclass
class Trained:
    gradients: dict[str, torch.Tensor]  # of the first step
    losses: list[float]
    norms: list[float]
    parameters: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]
    evaluations: tuple[float, float]


def trained(ranks: Ranks, keys: list[str], data: Path, steps: int) -> Trained:
    """What came of some steps, whole, as this rank sees it."""
    configuration = small_configuration(*keys)
    run, model = configuration.run, configuration.model
    ranks = ranks.sharing(run)
    dataset = open_dataset(data.with_name("short") if run.mask_documents else data)
    own_part = ranks.own_part(model.block_size)
    loader = WindowLoader(dataset, "train", model.block_size, run.seed, run.mask_documents, own_part)

    def batches(step: int):
        for micro in ranks.share(range(run.gradient_accumulation_steps)):
            yield loader.batch(step * run.sequences_per_step + micro * run.batch_size, run.batch_size)

    def evaluated() -> float:
        windows = WindowLoader(dataset, "val", model.block_size, 0, run.mask_documents, own_part)
        whole_model = training.wrapped if run.pipeline_parallel > 1 else training.model
        return evaluate(whole_model, windows, run.eval_iters, 3, compute, lambda: False).loss

    training, compute = build(configuration, ranks), Compute(CPU, run.dtype, ranks)
    before = evaluated()
    backward_pass(training, batches(0), run, compute)
    settle_gradients(training.model)
    scale = training.scaler.get_scale()
    gradients = {name: whole(p.grad) / scale for name, p in training.model.named_parameters() if p.requires_grad}
    training.optimizer.zero_grad()

    results = []
    for step in range(steps):
        with in_float64() if run.optimizer == "muon" else contextlib.nullcontext():
            results.append(take_step(training, batches(step), run, run.learning_rate, compute))
        training.progress.step += 1
    parameters = {name: whole(p.detach()) for name, p in training.model.named_parameters()}
    moments = {name: whole(value) for name, value in optimizer_tensors(training.model, training.optimizer).items()}
    return Trained(
        of_all_stages(training, gradients),
        [result.loss for result in results],
        [result.grad_norm for result in results],
        of_all_stages(training, parameters),
        of_all_stages(training, moments),
        (before, evaluated()),
    )


# Micro-batches, for tensor parallel ranks, of which each takes a tenth of a second.
GPT2_OF_2, LLAMA_OF_2, POST_NORM_OF_2, OPTIONS_OF_2 = (
    [*model, "--gradient_accumulation_steps=2"] for model in (GPT2, LLAMA, POST_NORM, OPTIONS)
)

STATES_AND_EXPERTS = [*KIMI_DELTA, *"--ffn_pattern=E --n_experts=4 --expert_d_ff=12".split()]

Case = tuple[int, list[str], list[str]]  # ranks, strategy, model
CASES: list[Case] = [
    *[(1, DDP, model) for model in (ODD, GPT2_OF_2, LLAMA_OF_2, POST_NORM_OF_2, OPTIONS_OF_2)],
    *[(1, DDP, [*model, dtype]) for model, dtype in ((GPT2, BF16), (LLAMA, BF16), (GPT2, F16))],
    *[(n, keys, model) for n in (1, 2, 4) for keys in (DDP, ZERO1, FSDP, ZERO2) for model in (GPT2, LLAMA)],
    *[(n, keys, ODD) for n in (2, 4) for keys in (ZERO1, FSDP)],
    (1, DDP, MIXED),
    *[(2, keys, MIXED) for keys in (DDP, ZERO1, FSDP, [*FSDP, CHECKPOINTING])],
    (1, DDP, [*MIXED, BF16]),
    (2, FSDP, [*MIXED, BF16]),
    *[(n, keys, model) for n, keys in ((1, DDP), (2, TENSOR), (4, [*TENSOR, *FSDP])) for model in WITH_STATES],
    *[(n, keys, [*model, *PACKED]) for n, keys in ((1, DDP), (2, TENSOR)) for model in WITH_STATES],
    *[(n, [*keys, CHECKPOINTING], model) for n, keys in ((1, DDP), (2, TENSOR)) for model in WITH_STATES],
    (2, TENSOR, MIXED),
    *[(4, keys, MAMBA2) for keys in (TENSOR, ["--tensor_parallel=4"])],
    *[(n, keys, [MUON, *model]) for n, keys in ((1, DDP), (2, TENSOR)) for model in (MAMBA2, MAMBA1, KIMI_DELTA)],
    *[(n, keys, STATES_AND_EXPERTS) for n, keys in ((1, DDP), (2, [*TENSOR, CHECKPOINTING]))],
    (4, [*TENSOR, *FSDP], [MUON, *MAMBA2]),
    *[(1, DDP, model) for model in (GEMMA, NEOX, OLMO)],
    *[(2, TENSOR, model) for model in (GEMMA, NEOX)],
    *[(2, FSDP, model) for model in (GEMMA, OLMO)],
    *[
        (n, keys, EXPERTS)
        for n, keys in ((1, DDP), (2, DDP), (2, ZERO1), (2, FSDP), (2, TENSOR), (4, [*TENSOR, *FSDP]))
    ],
    (2, [*TENSOR, CHECKPOINTING], EXPERTS),
    (1, DDP, [*EXPERTS, BF16]),
    *[(1, DDP, model) for model in (MORE_EXPERTS, [*MORE_EXPERTS, BF16], SOFTMAX_EXPERTS)],
    *[(2, [*SHARED_EXPERTS, *keys], MORE_EXPERTS) for keys in (DDP, FSDP, [CHECKPOINTING], ["--experts_backend=loop"])],
    *[(4, [*SHARED_EXPERTS, *keys], MORE_EXPERTS) for keys in (DDP, FSDP, ZERO2, HYBRID)],
    (4, ["--expert_parallel=4", *FSDP], MORE_EXPERTS),
    *[(2, [*SHARED_EXPERTS, *keys], [*MORE_EXPERTS, BF16]) for keys in (DDP, FSDP)],
    (2, SHARED_EXPERTS, SOFTMAX_EXPERTS),
    *[(2, keys, OPTIONS_OF_2) for keys in (DDP, ZERO1, FSDP, [*FSDP, CHECKPOINTING])],
    *[(2, keys, OPTIONS_OF_2) for keys in (TENSOR, [*TENSOR, CHECKPOINTING])],
    (4, [*TENSOR, *FSDP], OPTIONS_OF_2),
    *[(1, DDP, model) for model in (LATENT, LATENT_OF_STREAM)],
    *[(2, keys, LATENT) for keys in (DDP, ZERO1, FSDP, [*TENSOR, CHECKPOINTING])],
    (2, TENSOR, LATENT_OF_STREAM),
    (4, [*TENSOR, *FSDP], LATENT),
    (1, DDP, WINDOW),
    (2, TENSOR, WINDOW),
    *[(n, keys, [*model, *PACKED]) for n, keys in ((1, DDP), (2, FSDP)) for model in (GPT2, MIXED, LATENT)],
    *[(2, keys, [*model, *PACKED]) for keys in (TENSOR, [*TENSOR, CHECKPOINTING]) for model in (GPT2, LATENT)],
    *[(n, keys, [*LLAMA, "--ffn_pattern=F-"]) for n, keys in ((1, DDP), (2, TENSOR))],
    (1, DDP, IN_PART),
    *[(2, keys, IN_PART) for keys in (DDP, ZERO1, FSDP, ZERO2, TENSOR)],
    *[(4, keys, model) for keys in (HYBRID, OFFLOAD) for model in (GPT2, LLAMA)],
    *[(2, [*FSDP, CHECKPOINTING], LLAMA)],
    *[(n, TENSOR, model) for n in (2, 4) for model in (GPT2_OF_2, LLAMA_OF_2, POST_NORM_OF_2)],
    *[(4, [*TENSOR, *FSDP], model) for model in (GPT2_OF_2, LLAMA_OF_2)],
    *[(2, [*TENSOR, CHECKPOINTING], LLAMA_OF_2)],
    *[(2, keys, [*model, BF16]) for keys in (FSDP, TENSOR) for model in (GPT2, LLAMA)],
    (2, FSDP, [*GPT2, F16]),
    *[(1, DDP, [MUON, *model]) for model in (GPT2, EXPERTS, MORE_EXPERTS)],
    *[(4, [*SHARED_EXPERTS, *keys], [MUON, *MORE_EXPERTS]) for keys in (DDP, FSDP)],
    *[(2, keys, [MUON, *model]) for keys in (DDP, ZERO1, FSDP, TENSOR) for model in (GPT2, EXPERTS)],
    *[(4, keys, [MUON, *GPT2]) for keys in (DDP, ZERO1, FSDP, HYBRID, OFFLOAD, TENSOR)],
    *[(4, keys, [MUON, *EXPERTS]) for keys in (FSDP, [*TENSOR, *FSDP])],
    *[(1, DDP, [*keys, *model]) for keys in (LORA, DORA) for model in (LLAMA, EXPERTS)],
    *[(2, keys, [*LORA, *LLAMA]) for keys in (DDP, ZERO1, FSDP, ZERO2, [*FSDP, CHECKPOINTING], CONTEXT)],
    *[(2, keys, [*DORA, *EXPERTS]) for keys in (DDP, ZERO1, FSDP, [*FSDP, CHECKPOINTING])],
    *[(4, keys, [*kind, *LLAMA]) for keys in (ZERO1, HYBRID, OFFLOAD) for kind in (LORA, DORA)],
    *[(n, keys, [*DORA, *MIXED]) for n, keys in ((1, DDP), (2, FSDP))],
    *[(n, keys, [MUON, *LORA, *EXPERTS]) for n, keys in ((1, DDP), (2, ZERO1), (2, FSDP))],
    *[(1, DDP, model) for model in (ALIBI, BALANCED, BALANCED_BY_SEQUENCE, [*WINDOW, *PACKED])],
    *[(2, CONTEXT, model) for model in (GPT2, LLAMA, ALIBI, WINDOW, OPTIONS_OF_2, LATENT, *WITH_STATES)],
    *[(2, CONTEXT, [*model, *PACKED]) for model in (GPT2, WINDOW, LATENT, *WITH_STATES)],
    *[(2, [*CONTEXT, CHECKPOINTING], model) for model in (LLAMA, *WITH_STATES)],
    *[(2, [*CONTEXT, *keys], LLAMA) for keys in (ZERO1, ZERO2)],
    *[(2, CONTEXT, [*model, BF16]) for model in (LLAMA, MIXED)],
    *[(4, ["--context_parallel=4"], model) for model in (GPT2, WINDOW, LATENT, MIXED, BALANCED)],
    *[(4, [*CONTEXT, *keys], model) for keys in (FSDP, TENSOR) for model in (LLAMA, LATENT, MIXED)],
    *[(4, [*CONTEXT, *SHARED_EXPERTS, *keys], BALANCED_BY_SEQUENCE) for keys in (DDP, FSDP)],
    (4, [*CONTEXT, *HYBRID], GPT2),
    (4, [*CONTEXT, *FSDP], [MUON, *MAMBA2]),
    (4, [*CONTEXT, *TENSOR], [*MAMBA2, *PACKED]),
]


def named(case: Case) -> str:
    size, strategy, model = case
    return f"{size} ranks {' '.join([*strategy, *model])}"


def all_trained(ranks: Ranks, cases: list[list[str]], data: Path, steps: int) -> list[Trained]:
    return [trained(ranks, keys, data, steps) for keys in cases]


@pytest.fixture(scope="module", params=[FEW, pytest.param(MANY, marks=pytest.mark.soak)], ids="{} steps".format)
def results(data_dir, request):
    """`results(size, keys)`: what each rank got. AT_ONCE cases of a number of ranks run in the same processes: each
    leaves them the threads and sockets of its groups."""
    known: dict[tuple[int, int], list[list[Trained]]] = {}

    def get(size: int, keys: list[str]) -> list[Trained]:
        cases = [[*strategy, *model] for ranks, strategy, model in CASES if ranks == size]
        part, place = divmod(cases.index(keys), AT_ONCE)
        if (size, part) not in known:
            some = cases[part * AT_ONCE :][:AT_ONCE]
            known[size, part] = on_ranks(size, all_trained, some, data_dir / "tiny", request.param)
        return [of_rank[place] for of_rank in known[size, part]]

    return get


@pytest.mark.slow
@pytest.mark.parametrize(("size", "strategy", "model"), CASES, ids=map(named, CASES))
def test_every_strategy_trains_as_one_process_does(size, strategy, model, results):
    """To a few times the rounding of float32, 1.2e-7. With a compute dtype of 16 bits later steps round differently, as
    anything does that changes one bit; and tensor parallel ranks round their parts of each sum before they add them, as
    ranks that share experts round what each makes of a token, and ranks that divide sequences gradients of keys.
    """
    (alone,) = results(1, model)
    assert min(alone.norms) > small_configuration(*model).run.grad_clip, "every step is clipped"
    halves = {BF16: torch.bfloat16, F16: torch.float16}
    half = next((halves[key] for key in model if key in halves), None)
    for one in results(size, [*strategy, *model]):
        differences = compare(one, alone)
        if half is None:
            assert max(differences.values()) <= 1e-6, differences
        elif strategy in (TENSOR, CONTEXT) or SHARED_EXPERTS[0] in strategy:
            assert differences["gradients"] <= torch.finfo(half).eps
        else:
            assert differences["gradients"] <= 1e-6
            assert differences["losses"] <= torch.finfo(half).eps / 10


@pytest.mark.slow
def test_in_16_bits_the_ranks_of_a_state_are_as_near_to_float32_as_one_process(data_dir):
    """Each rank rounds its part of a sum, and the sum is rounded again: at most twice as far, by the norm of all
    gradients of a step, each relative to its own."""
    of_one, data = [[*model, *dtype] for model in WITH_STATES for dtype in ([], [BF16])], data_dir / "tiny"
    (alone,), (shared, _) = (
        on_ranks(size, all_trained, cases, data, 1)
        for size, cases in ((1, of_one), (2, [[*TENSOR, *model, BF16] for model in WITH_STATES]))
    )
    for exact, *others in zip(alone[::2], alone[1::2], shared, strict=True):
        half, ours = (
            sum(((one.gradients[n] - x).norm() / x.norm()).square() for n, x in exact.gradients.items()).sqrt()
            for one in others
        )
        assert 0 < ours < 2 * half


@pytest.mark.slow
@pytest.mark.parametrize("model", [GPT2, LLAMA], ids=["GPT-2", "Llama 3"])
@pytest.mark.parametrize("size", [2, 4])
def test_zero1_and_ddp_are_the_same_to_the_last_bit(size, model, results):
    for sharded, plain in zip(results(size, [*ZERO1, *model]), results(size, [*DDP, *model]), strict=True):
        assert sharded.losses == plain.losses and sharded.norms == plain.norms
        assert sharded.evaluations == plain.evaluations
        assert same(sharded.parameters, plain.parameters) and same(sharded.moments, plain.moments)


@pytest.mark.soak
def test_compiled_blocks_train_alike_under_every_strategy(data_dir):
    of_models = {(*LLAMA,): [DDP, ZERO1, FSDP, ZERO2, TENSOR], (*MAMBA2,): [TENSOR], (*MAMBA1,): [TENSOR]}
    of_models |= {(*model,): [TENSOR, CONTEXT] for model in (GATED_DELTA, KIMI_DELTA)}
    for model, strategies in of_models.items():
        compiled = [*model, "--compile=True"]
        ((alone,),) = on_ranks(1, all_trained, [compiled], data_dir / "tiny", MANY)
        cases = [[*strategy, *compiled] for strategy in strategies]
        for of_rank in on_ranks(2, all_trained, cases, data_dir / "tiny", MANY):
            for one in of_rank:
                assert max(compare(one, alone).values()) <= 1e-6


def compare(one: Trained, other: Trained) -> dict[str, float]:
    """The largest differences: relative to the largest element of its tensor for tensors, relative for numbers."""

    def tensors(ones: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
        assert ones.keys() == others.keys()
        return max(((ones[n] - x).abs().max() / x.abs().max().clamp(min=1e-4)).item() for n, x in others.items())

    def numbers(ones: Sequence[float], others: Sequence[float]) -> float:
        return max(abs(a - b) / b for a, b in zip(ones, others, strict=True))

    return {
        "gradients": tensors(one.gradients, other.gradients),
        "losses": numbers(one.losses, other.losses),
        "norms": numbers(one.norms, other.norms),
        "parameters": tensors(one.parameters, other.parameters),
        "evaluation": numbers(one.evaluations, other.evaluations),
    }
