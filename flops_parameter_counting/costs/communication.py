"""What the ranks of a run send one another in one optimizer step, by part, as closed forms. No torch.

Bytes are those that one rank sends, with ring algorithms: of a whole of S bytes among n ranks, an all-gather and a
reduce-scatter send (n-1)/n S, an all-reduce is the two in turn and sends 2 (n-1)/n S, and broadcasts of every rank's
part send (n-1)/n S on average (Thakur et al. 2005). In an all-to-all a rank sends of its own n-th part what is not for
itself, (n-1)/n S/n where all are even. What ranks that divide sequences pass on is S of all of them together, S/n on
average; what a stage of a pipeline sends to the next one, S, it sends whole. gloo has no reduce-scatter of its own and
moves an all-reduce instead; the figures are those of a backend that has.

With the parameters' 4 N bytes as S, large n, and one micro-batch a rank (Rajbhandari et al. 2020, ZeRO, section 7): DDP
sends 2 S, FSDP 3 S, less what travels in two bytes and what is not gathered again for the backward pass; ZeRO-1 sends
3 S, S more than the paper's, because it reduces gradients as DDP does, to the same bits.

Counted is what `training.step.take_step` sends. Beside it a run asks before every step whether a signal came (8 bytes,
reduced over all ranks), and sends a few numbers for an evaluation and every weight as often as a forward pass does.
"""

import dataclasses

from components.spec import FFN, GRADIENT_IN_PART, Mixer
from flops_parameter_counting.costs.memory import REDUCE_BYTES
from flops_parameter_counting.costs.model_cost import WHOLE, Named, Stage, gradients
from flops_parameter_counting.costs.optimizer import update_of
from flops_parameter_counting.costs.pipeline import crossing, stages_of
from flops_parameter_counting.costs.setting import COMPUTE_BYTES
from flops_parameter_counting.costs.sharding import (
    Mesh,
    Parameter,
    Parameters,
    apart,
    elements,
    mesh_of,
    of_trained,
    parameters,
    together,
)
from model_config import ModelArchitectureConfig
from runs.config import RunConfig

SENT_OF_WHOLE = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "broadcast": 1}  # times (n-1)/n


@dataclasses.dataclass(frozen=True)
class Exchange:
    """All of a step's collectives of one kind for one purpose: `payload` are their bytes before they are divided."""

    part: str
    kind: str
    ranks: int  # of the group that takes part
    payload: int

    @property
    def sent(self) -> float:
        """Bytes, by one rank."""
        if self.kind == "pass":
            return self.payload / self.ranks
        if self.kind == "send":
            return self.payload
        of_whole = 1 / self.ranks if self.kind == "all_to_all" else SENT_OF_WHOLE[self.kind]
        return of_whole * (self.ranks - 1) / self.ranks * self.payload


@dataclasses.dataclass(frozen=True)
class Step:
    """What the formulas are given: `own` are the parameters of one rank, of its stage of the model, before data ranks
    divide them, `micro_batches` its own."""

    config: ModelArchitectureConfig
    run: RunConfig
    mesh: Mesh
    own: Parameters
    micro_batches: int
    e: int  # bytes of an element in the compute dtype
    stage: Stage = WHOLE

    @property
    def stream(self) -> int:
        """Elements of the residual stream of one micro-batch."""
        return self.tokens * self.config.n_embd

    @property
    def tokens(self) -> int:
        """Of one micro-batch, that a rank calls the model on."""
        return self.run.batch_size * self.config.block_size // self.mesh.context


def step_exchanges(config: ModelArchitectureConfig, run: RunConfig, world_size: int, dtype: str) -> list[Exchange]:
    """Everything that one rank takes part in, empty for one rank; of a pipeline, one of the stage that sends most.

    `dtype` is the compute dtype; `world_size` ranks must be able to share the run (training.plan.check_ranks).
    """
    stages = stages_of(config, run.pipeline_parallel)
    found = (stage_exchanges(config, run, world_size, dtype, stage) for stage in stages)
    return max(found, key=lambda exchanges: sum(exchange.sent for exchange in exchanges))


def stage_exchanges(
    config: ModelArchitectureConfig, run: RunConfig, world_size: int, dtype: str, stage: Stage = WHOLE
) -> list[Exchange]:
    """Everything that a rank of one stage takes part in."""
    mesh = mesh_of(run, world_size)
    own = parameters(config, run.frozen_names, stage, run.adapters).of_rank(mesh)
    step = Step(config, run, mesh, own, run.gradient_accumulation_steps // mesh.batches, COMPUTE_BYTES[dtype], stage)
    exchanges = [*_tensor_parallel(step), *_partial_gradients(step), *_expert_parallel(step)]
    exchanges += [*_context_parallel(step), *_pipeline(step)]
    if run.use_fsdp:
        exchanges += _fsdp(step)
    else:
        exchanges.append(Exchange("gradients", "all_reduce", mesh.data, 4 * elements(of_trained(together(own.all)))))
    if run.use_zero1:
        exchanges += _zero1(step)
    exchanges += _matrices(step)
    exchanges += _small(step)
    return [exchange for exchange in exchanges if exchange.ranks > 1 and exchange.payload]


def sent_by_part(exchanges: list[Exchange]) -> dict[str, float]:
    """Bytes that one rank sends in a step."""
    parts: dict[str, float] = {}
    for exchange in exchanges:
        parts[exchange.part] = parts.get(exchange.part, 0.0) + exchange.sent
    return parts


def _zero1(step: Step) -> list[Exchange]:
    """Updated rows, to all ranks (Rajbhandari et al. 2020, section 5.1): gathered where every rank has as many,
    broadcast by each where not."""
    ranks, sizes = step.mesh.data, {"all_gather": 0, "broadcast": 0}
    for parameter in of_trained(step.own.all):
        sizes["broadcast" if parameter.rows % ranks else "all_gather"] += 4 * parameter.size
    return [Exchange("weights", kind, ranks, size) for kind, size in sizes.items()]


def _matrices(step: Step) -> list[Exchange]:
    """Of what an optimizer of whole matrices makes of their gradients the parts, to the rank that updates the matrix,
    and the parts of the update back (parallel/whole_matrices.py), in float32."""
    mesh, run = step.mesh, step.run
    ranks = (mesh.data if run.use_zero1 else mesh.shards) * mesh.tensor
    travelling = update_of(step.config, run, mesh, step.stage).travelling
    return [Exchange("updates", "all_to_all", ranks, 2 * 4 * travelling)]


def _fsdp(step: Step) -> list[Exchange]:
    """Blocks' mixers and FFNs are gathered for the forward pass and, all but the last block's if they were given
    back, for the backward pass, in the compute dtype (with a recurrent layer, in float32); what lies outside, norms
    included, once, in float32. Gradients are reduced and divided after every micro-batch, because whole ones have
    no place (Rajbhandari et al. 2020, section 7.2); among replicas, once a step.

    Every parameter is padded to as many rows as the ranks divide.
    """
    run, mesh, micro_batches = step.run, step.mesh, step.micro_batches
    own, root = step.own, mesh.shards * elements(step.own.root, mesh.shards)
    sizes = {kind: kind.gathered_bytes(step.e) * own.block(kind, mesh.shards) for kind in own.blocks}
    whole = sum(own.counts[kind] * size for kind, size in sizes.items())
    gathers, twice = 1, 0
    if run.fsdp_reshard_after_forward:
        gathers, twice = micro_batches, whole - sizes[own.last]
    trained = of_trained(together(own.all))
    reduced = REDUCE_BYTES[run.fsdp_reduce_dtype] * mesh.shards * elements(trained, mesh.shards)
    return [
        Exchange("weights", "all_gather", mesh.shards, gathers * (whole + twice + 4 * root)),
        Exchange("gradients", "reduce_scatter", mesh.shards, micro_batches * reduced),
        Exchange("gradients", "all_reduce", mesh.replicas, reduced // mesh.shards),
    ]


def _tensor_parallel(step: Step) -> list[Exchange]:
    """What tensor-parallel ranks exchange in each micro-batch (Shoeybi et al. 2019, section 3; along
    the sequence, Korthikanti et al. 2022, section 4.2).

    Each half of a block gathers its input and divides its sum, and in the backward pass the other way round. Inputs,
    and their gradients, are float32 as the norms leave them; sums, and theirs, are in the compute dtype. Outside, all
    float32: the embedding's sum goes to every rank, for positions to be added, and its gradient is gathered; what the
    head reads is gathered and its gradient divided. With activation checkpointing a block gathers its inputs again,
    and divides again what it keeps: all sums but its last, which it needs where a norm follows. Where nothing before is
    trained there is no gradient to be sent, and a block without one is not computed again.
    """
    config, ranks, stream, e = step.config, step.mesh.tensor, step.stream, step.e
    found, of_input, of_output = zip(*gradients(config, step.run.frozen_names), strict=True)
    halves = [index for index, one in enumerate(found) if one.place and one.place.name in ("mixer", "ffn")]
    of_inputs, of_sums = sum(of_input[index] for index in halves), sum(of_output[index] for index in halves)
    of_stream, of_head = of_output[1], of_input[-1]  # with the positions added to it; as the head reads it
    blocks = {found[index].block for index in halves if step.run.activation_checkpointing and of_output[index]}
    again = [found[index].block in blocks for index in halves]
    sums_again = sum(again) - (len(blocks) if config.norm_position == "pre" else 0)
    gathered = (len(halves) + sum(again)) * 4 + of_sums * e + of_stream * 4 + 4
    divided = (len(halves) + sums_again) * e + of_inputs * 4 + of_head * 4
    rows = step.tokens
    within = sum(
        _added_up(step, found[index], of_input[index], is_again) for index, is_again in zip(halves, again, strict=True)
    )
    exchanges = [
        Exchange("activations", "all_reduce", ranks, 4 * stream + within * rows),
        Exchange("activations", "all_gather", ranks, gathered * stream),
        Exchange("activations", "reduce_scatter", ranks, divided * stream),
        Exchange("loss", "all_gather", ranks, ranks * 2 * 4 * rows),  # every rank's normalizer and target of each row
    ]
    return [dataclasses.replace(one, payload=step.micro_batches * one.payload) for one in exchanges]


def _added_up(step: Step, found: Named, of_input: bool, is_again: bool) -> int:
    """Bytes a token of what ranks add up within a half of a block: in the forward pass, in one that is made again, and
    of gradients where what they are made of is trained."""
    assert found.place is not None
    total, place = 0, f"blocks.{found.block}.{found.place.name}"
    for one in found.place.spec.added_up(found.place.config):
        has_gradient = of_input or not all(step.run.freezes(f"{place}.{name}") for name in one.made_of)
        total += (1 + is_again + has_gradient) * one.numbers * (4 if one.in_float32 else step.e)
    return total


def _expert_parallel(step: Step) -> list[Exchange]:
    """What ranks that share experts exchange in each micro-batch (Lepikhin et al. 2020, section 3.2): how many rows
    each has for every expert, in 64 bits; a row for each choice out and back, in the compute dtype, and their gradients
    the other way; with activation checkpointing the former again. And once a step, the experts' gradients among the
    groups that have copies, in float32. Bytes are those of equally busy ranks."""
    config, run, mesh = step.config, step.run, step.mesh
    if mesh.experts == 1:
        return []
    counts, rows = 0, 0
    for found, of_input, of_output in gradients(config, run.frozen_names):
        stated = [one for one in found.weights if one.by_expert]
        if found.place is None or not stated:
            continue
        own = found.place.config
        is_trained = any(not run.freezes(name) for one in stated for name in one.names)
        forward = 1 + (run.activation_checkpointing and of_output)
        counts += forward * own.n_experts
        rows += (2 * forward + of_input + (of_input or is_trained)) * own.n_experts_per_token
    travelling = 8 * counts + step.e * rows * step.stream
    groups = elements(of_trained(apart(step.own.all)))
    return [
        Exchange("activations", "all_to_all", mesh.experts, step.micro_batches * mesh.experts * travelling),
        Exchange("gradients", "all_reduce", mesh.data // mesh.experts, 4 * groups),
    ]


def _context_parallel(step: Step) -> list[Exchange]:
    """What ranks that divide sequences pass on in each micro-batch: to each, before a mixer, what decoding would
    remember of the tokens before its own; with activation checkpointing again; and of all that the gradients, the other
    way, where the mixer or something before it is trained: also if that is its output projection alone, for which none
    travel. Beside it the means that auxiliary losses are of."""
    config, run, mesh = step.config, step.run, step.mesh
    if mesh.context == 1:
        return []
    passed, means = 0, 0
    for found, _, of_output in gradients(config, run.frozen_names, run.adapters):
        if found.place is None:
            continue
        spec, own = found.place.spec, found.place.config
        forward = 1 + (run.activation_checkpointing and of_output)
        if isinstance(spec, Mixer):
            passed += (forward + of_output) * _passed_on(step, spec, own)
        elif isinstance(spec, FFN):
            plain, with_gradient = spec.averaged(own, run.batch_size)
            means += forward * plain + (forward + of_output) * with_gradient
    return [
        Exchange("activations", "pass", mesh.context, step.micro_batches * run.batch_size * passed),
        Exchange("scalars", "all_reduce", mesh.context, 4 * step.micro_batches * means),
    ]


def _passed_on(step: Step, mixer: Mixer, config: ModelArchitectureConfig) -> int:
    """Bytes of a sequence, by all ranks that divide it, in one direction."""
    ranks, total = step.mesh.context, 0
    for rank in range(1, ranks):
        for one in mixer.remembers(config, rank * config.block_size // ranks, with_current=False):
            numbers = one.whole + (one.elements - one.whole) // step.mesh.tensor
            total += (4 if one.in_float32 else step.e) * numbers
    return total


def _pipeline(step: Step) -> list[Exchange]:
    """What a stage sends in each micro-batch: activations to the next one, and back the gradients of those that it was
    sent (Huang et al. 2019, section 2.2), whether or not anything before is trained. Once a step the first stage and
    the last add up the gradients of a tied embedding, and all exchange what they found of the loss, and the norms of
    their gradients."""
    mesh, stage, run = step.mesh, step.stage, step.run
    if stage.blocks is None:
        return []
    tokens = run.batch_size * step.config.block_size
    forth = 0 if stage.is_last else crossing(step.config, stage.blocks.stop, step.e)
    back = crossing(step.config, stage.blocks.start, step.e)
    return [
        Exchange("activations", "send", mesh.pipeline, step.micro_batches * tokens * (forth + back)),
        Exchange("gradients", "all_reduce", 2, 4 * elements(_tied(step), mesh.shards)),
        Exchange("scalars", "all_reduce", mesh.pipeline, 4 * (1 + _of_components(step.config))),
        Exchange("scalars", "all_gather", mesh.pipeline, 4 * mesh.pipeline),
    ]


def _tied(step: Step) -> list[Parameter]:
    """The embedding of a first stage or of a last one that has it too, where it is trained."""
    if step.stage.blocks is None or not step.config.weight_tying or not (step.stage.is_first or step.stage.is_last):
        return []
    rows, width = step.config.vocab_size or 0, step.config.n_embd
    return [] if step.run.freezes("embedding.weight") else [Parameter(rows, width)]


def _partial_gradients(step: Step) -> list[Exchange]:
    """A norm sees part of the sequence on each tensor-parallel rank, what heads share is there for its heads alone, and
    a router for part of each expert: their gradients are summed, once a step, or before FSDP, which has a part in data
    parallelism too, takes them: after every micro-batch."""
    in_part = elements(parameter for parameter in of_trained(step.own.all) if parameter.divided in GRADIENT_IN_PART)
    times = 1 if step.mesh.data == 1 else step.micro_batches
    return [Exchange("gradients", "all_reduce", step.mesh.tensor, times * 4 * in_part)]


def _small(step: Step) -> list[Exchange]:
    """The loss, what components add to it, and their loads; and for the gradients' global norm that of each parameter,
    once along each way that any is divided; of a tied embedding the first stage's."""
    mesh, trained = step.mesh, list(of_trained(step.own.all))
    norms = 4 * (sum(parameter.copies for parameter in trained) - len(_tied(step)) * (not step.stage.is_first))
    is_divided = any(parameter.divided in ("rows", "columns") for parameter in trained)
    of_experts = 4 * sum(parameter.copies for parameter in apart(trained))
    return [
        Exchange("scalars", "all_reduce", mesh.tensor, norms * is_divided),
        Exchange("scalars", "all_reduce", mesh.shards, norms - of_experts),
        Exchange("scalars", "all_reduce", mesh.experts, of_experts),
        Exchange("scalars", "all_reduce", mesh.size, 4 * (1 + _of_components(step.config))),
    ]


def _of_components(config: ModelArchitectureConfig) -> int:
    """Numbers that FFNs add to those of a step."""
    ffns = [(layer.ffn_spec, config.of(layer), count) for layer, count in config.layer_counts.items() if layer.ffn_spec]
    terms = {name for spec, own, _ in ffns for name in spec.adds(own)}
    return len(terms) + sum(count * spec.loads(own) for spec, own, count in ffns)
