"""The config file of a run: everything that makes it comparable to the others of its ladder, and its prediction."""

from pathlib import Path
from typing import Any

from common.errors import UserError
from flops_parameter_counting.laws.scaling_laws import Law
from flops_parameter_counting.planner.emit import prediction_keys, schedule_keys
from ladders.plan import Arguments, Run, hash_of


def config_text(run: Run, arguments: Arguments, learning_rate: float, law: Law | None, loss: float | None) -> str:
    """The file, a function of its arguments alone: it is made again where it was lost."""
    paragraphs = [
        _purpose(run),
        "\n".join(f"{key} = {_literal(value)}" for key, value in run.architecture.items()),
        _data(run, arguments),
        _steps(run),
        "\n".join(schedule_keys(learning_rate, run.steps)),
        _evaluation(run),
        "\n".join(prediction_keys(law, loss, f"{run.tokens} * {run.flops_per_token}", run.seconds)),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _purpose(run: Run) -> str:
    what = "a run of the sweep of learning rates" if run.is_sweep else f"a budget of {run.budget:.3g} FLOPs"
    lines = [
        f"# {run.model}: {what}, {run.n_params:,} parameters.",
        f"# {run.tokens:,} tokens x {run.flops_per_token:,} FLOPs (training, full attention, with logits) = "
        f"{run.flops:.4e},",
        f"#   {100 * run.flops / run.budget:.2f} % of the budget",
    ]
    return "\n".join(lines)


def _data(run: Run, arguments: Arguments) -> str:
    lines = [f'dataset = "{run.dataset or arguments.dataset}"']
    if arguments.val_dataset is not None:
        lines.append(f'val_dataset = "{arguments.val_dataset}"')
    if arguments.data_dir is not None:
        lines.append(f"data_dir = {arguments.data_dir!r}")
    return "\n".join([*lines, f"seed = {run.seed}", f'device = "{arguments.device}"'])


def _steps(run: Run) -> str:
    block_size = run.architecture["block_size"]
    lines = [
        f"# {run.gradient_accumulation_steps} x {run.batch_size} x {block_size:,} = {run.tokens_per_step:,} tokens",
        f"gradient_accumulation_steps = {run.gradient_accumulation_steps}",
        f"batch_size = {run.batch_size}",
        f"max_iters = {run.steps}",
    ]
    return "\n".join(lines)


def _evaluation(run: Run) -> str:
    lines = [
        f"# {run.eval_iters} x {run.batch_size} = {run.eval_iters * run.batch_size} windows: the same for every run",
        f"eval_iters = {run.eval_iters}",
        f"eval_batch_size = {run.batch_size}",
        f"eval_interval = {run.eval_interval}",
        f"log_interval = {max(1, run.steps // 100)}",
        "keep_best = False",
    ]
    return "\n".join(lines)


def check_config(file: Path, expected: str) -> None:
    """Raises UserError for a config that is not as the ledger says it was planned: its hash is another."""
    try:
        found = hash_of(file.read_text(errors="replace"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    if found != expected:
        raise UserError(
            f"{file} was changed after it was planned: its hash is {found}, and the ledger has {expected}: restore it, "
            "or plan another ladder"
        )
