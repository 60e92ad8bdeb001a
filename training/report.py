"""The startup report: what will be trained, what it costs, and every key in force. Text only; no torch."""

import dataclasses
import textwrap

from configurator import Configuration
from errors import UserError
from flops_parameter_counting.memory import training_memory
from flops_parameter_counting.model_cost import CONVENTIONS
from training.plan import RunPlan


def startup_report(configuration: Configuration, plan: RunPlan, notes: list[str]) -> str:
    """Several paragraphs for the console."""
    paragraphs = [
        _architecture(configuration, plan),
        _length(configuration, plan),
        _memory(configuration),
        _keys(configuration),
    ]
    paragraphs += [f"note: {note}" for note in notes]
    return "\n\n".join(paragraphs)


def plan_notes(configuration: Configuration, plan: RunPlan, dataset_vocab_size: int | None) -> list[str]:
    """What is allowed, but may not be meant."""
    run, model = configuration.run, configuration.model
    notes = []
    if dataset_vocab_size is not None and model.vocab_size is not None and model.vocab_size > 2 * dataset_vocab_size:
        notes.append(
            f"the model's vocabulary ({model.vocab_size:,}) is far larger than the dataset's ({dataset_vocab_size:,}); "
            "--vocab_size=None takes the dataset's"
        )
    if plan.windows is not None and plan.windows["val"] < run.eval_iters * run.batch_size:
        notes.append(
            f"the validation split has {plan.windows['val']:,} windows, fewer than eval_iters x batch_size = "
            f"{run.eval_iters * run.batch_size:,}: an evaluation takes as many whole batches as there are"
        )
    if run.decay_lr and run.warmup_iters >= plan.length > 0:
        notes.append(f"the warm-up ({run.warmup_iters:,} steps) does not end within the run ({plan.length:,} steps)")
    return notes


def _architecture(configuration: Configuration, plan: RunPlan) -> str:
    cost = plan.cost
    lines = [
        f"Architecture Name:     {configuration.model.name}",
        f"Parameters:            {cost.n_params:,}",
        *_parts(cost.parameters, cost.n_params),
        f"FLOPs per token:       {plan.flops_per_token['full']:,} (training, full attention; "
        f"{plan.flops_per_token['causal']:,} causal)   Attention/FFN ratio: {cost.attention_ffn_ratio:.3f}",
        *_parts({part: 3 * flops for part, flops in cost.flops.items()}, plan.flops_per_token["full"]),
    ]
    return "\n".join(lines)


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
    if plan.windows is None:
        lines.append("Steps per epoch:       not known, the dataset is not prepared")
    else:
        epoch = plan.windows["train"] / run.sequences_per_step
        lines.append(f"Steps per epoch:       {epoch:,.1f}   Epochs: {plan.length / epoch:.2f}")
    return "\n".join(lines)


def _memory(configuration: Configuration) -> str:
    run = configuration.run
    dtypes = ["float32", "bfloat16"] if run.dtype == "auto" else [run.dtype]
    try:
        memory = {
            dtype: training_memory(configuration.model, run.batch_size, dtype, run.activation_checkpointing)
            for dtype in dtypes
        }
    except UserError as error:
        return f"Memory estimate:       not known: {error}"
    which = "   ".join(f"{sum(parts.values()) / 1e9:.2f} GB in {dtype}" for dtype, parts in memory.items())
    lines = [f"Memory estimate:       {which}   (of each process, without PyTorch itself)"]
    for part in memory[dtypes[0]]:
        lines.append(f"  {part:<21}" + "".join(f"{parts[part] / 1e9:14.3f} GB" for parts in memory.values()))
    return "\n".join(lines)


def _keys(configuration: Configuration) -> str:
    values = dataclasses.asdict(configuration.model) | dataclasses.asdict(configuration.run)
    listed = ", ".join(f"{key}={value!r}" for key, value in values.items())
    return "Configuration: " + textwrap.fill(listed, 118, subsequent_indent="  ", break_long_words=False)
