"""From a candidate to a config file that train.py runs unchanged.

Tokens become whole steps, rounded down: the figures in the file's comments are those of the run as it will be, and
its startup report shows the same.
"""

import dataclasses
import math
import textwrap
from typing import Any

from common.errors import UserError
from components.registry import OWN_PRESETS, PRESETS
from data.facts import UNPREPARED, Facts, known
from flops_parameter_counting.costs.model_cost import model_cost
from flops_parameter_counting.costs.setting import STRATEGIES, Setting
from flops_parameter_counting.laws.scaling_laws import (
    CONSTANTS,
    Law,
    RuleValue,
    count_parameters,
    is_published,
    knows_nothing,
    on_experts,
    on_state_spaces,
)
from flops_parameter_counting.planner.search import Candidate, Search, memory_of
from flops_parameter_counting.planner.space import EXPERT_SIZES
from model_config import ModelArchitectureConfig

MICRO_BATCH_TOKENS = 16_384
WARMUP = 0.05  # of the steps,
FEWEST_WARMUP = 200  # but not fewer: how long Adam's first steps harm does not depend on how long the run is;
MOST_WARMUP = 0.25  # of the steps of a short one


@dataclasses.dataclass(frozen=True)
class RunSizes:
    """A candidate's tokens as whole steps, and the peak learning rate."""

    gradient_accumulation_steps: int
    batch_size: int
    block_size: int
    max_iters: int
    learning_rate: float

    @property
    def tokens_per_step(self) -> int:
        return self.gradient_accumulation_steps * self.batch_size * self.block_size

    @property
    def tokens(self) -> int:
        return self.max_iters * self.tokens_per_step


def run_sizes(candidate: Candidate, search: Search, rules: list[RuleValue]) -> RunSizes:
    """The batch is the geometric mean of what the rules say, in a power of two sequences; on several devices, in as
    many micro-batches for each, none larger than the search counted memory with. The learning rate is the lowest: too
    high a rate costs more than too low a one, and far below the models that the rules were fitted on, they part."""
    length = search.space.sequence_length
    available = int(candidate.tokens) // length  # sequences
    if available < 1:
        raise UserError(f"{candidate.tokens:.4g} tokens are less than one sequence of {length}: raise the budget")
    wanted = 2 ** max(0, round(math.log2(geometric_mean([rule.batch_tokens for rule in rules]) / length)))
    sequences = min(wanted, 2 ** int(math.log2(available)))
    most = MICRO_BATCH_TOKENS // length if search.training is None else search.training.micro_batch
    batch_size = max(1, min(sequences, most))
    batch_size = 2 ** int(math.log2(batch_size))  # divides the sequences
    devices = 1 if search.training is None else search.training.devices  # each takes as many micro-batches of a step
    accumulation = max(1, round(sequences // batch_size / devices)) * devices
    if accumulation * batch_size > available:
        raise UserError(f"{candidate.tokens:.4g} tokens are less than one step of {devices:,} devices: take fewer")
    return RunSizes(
        gradient_accumulation_steps=accumulation,
        batch_size=batch_size,
        block_size=length,
        max_iters=available // (accumulation * batch_size),
        learning_rate=float(f"{min(rule.learning_rate for rule in rules):.2g}"),
    )


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


@dataclasses.dataclass(frozen=True)
class DatasetChoice:
    """What a config file trains on. `facts` None: nothing is known before it is prepared."""

    name: str
    data_dir: str | None
    facts: Facts | None


def choose_dataset(name: str | None, data_dir: str | None, vocab_size: int) -> DatasetChoice:
    """`name`, or else the embedded dataset for bytes and OpenWebText for GPT-2's vocabulary and larger ones. Raises
    UserError for a dataset without a folder, one of more token ids than `vocab_size`, and where none is known."""
    if name is None:
        fitting = {facts.vocab_size: dataset for dataset, facts in UNPREPARED.items()}
        name = fitting.get(vocab_size, "openwebtext")
        if vocab_size < UNPREPARED[name].vocab_size:
            raise UserError(f"no dataset with a vocabulary of {vocab_size:,} is known: name it with --dataset")
    facts = known(name, data_dir)
    if facts is not None and vocab_size < facts.vocab_size:
        raise UserError(
            f"--vocab_size={vocab_size}: the dataset {name!r} has {facts.vocab_size} token ids: take at least as many"
        )
    return DatasetChoice(name, data_dir, facts)


def config_text(
    candidate: Candidate, search: Search, rules: list[RuleValue], dataset: DatasetChoice, command: str
) -> str:
    """The config file. `command` is what made it."""
    sizes, model = run_sizes(candidate, search, rules), candidate.config(search.space)
    paragraphs = [
        _purpose(sizes, model, search, command),
        _architecture(model),
        _data(dataset, model, sizes),
        _steps(sizes, search, model, rules),
        _learning_rate(sizes, rules),
        _intervals(sizes),
        _prediction(sizes, model, search),
    ]
    if search.training is not None and (keys := _on_devices(search.training)):
        paragraphs.append(keys)
    return "\n\n".join(paragraphs) + "\n"


def _purpose(sizes: RunSizes, model: ModelArchitectureConfig, search: Search, command: str) -> str:
    cost, law = model_cost(model), search.law
    per_token, n = cost.training_flops(), count_parameters(cost, law.N)
    predicted = law.of(cost).loss(n, sizes.tokens, search.unique_tokens)
    parts = " + ".join(f"{count:,} {part}" for part, count in cost.parameters.items() if count)
    active = "" if cost.n_active == cost.n_params else f", of which a token meets {cost.n_active:,}"
    flops = sizes.tokens * per_token
    lines = [
        f"{model.name}: what a budget of {search.budget:.4g} FLOPs buys. Made by",
        f"  {command}",
        f"Parameters: {parts} = {cost.n_params:,}{active}",
        f"FLOPs per token: {per_token:,} (training, full attention, with logits)",
        f"FLOPs of the run: {sizes.tokens:,} tokens x {per_token:,} = {flops:.4e},",
        f"  {_of_budget(flops, search)}",
        f"Predicted loss: {predicted:.5f} nats per token of the law's own tokenizer and data",
        f"  ({law.name}: {law.source})",
    ]
    lines += [f"  {line}" for line in on_experts(law, cost)]
    if model.has_constant_state:
        lines += [f"  {line}" for line in on_state_spaces(law)]
    lines += [f"  {line}" for line in law.of(cost).outside_range(n, sizes.tokens)]
    if search.training is not None:
        training = dataclasses.replace(search.training, micro_batch=sizes.batch_size)
        lines.append(f"Memory: {memory_of(model, training) / 1e9:,.2f} GB{_devices(training)}")
    if knows_nothing(float(predicted), search.space.vocab_size):
        lines.append("  above ln(vocab_size), which a model has that knows nothing: a ranking, not a loss")
    return "\n".join(_comment(line) for line in lines)


def _devices(training: Setting) -> str:
    of = "" if training.device_memory is None else f" of {training.device_memory / 1e9:,g} GB"
    if training.devices == 1:
        return f"{of} on one {training.hardware}"
    return f"{of} on each of {training.devices:,} x {training.hardware}, {training.strategy}"


def _comment(line: str) -> str:
    """In lines that ruff leaves alone; what is continued is indented."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    wrapped = textwrap.wrap(line, 117, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"# {part}" for part in wrapped)


def _of_budget(flops: int, search: Search) -> str:
    share = f"{100 * flops / search.budget:.2f} % of the budget"
    if search.is_published:
        return f"{share}: the published formula counts otherwise"
    later = " (inference takes its part)" if search.inference_tokens else ""
    return f"{share}: steps are whole{later}"


def _architecture(model: ModelArchitectureConfig) -> str:
    pattern = "" if model.layer_pattern is None else f"  # {model.layer_pattern}"
    lines = [f"components = {str(OWN_PRESETS[model.arch_preset])!r}"] if model.arch_preset in OWN_PRESETS else []
    lines += [f'arch_preset = "{model.arch_preset}"', f"n_layer = {model.n_layer}{pattern}"]
    keys = model.layer_keys
    if "n_head" in keys:
        lines.append(f"n_head = {model.n_head}" + f"  # of {model.head_dim}" * ("head_dim" in keys))
    if "head_dim" in PRESETS[model.arch_preset]:
        lines.append(f"head_dim = {model.head_dim}")
    if "num_key_value_heads" in keys:
        lines.append(f"num_key_value_heads = {model.kv_heads}")
    lines.append(f"n_embd = {model.n_embd}")
    if "d_ff" in keys:
        lines.append(f"d_ff = {model.d_ff}")
    lines += [f"{name} = {model[name]}" for name in EXPERT_SIZES if name in keys]
    lines.append(f"weight_tying = {model.weight_tying}")
    return "\n".join(lines)


def _data(dataset: DatasetChoice, model: ModelArchitectureConfig, sizes: RunSizes) -> str:
    name, facts, lines = dataset.name, dataset.facts, []
    if facts is not None and facts.tokens is not None and sizes.tokens > facts.tokens:
        lines.append(
            f"# {name} has {facts.tokens:.4g} tokens, and the run passes over them {sizes.tokens / facts.tokens:.3g} "
            f"times:\n#   --unique_tokens {facts.tokens:.4g} lets the search count what repeated ones are worth."
        )
    if facts is not None and facts.vocab_size != model.vocab_size:
        lines.append(
            f"# Of {model.vocab_size:,} token ids its tokenizer has {facts.vocab_size:,}: the others never occur."
        )
    lines.append(f'dataset = "{name}"  # python data/{name}/prepare.py')
    if dataset.data_dir is not None:
        lines.append(f"data_dir = {dataset.data_dir!r}")
    return "\n".join([*lines, f"vocab_size = {model.vocab_size}"])


def _steps(sizes: RunSizes, search: Search, model: ModelArchitectureConfig, rules: list[RuleValue]) -> str:
    cost = model_cost(model)
    met = "" if cost.n_active == cost.n_params else " that a token meets"
    low, high = min(rule.batch_tokens for rule in rules), max(rule.batch_tokens for rule in rules)
    lines = [
        f"# {sizes.gradient_accumulation_steps} x {sizes.batch_size} x {sizes.block_size:,} = "
        f"{sizes.tokens_per_step:,} tokens a step; published rules say {low:,.0f} to {high:,.0f}.",
        "# If memory is short: half the batch_size and twice the gradient_accumulation_steps are the same step.",
        f"gradient_accumulation_steps = {sizes.gradient_accumulation_steps}",
        f"batch_size = {sizes.batch_size}",
        f"block_size = {sizes.block_size}",
        "",
        f"# {sizes.max_iters:,} steps x {sizes.tokens_per_step:,} = {sizes.tokens:,} tokens, "
        f"{sizes.tokens / cost.n_active:.2f} a parameter{met}",
        f"max_iters = {sizes.max_iters}",
    ]
    return "\n".join(lines)


def _learning_rate(sizes: RunSizes, rules: list[RuleValue]) -> str:
    said = ", ".join(f"{rule.name} {rule.learning_rate:.2g}" for rule in rules)
    return "\n".join([f"# The lowest of {said}", *schedule_keys(sizes.learning_rate, sizes.max_iters)])


def schedule_keys(learning_rate: float, steps: int) -> list[str]:
    """The learning rate's lines of a config file: linear warm-up, then a cosine down to a tenth. What a shorter warm-up
    costs is measured in docs/ladders.md, "The recipe"."""
    warmup = max(int(WARMUP * steps), min(FEWEST_WARMUP, int(MOST_WARMUP * steps)))
    return [
        f"learning_rate = {learning_rate!r}",
        f"min_lr = {learning_rate / 10:.3g}  # a tenth",
        'lr_schedule = "cosine"',
        f"warmup_iters = {min(2000, warmup)}",
    ]


def _intervals(sizes: RunSizes) -> str:
    tenth, hundredth = max(1, sizes.max_iters // 10), max(1, sizes.max_iters // 100)
    return f"eval_interval = {tenth}\neval_iters = 20\nlog_interval = {hundredth}"


def _prediction(sizes: RunSizes, model: ModelArchitectureConfig, search: Search) -> str:
    """What the run's log will hold its outcome against. A published law's loss that a model has which knows nothing
    is a ranking and no prediction."""
    cost, tokens = model_cost(model), sizes.tokens
    law: Law | None = search.law
    n = count_parameters(cost, search.law.N)
    loss: float | None = float(search.law.of(cost).loss(n, tokens, search.unique_tokens))
    heading = "What the run's log holds its outcome against"
    if is_published(search.law):
        heading += f"; {search.law.name}, of other data and another tokenizer, ranks and does not foretell the loss"
        if loss is not None and knows_nothing(loss, search.space.vocab_size):
            law = loss = None
    seconds, training = None, search.training
    if training is not None and training.peak_flops is not None and training.mfu is not None:
        seconds = tokens * cost.training_flops() / (training.devices * training.peak_flops * training.mfu)
    keys = prediction_keys(law, loss, f"{tokens} * {cost.training_flops()}", seconds)
    return "\n".join([_comment(heading), *keys])


def prediction_keys(law: Law | None, loss: float | None, flops: str, seconds: float | None) -> list[str]:
    """Lines of a config file. A fitted law is written out, so that the config needs no other file; of a published one
    its name. `flops` is an expression."""
    lines = [] if law is None else [f"scaling_law = {_law_value(law)}"]
    if loss is not None:
        lines.append(f"predicted_loss = {loss:.5f}")
    lines.append(f"predicted_flops = {flops}")
    if seconds is not None:
        lines.append(f"predicted_seconds = {seconds:.6g}")
    return lines


def _law_value(law: Law) -> str:
    """Python source."""
    if is_published(law):
        return f'"{law.name}"'
    return "\n".join(["{", *(f"    {key!r}: {value!r}," for key, value in law_as_dict(law).items()), "}"])


def law_as_dict(law: Law) -> dict[str, Any]:
    """A law file's content without the draws, a thousand rows that only a search needs."""
    values: dict[str, Any] = {name: getattr(law, name) for name in ("name", *CONSTANTS, "N", "source")}
    if law.n_range is not None and law.d_range is not None:
        values["range"] = {"N": list(law.n_range), "D": list(law.d_range)}
    return values


def _on_devices(training: Setting) -> str:
    """What the memory was counted with, where it is not what train.py does by itself."""
    where = f"  # on {training.devices:,} devices: torchrun" if training.devices > 1 else ""
    lines = [f"{key} = {value}{where}" for key, value in STRATEGIES[training.strategy].items()]
    if training.activation_checkpointing:
        lines.append("activation_checkpointing = True")
    if training.dtype != "bfloat16":  # which dtype = "auto" takes on such devices
        lines.append('dtype = "float32"' if training.dtype == "tf32" else f'dtype = "{training.dtype}"')
    return "\n".join(lines)
