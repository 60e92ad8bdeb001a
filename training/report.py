"""The startup report: what will be trained, what it costs, and every key in force. Text only; no torch."""

import dataclasses

import configurator
from common.errors import UserError
from common.output import wrapped
from common.units import bytes_text
from configurator import Configuration
from flops_parameter_counting.costs.communication import sent_by_part, step_exchanges
from flops_parameter_counting.costs.memory import OFFLOADED, rank_memory
from flops_parameter_counting.costs.model_cost import CONVENTIONS
from flops_parameter_counting.costs.pipeline import bubble, in_words, micro_batches, stage_flops, stages_of
from flops_parameter_counting.costs.sharding import Mesh, elements, mesh_of, of_trained, parameters
from model_config import ModelArchitectureConfig, resolve_architecture
from runs.config import RunConfig
from training.optimizers.registry import optimizer_spec
from training.plan import RunPlan, not_built
from training.schedule import schedule_notes

COLUMN = 23  # where what is said begins
PACKINGS = {
    "best_fit": "whole documents, best fit",
    "single": "a document a window",
    "pairs": "an answer a window, pairs together",
    "prompts": "a prompt and its completion a window, those of a prompt together",
}
MANY_EPOCHS = 4  # beyond which repeated text teaches less than new text (Muennighoff et al. 2023)


def startup_report(
    configuration: Configuration, plan: RunPlan, notes: list[str], world_size: int = 1, width: int | None = None
) -> str:
    """Several paragraphs for the console; those on memory and communication are of one of `world_size` ranks, which
    can share the run (training.plan.check_ranks). `width`: of the terminal, if it is one."""
    paragraphs = [
        _architecture(configuration, plan),
        _length(configuration, plan),
        _memory(configuration, world_size),
    ]
    if world_size > 1:
        paragraphs.append(_communication(configuration, plan, world_size))
    paragraphs = [wrapped(paragraph, width, indent=COLUMN) for paragraph in paragraphs]
    paragraphs.append(_keys(configuration, width))
    paragraphs += [wrapped(f"note: {note}", width) for note in notes]
    return "\n\n".join(paragraphs)


def plan_notes(configuration: Configuration, plan: RunPlan, dataset_vocab_size: int | None) -> list[str]:
    """What is allowed, but may not be meant."""
    run, model = configuration.run, configuration.model
    notes = []
    if (lacking := not_built(model)) is not None:
        notes.append(f"the run itself is refused: {lacking}")
    if dataset_vocab_size is not None and model.vocab_size is not None and model.vocab_size > 2 * dataset_vocab_size:
        notes.append(
            f"the model's vocabulary ({model.vocab_size:,}) is far larger than the dataset's ({dataset_vocab_size:,}); "
            "--vocab_size=None takes the dataset's"
        )
    wanted = run.eval_iters * run.eval_batch_size
    if plan.windows is not None and plan.windows["val"] < wanted:
        notes.append(
            f"the validation split has {plan.windows['val']:,} windows, fewer than eval_iters x eval_batch_size = "
            f"{wanted:,}: an evaluation takes as many whole eval_batch_size as there are"
        )
    for name, source in (plan.sources or {}).items():
        if source.epochs > MANY_EPOCHS:
            notes.append(f"{name} is met {source.epochs:.1f} times in the run: give it a smaller share, or more text")
    if run.decay_lr and run.warmup_iters >= plan.length > 0:
        notes.append(f"the warm-up ({run.warmup_iters:,} steps) does not end within the run ({plan.length:,} steps)")
    return notes + schedule_notes(run, plan.length)


def _architecture(configuration: Configuration, plan: RunPlan) -> str:
    cost = plan.cost
    ratio = "" if cost.attention_ffn_ratio is None else f"   Attention/FFN ratio: {cost.attention_ffn_ratio:.3f}"
    lines = [
        f"Architecture Name:     {configuration.model.name}",
        *_mixers(configuration.model),
        f"Parameters:            {cost.n_params:,}"
        + (f", of which a token meets {cost.n_active:,}" if cost.n_active != cost.n_params else ""),
        *_parts(cost.parameters, cost.n_params),
        *_adapters(configuration),
        f"FLOPs per token:       {plan.flops_per_token['full']:,} (training, full attention; "
        f"{plan.flops_per_token['causal']:,} causal){ratio}",
        *_parts(plan.flops_by_part, plan.flops_per_token["full"]),
    ]
    return "\n".join(lines)


def _adapters(configuration: Configuration) -> list[str]:
    """What is trained beside the model; nothing where that is the model."""
    run, adapters = configuration.run, configuration.run.adapters
    if adapters is None:
        return []
    found = parameters(configuration.model, run.frozen_names, adapters=adapters)
    trained, everything = elements(of_trained(found.all)), found.size
    where = "every linear layer of mixers and FFNs" if run.lora_targets is None else run.lora_targets
    of_all = f"{trained:,} of {everything:,} parameters are trained ({trained / everything:.2%})"
    return [f"Adapters:              {adapters.title}, beside {where}; {of_all}"]


def _mixers(model: ModelArchitectureConfig) -> list[str]:
    """The mixer of each layer, drawn by its letter, and how many there are of each; nothing of a transformer."""
    if model.layer_pattern is None:
        return []
    counts: dict[str, int] = {}
    for layer, count in model.layer_counts.items():
        title = layer.mixer_spec.title.format_map(model.of(layer).as_dict())
        counts[title] = counts.get(title, 0) + count
    named = [f"{count} {title}" for title, count in counts.items()]
    no_ffn = "" if model.ffn_layers == model.n_layer else f"; {model.ffn_layers or 'none'} with an FFN"
    return [f"Layers:                {model.layer_pattern}   {', '.join(named)}{no_ffn}"]


def _parts(parts: dict[str, int], total: int) -> list[str]:
    return [f"  {part:<21}{count:>18,}  {100 * count / total:5.1f}%" for part, count in parts.items() if count]


def _length(configuration: Configuration, plan: RunPlan) -> str:
    run, model = configuration.run, configuration.model
    lines = [
        f"Tokens per step:       {plan.tokens_per_step:,} = {run.gradient_accumulation_steps} micro-batches "
        f"x {run.batch_size} sequences x {model.block_size} tokens",
        f"Steps:                 {plan.length:,}   Tokens: {plan.tokens:,} ({plan.tokens / plan.cost.n_params:.2f} "
        "per parameter)",
        "FLOPs of the run:      "
        + ", ".join(f"{plan.flops(convention):.4e} ({convention})" for convention in CONVENTIONS),
    ]
    if plan.optimizer_flops:
        share = plan.optimizer_flops / (plan.tokens_per_step * plan.flops_per_token["full"])
        lines.append(
            f"Optimizer:             {optimizer_spec(run.optimizer).title}, {plan.optimizer_flops:.4e} FLOPs a step, "
            f"{100 * share:.1f} % of its training FLOPs (full), and not in them"
        )
    if run.mask_documents:
        found = None if run.packing == "prompts" else plan.document_length
        known = "of lengths that are not known: FLOPs are of whole windows"
        if found is not None:
            known = f"in the mean {found:,.1f} tokens about a token"
        lines.append(f"Documents:             kept apart, {known}")
    if run.packing in PACKINGS:
        lines.append(f"Packing:               {_packing(plan, run.packing)}")
    if plan.windows is None:
        lines.append("Steps per epoch:       not known, the dataset is not prepared")
    elif plan.sources is not None:
        lines += [
            f"{'Sources:' if index == 0 else '':<22} {name:<18}{source.tokens:>18,} tokens, {source.epochs:.2f} epochs"
            for index, (name, source) in enumerate(plan.sources.items())
        ]
    else:
        epoch = plan.windows["train"] / run.sequences_per_step
        lines.append(f"Steps per epoch:       {epoch:,.1f}   Epochs: {plan.length / epoch:.2f}")
    return "\n".join(lines)


def _packing(plan: RunPlan, packing: str) -> str:
    how = PACKINGS[packing]
    if packing == "prompts":
        return f"{how}; padding is not known before they are written"
    if plan.windows is None or plan.padding is None:
        return f"{how}; padding is not known, the dataset is not prepared"
    shares = [f"{plan.padding[name]:.3%} of {name} ({windows:,} windows)" for name, windows in plan.windows.items()]
    text = plan.text_tokens(plan.tokens)
    return f"{how}; padding is {', '.join(shares)}; some {text:,.0f} tokens of the run are text"


def _dtypes(configuration: Configuration) -> list[str]:
    """What the run may compute in: `auto` is decided on the device."""
    dtype = configuration.run.dtype
    return ["float32", "bfloat16"] if dtype == "auto" else [dtype]


def _memory(configuration: Configuration, world_size: int) -> str:
    run, dtypes = configuration.run, _dtypes(configuration)
    try:
        memory = {dtype: rank_memory(configuration.model, run, world_size, dtype) for dtype in dtypes}
    except UserError as error:
        return f"Memory estimate:       not known: {error}"
    elsewhere = OFFLOADED if run.fsdp_cpu_offload else ()
    which = "   ".join(
        f"{bytes_text(sum(size for part, size in parts.items() if part not in elsewhere))} in {dtype}"
        for dtype, parts in memory.items()
    )
    of_what = "each process" if world_size == 1 else f"each of {world_size:,} ranks"
    of_what += ", at the stage that holds most" if run.pipeline_parallel > 1 else ""
    lines = [f"Memory estimate:       {which}   (of {of_what}, without PyTorch itself)"]
    for part in memory[dtypes[0]]:
        where = "   in main memory" * (part in elsewhere)
        lines.append(f"  {part:<21}" + "".join(f"{bytes_text(parts[part]):>17}" for parts in memory.values()) + where)
    return "\n".join(lines)


def _communication(configuration: Configuration, plan: RunPlan, world_size: int) -> str:
    """In the same columns as memory; bytes a token are those of all ranks together over the tokens of a step."""
    run = configuration.run
    sent = {
        dtype: sent_by_part(step_exchanges(configuration.model, run, world_size, dtype))
        for dtype in _dtypes(configuration)
    }
    totals = {dtype: sum(parts.values()) for dtype, parts in sent.items()}
    mesh = mesh_of(run, world_size)
    which = "   ".join(f"{bytes_text(total)} in {dtype}" for dtype, total in totals.items())
    lines = [
        f"Ranks:                 {world_size:,} = {mesh.replicas:,} replicas x {mesh.shards:,} shards of one x "
        f"{mesh.tensor:,} that share every layer"
        + (f"; each {mesh.experts:,} share the experts" if mesh.experts > 1 else "")
        + (f"; each {mesh.context:,} divide every sequence" if mesh.context > 1 else "")
        + (f"; so many for each of {mesh.pipeline:,} stages" if mesh.pipeline > 1 else ""),
        *(_pipeline(configuration.model, run, mesh) if mesh.pipeline > 1 else ()),
        f"Sent in a step:        {which}   (by each rank, ring algorithms)",
    ]
    for part in next(iter(sent.values())):
        lines.append(f"  {part:<21}" + "".join(f"{bytes_text(parts[part]):>17}" for parts in sent.values()))
    by_token = "".join(f"{world_size * total / plan.tokens_per_step:15,.1f} B" for total in totals.values())
    lines.append(f"  {'bytes a token':<21}{by_token}   (of all ranks)")
    return "\n".join(lines)


def _pipeline(model: ModelArchitectureConfig, run: RunConfig, mesh: Mesh) -> list[str]:
    """How the blocks are divided, by forward FLOPs in full attention, and how long a stage waits for the others."""
    stages, count = stages_of(model, mesh.pipeline), micro_batches(run, mesh.data)
    flops = [stage_flops(model, stage) for stage in stages]
    shares = [f"{in_words(stage)} ({of / sum(flops):.1%})" for stage, of in zip(stages, flops, strict=True)]
    return [
        f"Pipeline:              {', '.join(shares)} of the FLOPs, the head's with the last",
        f"  waiting              {bubble(mesh.pipeline, count):.1%} of a step of {count:,} micro-batches a pipeline "
        f"({run.pipeline_schedule}), were all stages equally busy",
    ]


def _keys(configuration: Configuration, width: int | None) -> str:
    values, preset = configurator.as_dict(configuration), configuration.model.arch_preset
    which = "every key"
    if not configuration.run.verbose:
        plain = resolve_architecture({"arch_preset": preset}).as_dict() | dataclasses.asdict(RunConfig())
        values = {key: value for key, value in values.items() if key == "arch_preset" or value != plain[key]}
        which = f"what differs from arch_preset={preset!r} and the defaults; --verbose: every key"
    listed = ", ".join(f"{key}={value!r}" for key, value in values.items())
    told = f"Configuration ({which}):\n  {listed}"
    return wrapped(told, width or 118, indent=0)
