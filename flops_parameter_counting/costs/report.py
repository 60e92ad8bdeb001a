"""What one model costs: parameters, FLOPs, memory, cache, decoding and time, as data and as text for the console.

Every figure is `model_cost`'s or follows from it by the formula that stands at its function.
"""

from typing import Any

from common.errors import UserError
from flops_parameter_counting.costs.memory import OFFLOADED, state_memory, update_memory, working_memory
from flops_parameter_counting.costs.model_cost import ModelCost, Stage, TrainingFlops, model_cost, training_flops
from flops_parameter_counting.costs.optimizer import update_of
from flops_parameter_counting.costs.pipeline import bubble, micro_batches, stages_of
from flops_parameter_counting.costs.setting import DTYPE_BYTES, Model, Setting
from flops_parameter_counting.costs.sharding import Mesh, check_mesh, mesh_of, parameters
from model_config import ModelArchitectureConfig
from runs.config import RunConfig
from training.optimizers.registry import optimizer_spec

CONVENTION = "multiply-add 2, backward twice forward, logits included; attention in full unless causal is said"


def describe(model: Model, setting: Setting) -> dict[str, Any]:
    """Everything about a model, as data for JSON. Raises UserError for a setting or a model that cannot be counted."""
    length = _sequence_length(model.architecture, setting)
    cost = model_cost(model.architecture, length)
    training = training_flops(
        model.architecture.replace(block_size=length), setting.run.frozen_names, adapters=setting.run.adapters
    )
    return {
        "name": model.name,
        "family": model.family,
        "sequence_length": length,
        "convention": CONVENTION,
        "parameters": {
            "total": cost.n_params,
            "active": cost.n_active,
            "by_part": _without_zeros(cost.parameters),
            "active_by_part": _without_zeros(cost.active),
        },
        "flops_per_token": _flops(model.architecture, cost, training, length),
        "memory": memory_per_device(model.architecture, length, setting) | {"cache": _cache(model, length, setting)},
        "decoding": _decoding(model, cost, length, setting),
        "optimizer": _optimizer(model.architecture, training, setting),
        "time": _time(training, setting),
        "notes": [*model.notes, *_notes_on_run(setting.run, setting.devices)],
    }


def _notes_on_run(run: RunConfig, devices: int) -> list[str]:
    found = [] if run.frozen is None else [f"not trained: {run.frozen}"]
    if run.adapters is not None:
        found.append(f"trained are adapters alone: {run.adapters.title}")
    if run.mask_documents:
        found.append(
            "mask_documents: FLOPs are of whole windows; train.py --dry_run counts the pairs that a prepared dataset's "
            "documents leave"
        )
    if run.pipeline_parallel > 1:
        count = micro_batches(run, mesh_of(run, devices).data)
        found.append(
            f"pipeline_parallel: of a step of {count} micro-batches a stage waits "
            f"{100 * bubble(run.pipeline_parallel, count):.1f} %, which an MFU has in it"
        )
    return found


def _sequence_length(config: ModelArchitectureConfig, setting: Setting) -> int:
    length = setting.sequence_length or config.block_size
    if config.position_encoding == "learned_absolute" and length > config.block_size:
        raise UserError(
            f"--sequence_length={length}: the model has learned positions for {config.block_size} tokens and no more"
        )
    return length


def _without_zeros(parts: dict[str, int]) -> dict[str, int]:
    """In the order of the forward pass: the head is last."""
    return {part: count for part, count in sorted(parts.items(), key=lambda item: item[0] == "lm_head") if count}


def _flops(config: ModelArchitectureConfig, cost: ModelCost, training: TrainingFlops, length: int) -> dict[str, Any]:
    """Per token, forward and training, and two estimates of the training FLOPs.

    6 N: two FLOPs a parameter forward, four backward (Kaplan et al. 2020). 6 N + 12 L H Q T adds the scores
    (Chowdhery et al. 2022, appendix B). N here: the active parameters, tied ones once, embeddings among them.
    """
    n, of_training = cost.n_active, training.by_convention
    counts = config.layer_counts.items()
    scores = sum(count * layer.mixer_spec.palm_scores(config.of(layer), length) for layer, count in counts)
    estimates = {"6N": 6 * n, "6N+12LHQT": 6 * n + scores}
    return {
        "forward": cost.forward_flops("full"),
        "training": of_training["full"],
        "by_part": _without_zeros(cost.flops),
        "training_by_part": _without_zeros(training.by_part),
        "causal": {
            "forward": cost.forward_flops("causal"),
            "training": of_training["causal"],
            "by_part": _without_zeros(cost.flops_by_part("causal")),
        },
        "estimates": {
            name: {
                "n": n,
                "training": value,
                "off_full_percent": 100 * (value / of_training["full"] - 1),
                "off_causal_percent": 100 * (value / of_training["causal"] - 1),
            }
            for name, value in estimates.items()
        },
    }


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def memory_per_device(config: ModelArchitectureConfig, length: int, setting: Setting) -> dict[str, Any]:
    """Bytes of one device in training, by part (memory.py says what they are), and which of them it does not hold
    itself; of a pipeline, of a device of the stage that holds most.

    The sizes of `config` may be those of a search's grid, and the bytes are then its arrays. Where activations and
    logits are not known, `not_known` says why. Raises UserError where so many devices cannot share the model.
    """
    run, built = setting.run, config.replace(block_size=length)
    check_mesh(built, run, setting.devices)
    mesh, e = mesh_of(run, setting.devices), DTYPE_BYTES[setting.dtype]
    of_stages = [_memory_of_stage(built, run, mesh, e, stage) for stage in stages_of(built, mesh.pipeline)]
    by_part, not_known = max(of_stages, key=lambda found: sum(found[0].values()))
    in_main_memory = [part for part in OFFLOADED if part in by_part] if setting.fsdp_cpu_offload else []
    total = sum(size for part, size in by_part.items() if part not in in_main_memory)
    fits = None if setting.device_memory is None or not_known else total <= setting.device_memory
    return {
        "strategy": setting.strategy,
        "devices": setting.devices,
        "tensor_parallel": setting.tensor_parallel,
        "expert_parallel": setting.expert_parallel,
        "context_parallel": setting.context_parallel,
        "pipeline_parallel": setting.pipeline_parallel,
        "fsdp_replicas": setting.fsdp_replicas,
        "micro_batch": setting.micro_batch,
        "dtype": setting.dtype,
        "optimizer": run.optimizer,
        "activation_checkpointing": setting.activation_checkpointing,
        "by_part": by_part,
        "in_main_memory": in_main_memory,
        "total": total,
        "not_known": not_known,
        "device_memory": setting.device_memory,
        "fits": fits,
    }


def _memory_of_stage(
    config: ModelArchitectureConfig, run: RunConfig, mesh: Mesh, e: int, stage: Stage
) -> tuple[dict[str, int], str | None]:
    """By part, and why activations and logits are not among them."""
    own = parameters(config, run.frozen_names, stage, run.adapters)
    by_part = state_memory(own, run, mesh, e) | update_memory(config, run, mesh, stage)
    try:
        return by_part | working_memory(config, run, mesh, e, stage), None
    except UserError as error:  # a component whose memory nobody has written down
        return by_part, f"activations and logits are not counted here: {error}"


def _optimizer(config: ModelArchitectureConfig, training: TrainingFlops, setting: Setting) -> dict[str, Any]:
    """FLOPs of the matrix products of one step's update, and of as many tokens' training (full); of the device that
    computes most of them, where devices share it."""
    run, mesh = setting.run, mesh_of(setting.run, setting.devices)
    updates = [update_of(config, run, mesh, stage) for stage in stages_of(config, mesh.pipeline)]
    flops = sum(update.flops for update in updates)
    return {
        "name": run.optimizer,
        "flops_per_step": flops,
        "flops_per_step_of_busiest_device": max(update.of_busiest for update in updates),
        "as_tokens": flops / training.by_convention["full"],
    }


def _cache(model: Model, length: int, setting: Setting) -> dict[str, Any]:
    """Bytes that a sequence of `length` tokens keeps while it is continued, in the compute dtype, but for what a
    component keeps in float32."""
    config, parts = model.architecture, dict[str, int]()
    for layer, count in config.layer_counts.items():
        for kept in layer.mixer_spec.remembers(config.of(layer), length, with_current=not model.is_ours):
            size = 4 if kept.in_float32 else DTYPE_BYTES[setting.dtype]
            parts[kept.part] = parts.get(kept.part, 0) + count * size * kept.elements
    return {"dtype": setting.dtype, "bytes_per_sequence": sum(parts.values()), "by_part": parts}


def _decoding(model: Model, cost: ModelCost, length: int, setting: Setting) -> dict[str, Any]:
    """The last token of one sequence of `length`: its query meets them all, every active weight is read once (of an
    embedding only a row, which is left out), and the cache is read. On a named device, the time it needs at least."""
    config = model.architecture
    layers = config.layer_counts.items()
    difference = sum(count * layer.mixer_spec.decoding_difference(config.of(layer), length) for layer, count in layers)
    flops = cost.forward_flops("full") + difference
    looked_up = cost.parameters["position"]
    if not config.weight_tying:
        looked_up += cost.parameters["embedding"]
    weights = DTYPE_BYTES[setting.dtype] * (cost.n_active - looked_up)
    cache = _cache(model, length, setting)["bytes_per_sequence"]
    found = {
        "context": length,
        "flops_per_token": flops,
        "bytes_per_token": weights + cache,
        "bytes_by_part": {"weights": weights, "cache": cache},
        "seconds_per_token_at_least": None,
    }
    if setting.peak_flops is not None and setting.bandwidth is not None:
        found["seconds_per_token_at_least"] = max(flops / setting.peak_flops, (weights + cache) / setting.bandwidth)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Time


def _time(training: TrainingFlops, setting: Setting) -> dict[str, Any] | None:
    """tokens x training FLOPs a token (full) / (devices x dense peak x MFU); None where no tokens were given."""
    if setting.tokens is None or setting.peak_flops is None or setting.mfu is None:
        return None
    flops = training.by_convention["full"] * setting.tokens
    seconds = flops / (setting.devices * setting.peak_flops * setting.mfu)
    return {
        "tokens": setting.tokens,
        "flops": flops,
        "hardware": setting.hardware,
        "devices": setting.devices,
        "dtype": setting.dtype,
        "peak_flops_per_device": setting.peak_flops,
        "mfu": setting.mfu,
        "seconds": seconds,
        "days": seconds / 86_400,
        "device_hours": setting.devices * seconds / 3600,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Text


def as_text(found: dict[str, Any]) -> str:
    """What `describe` found, in several paragraphs."""
    paragraphs = [
        f"{found['name']} ({found['family']}), sequences of {found['sequence_length']:,} tokens\n{found['convention']}",
        _parameters_text(found["parameters"]),
        _flops_text(found["flops_per_token"]),
        *([_optimizer_text(found["optimizer"])] if found["optimizer"]["flops_per_step"] else []),
        _memory_text(found["memory"]),
        _decoding_text(found["memory"]["cache"], found["decoding"]),
    ]
    if found["time"] is not None:
        paragraphs.append(_time_text(found["time"]))
    if found["notes"]:
        paragraphs.append("\n".join(f"note: {note}" for note in found["notes"]))
    return "\n\n".join(paragraphs)


def row(name: str, count: int, total: int) -> str:
    """A part, its count, and its share of the total."""
    return f"  {name:<26}{count:>22,}  {100 * count / total:5.1f} %"


def _parameters_text(parameters: dict[str, Any]) -> str:
    total, active = parameters["total"], parameters["active"]
    lines = [f"PARAMETERS {total:,}" + (f", of which a token meets {active:,}" if active != total else "")]
    return "\n".join([*lines, *(row(part, count, total) for part, count in parameters["by_part"].items())])


def _flops_text(flops: dict[str, Any]) -> str:
    causal = flops["causal"]
    lines = [
        "FLOPs PER TOKEN",
        f"  forward                   {flops['forward']:>22,}  full    {causal['forward']:>22,}  causal",
        f"  training                  {flops['training']:>22,}  full    {causal['training']:>22,}  causal",
        "  of the forward pass, full:",
        *(row(part, count, flops["forward"]) for part, count in flops["by_part"].items()),
        f"  beside the usual estimates of training FLOPs, N = {flops['estimates']['6N']['n']:,} "
        "(all active parameters, tied ones once):",
    ]
    lines += [
        f"  {name:<26}{estimate['training']:>22,}  {estimate['off_full_percent']:+.1f} % of full, "
        f"{estimate['off_causal_percent']:+.1f} % of causal"
        for name, estimate in flops["estimates"].items()
    ]
    return "\n".join(lines)


def _optimizer_text(optimizer: dict[str, Any]) -> str:
    return (
        f"OPTIMIZER {optimizer_spec(optimizer['name']).title}, in no other figure here, and not in MFU\n"
        f"  FLOPs of a step           {optimizer['flops_per_step']:>22,}  as the training of "
        f"{optimizer['as_tokens']:,.1f} tokens\n"
        f"  of the busiest device     {optimizer['flops_per_step_of_busiest_device']:>22,}"
    )


def _memory_text(memory: dict[str, Any]) -> str:
    checkpointing = ", activation checkpointing" if memory["activation_checkpointing"] else ""
    at_least = "at least " if memory["not_known"] else ""
    lines = [
        f"MEMORY OF TRAINING {at_least}{memory['total'] / 1e9:,.2f} GB on {_devices(memory)} "
        f"(micro-batch {memory['micro_batch']}, {memory['dtype']}{checkpointing}; master weights float32, "
        f"{optimizer_spec(memory['optimizer']).title})"
    ]
    for part, size in memory["by_part"].items():
        where = "  in main memory" if part in memory["in_main_memory"] else ""
        lines.append(f"  {part:<26}{size / 1e9:>22,.{1 if size >= 1e11 else 3}f} GB{where}")
    if memory["not_known"]:
        lines.append(f"  {memory['not_known']}")
    if memory["fits"] is not None:
        verdict = "fits" if memory["fits"] else "does not fit"
        lines.append(f"  {verdict} in the device's {memory['device_memory'] / 1e9:,.0f} GB")
    return "\n".join(lines)


def _devices(memory: dict[str, Any]) -> str:
    if memory["devices"] == 1:
        return "1 device"
    tensor, replicas = memory["tensor_parallel"], memory["fsdp_replicas"]
    layers = f", {tensor} share every layer" if tensor > 1 else ""
    layers += f", {memory['expert_parallel']} share the experts" if memory["expert_parallel"] > 1 else ""
    layers += f", {memory['context_parallel']} divide every sequence" if memory["context_parallel"] > 1 else ""
    layers += f", {memory['pipeline_parallel']} stages" if memory["pipeline_parallel"] > 1 else ""
    copies = f", {replicas} replicas" if replicas > 1 else ""
    return f"each of {memory['devices']} devices, {memory['strategy']}{copies}{layers}"


def _decoding_text(cache: dict[str, Any], decoding: dict[str, Any]) -> str:
    lines = [
        f"DECODING the token {decoding['context']:,} of one sequence, {cache['dtype']}",
        f"  cache of a sequence       {cache['bytes_per_sequence']:>22,} bytes",
        *(f"    {part:<24}{size:>22,} bytes" for part, size in cache["by_part"].items()),
        f"  FLOPs per token           {decoding['flops_per_token']:>22,}",
        f"  bytes read per token      {decoding['bytes_per_token']:>22,} (weights and cache)",
    ]
    if decoding["seconds_per_token_at_least"] is not None:
        milliseconds = 1e3 * decoding["seconds_per_token_at_least"]
        lines.append(f"  at least, on one device   {milliseconds:>22,.3f} ms a token")
    return "\n".join(lines)


def _time_text(time: dict[str, Any]) -> str:
    return (
        f"TIME {time['days']:,.2f} days, {time['device_hours']:,.1f} device-hours\n"
        f"  {time['tokens']:.4g} tokens = {time['flops']:.4e} FLOPs (full) on {time['devices']} x {time['hardware']}, "
        f"{time['peak_flops_per_device']:.4g} FLOP/s dense in {time['dtype']}, MFU {time['mfu']:g}"
    )
