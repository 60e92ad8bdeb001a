"""What runs a ladder has, and its folder.

    ladder/x/
        plan.json            the arguments, every run with its sizes and cost, the totals
        configs/<run>.py     a config file for each run, as it is known
        ledger.jsonl         what was predicted of each run before it started (ladders/ledger.py)
        runs/<run>/          the runs' folders
        output/<run>.txt     what the runs printed
        law.json, law.png    the law fitted to the runs
        report.html

All runs have the same context length and validation windows, and the same data unless these are what is compared; those
of one seed and dataset see the same windows in the same order, whatever their batch. No torch.
"""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.fields import check_fields
from common.files import open_text
from common.units import unit_of
from components.registry import OWN_PRESETS, PRESETS
from data.mixture import Data
from data.packing import Cut
from flops_parameter_counting.costs.model_cost import model_cost
from flops_parameter_counting.laws.scaling_laws import Law, count_parameters, law_from, training_rules
from flops_parameter_counting.planner.emit import MICRO_BATCH_TOKENS, RunSizes, run_sizes
from flops_parameter_counting.planner.space import EXPERT_SIZES
from ladders.sizes import Choice, isoflop_search, largest_power_of_two, planners_choice, sizes_around
from model_config import ModelArchitectureConfig
from training.plan import windows_of

EVALUATED_SEQUENCES = 512  # of the validation split, or as many as it has, in a power of two
EVALUATIONS = 5  # besides the one before the first step
TUNING_SHARE = 0.25  # of a run's steps that a run of the sweep takes, with a whole schedule of its own
CHECKPOINTS_KEPT = 2
STATE_BYTES = 12  # a parameter in a checkpoint: weight and AdamW's two means, float32
LOG_BYTES = 150_000  # a run's log and config, and the heads of its checkpoints' files


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What a ladder is planned from. `sizes` None: the planner's choice at the budgets; else so many at each."""

    budgets: tuple[float, ...]
    archs: tuple[str, ...]
    seeds: int
    sizes: int | None
    dataset: str  # or several, with commas between them
    data_dir: str | None
    block_size: int
    tune: tuple[float, ...]
    batch_tokens: int | None  # of a step of every run; None: by the published rules
    spread: float  # how far the sizes at a budget reach from the middle one, both ways
    tokens_per_parameter: float | None  # around which the sizes lie; None: around the law's best
    layers: int | None  # of all sizes; None: what suits each width
    law: dict[str, Any]  # which sizes are best; and, where it is a fitted one, the losses' prediction
    predicts: bool  # whether that law predicts losses: a published one ranks
    n_meaning: str  # of the laws that are fitted to this ladder
    device: str
    val_dataset: str | None = None  # on which all runs are validated; None: on that of their own data

    @property
    def datasets(self) -> list[str]:
        return self.dataset.split(",")

    @property
    def is_isoflop(self) -> bool:
        return self.sizes is not None

    @property
    def seed_values(self) -> range:
        return range(1, self.seeds + 1)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the plan. `architecture` are the model's keys; `waits_for` what must be known before its config can be
    written: `sweep` (the learning rate), `law` (fitted to the smaller budgets). `learning_rate` is what the rule says.
    """

    name: str
    is_sweep: bool
    arch: str
    budget: float
    seed: int
    model: str
    architecture: dict[str, Any]
    n_params: int
    n_law: dict[str, int]  # parameters by the meanings of N that the ladder's laws use
    flops_per_token: int
    gradient_accumulation_steps: int
    batch_size: int
    eval_iters: int
    steps: int
    tokens_per_step: int
    learning_rate: float
    waits_for: tuple[str, ...]
    seconds: float | None = None  # in training steps, by the calibration
    dataset: str | None = None  # None: the ladder's only one

    @property
    def kind(self) -> str:
        """What is compared, and tuned by itself: an architecture, on one of several datasets."""
        return self.arch if self.dataset is None else f"{self.arch} on {self.dataset}"

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    @property
    def flops(self) -> int:
        return self.tokens * self.flops_per_token

    @property
    def evaluations(self) -> int:
        """Besides the one before the first step."""
        return -(-self.steps // self.eval_interval)

    @property
    def eval_interval(self) -> int:
        return -(-self.steps // EVALUATIONS)


@dataclasses.dataclass(frozen=True)
class Plan:
    """`dataset` are the checksums of its splits, of several by their names; `calibration` is that of
    ladders.calibration, None before it."""

    arguments: Arguments
    dataset: dict[str, Any]
    runs: tuple[Run, ...]
    calibration: dict[str, Any] | None = None

    @property
    def hash(self) -> str:
        """The hash of what was asked for and what the runs are; how fast the machine is does not count."""
        runs = [_as_dict(dataclasses.replace(run, seconds=None)) for run in self.runs]
        asked = {"arguments": _as_dict(self.arguments), "dataset": self.dataset, "runs": runs}
        return hash_of(json.dumps(asked, sort_keys=True))

    @property
    def law(self) -> Law:
        return law_from(self.arguments.law, "law")

    @property
    def flops(self) -> int:
        return sum(run.flops for run in self.runs)

    @property
    def seconds(self) -> float | None:
        """One run after the other, with evaluations and start-ups; None before the calibration."""
        times = [None if run.seconds is None else run.seconds + self.seconds_besides(run) for run in self.runs]
        return None if None in times else float(sum(filter(None, times)))

    def seconds_besides(self, run: Run) -> float:
        """Seconds of a run's start-up and its evaluations: a forward pass is a third of a training step."""
        assert self.calibration is not None
        per_step = (run.seconds or 0.0) / run.steps
        tokens = run.eval_iters * run.batch_size * run.architecture["block_size"]
        return self.calibration["start_seconds"] + (1 + run.evaluations) * per_step * tokens / run.tokens_per_step / 3

    @property
    def bytes(self) -> int:
        """On the disk when all runs have finished, nearly all of it in checkpoints."""
        return sum(CHECKPOINTS_KEPT * STATE_BYTES * run.n_params + LOG_BYTES for run in self.runs)

    @property
    def largest_budget(self) -> float:
        return max(self.arguments.budgets)


def _as_dict(part: Any) -> dict[str, Any]:
    """As plans were before ladders had several datasets, where this one has not."""
    found = dataclasses.asdict(part)
    later = ("val_dataset",) if isinstance(part, Arguments) else ("dataset",)
    return {name: value for name, value in found.items() if name not in later or value is not None}


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# ---------------------------------------------------------------------------------------------------------------------
# The runs


def make_plan(arguments: Arguments, data: Mapping[str, Data]) -> Plan:
    """`data`: by the names of the datasets, each with the validation split that its runs have. Raises UserError for a
    budget that is too small, and for data that do not fit."""
    first = next(iter(data.values()))
    for one in data.values():
        one.check_fits(arguments.block_size, first.vocab_size)
    law = law_from(arguments.law, "law")
    choices = _choices(arguments, law, first.vocab_size)
    sequences = largest_power_of_two(windows_of(first, Cut(arguments.block_size))[0]["val"])
    runs: list[Run] = []
    for budget, arch, choice in choices:
        for name, seed in itertools.product(data, arguments.seed_values):
            dataset = name if len(data) > 1 else None
            runs.append(_run(arguments, budget, arch, dataset, choice, seed, min(sequences, EVALUATED_SEQUENCES)))
    checksums = {name: {split: of.checksum for split, of in one.splits.items()} for name, one in data.items()}
    found = checksums if len(data) > 1 else checksums[arguments.dataset]
    plan = Plan(arguments, found, (*_sweep(arguments, runs), *runs))
    names = [run.name for run in plan.runs]
    assert len(set(names)) == len(names)
    return plan


def _choices(arguments: Arguments, law: Law, vocab_size: int) -> list[tuple[float, str, Choice]]:
    """(budget, arch, model and tokens), the smallest budgets first."""
    found = []
    for budget in sorted(arguments.budgets):
        for arch in arguments.archs:
            of_data = (budget, arch, law, arguments.block_size, vocab_size)
            if arguments.sizes is None:
                found.append((budget, arch, planners_choice(*of_data)))
            else:
                sizes = (arguments.sizes, arguments.spread, arguments.tokens_per_parameter, arguments.layers)
                found += [(budget, arch, choice) for choice in sizes_around(isoflop_search(*of_data), *sizes)]
    return found


def _run(
    arguments: Arguments, budget: float, arch: str, dataset: str | None, choice: Choice, seed: int, evaluated: int
) -> Run:
    """The run of a choice: batch and learning rate by the planner's rules, as many whole steps as the budget buys."""
    candidate, search = choice.candidate, choice.search
    model = candidate.config(search.space)
    cost = model_cost(model)
    rules = training_rules(cost, candidate.tokens)
    sizes = _evaluable(_with_batch(run_sizes(candidate, search, rules), arguments.batch_tokens), evaluated)
    size = f"-{short(cost.n_params)}" if arguments.is_isoflop else ""
    waits = [*(["sweep"] if arguments.tune else []), *(["law"] if _waits_for_law(arguments, budget) else [])]
    steps = int(budget // (cost.training_flops() * sizes.tokens_per_step))
    if steps < 1:
        raise UserError(
            f"{budget:.3g} FLOPs are less than one step of {sizes.tokens_per_step:,} tokens of {model.name}: "
            "lower --batch_tokens, or raise the budget"
        )
    return Run(
        name=f"{arch}-{budget:.3g}{size}{'' if dataset is None else f'-{dataset}'}-s{seed}".replace("+", ""),
        is_sweep=False,
        arch=arch,
        budget=budget,
        seed=seed,
        model=model.name,
        architecture=_keys(model),
        n_params=cost.n_params,
        n_law={meaning: int(count_parameters(cost, meaning)) for meaning in {arguments.n_meaning, arguments.law["N"]}},
        flops_per_token=cost.training_flops(),
        gradient_accumulation_steps=sizes.gradient_accumulation_steps,
        batch_size=sizes.batch_size,
        eval_iters=evaluated // sizes.batch_size,
        steps=steps,
        tokens_per_step=sizes.tokens_per_step,
        learning_rate=sizes.learning_rate,
        waits_for=tuple(waits),
        dataset=dataset,
    )


def _waits_for_law(arguments: Arguments, budget: float) -> bool:
    return arguments.is_isoflop and len(arguments.budgets) > 1 and budget == max(arguments.budgets)


def _with_batch(sizes: RunSizes, tokens: int | None) -> RunSizes:
    """With steps of so many tokens, where they are given, in the fewest micro-batches."""
    if tokens is None:
        return sizes
    sequences = tokens // sizes.block_size
    accumulation = -(-tokens // MICRO_BATCH_TOKENS)
    while sequences % accumulation:
        accumulation += 1
    return dataclasses.replace(sizes, batch_size=sequences // accumulation, gradient_accumulation_steps=accumulation)


def _evaluable(sizes: RunSizes, evaluated: int) -> RunSizes:
    """With micro-batches that divide the validation windows, of which there are as many for every batch."""
    batch_size, sequences = min(sizes.batch_size, evaluated), sizes.gradient_accumulation_steps * sizes.batch_size
    while sequences % batch_size or evaluated % batch_size:
        batch_size -= 1
    return dataclasses.replace(sizes, batch_size=batch_size, gradient_accumulation_steps=sequences // batch_size)


def _keys(model: ModelArchitectureConfig) -> dict[str, Any]:
    """The model's keys beside those of its preset."""
    own = ("head_dim",) if "head_dim" in PRESETS[model.arch_preset] else ()
    sizes = ["n_head", *own, "num_key_value_heads", "n_embd", "d_ff", *EXPERT_SIZES]
    sizes = [name for name in sizes if name in {*model.layer_keys, "n_embd"}]
    names = ["arch_preset", "n_layer", *sizes, "weight_tying", "vocab_size", "block_size"]
    folder = {"components": str(OWN_PRESETS[model.arch_preset])} if model.arch_preset in OWN_PRESETS else {}
    return folder | {name: model.kv_heads if name == "num_key_value_heads" else getattr(model, name) for name in names}


def _sweep(arguments: Arguments, runs: Sequence[Run]) -> list[Run]:
    """For each kind of run, its swept one on a share of the steps, with every learning rate that was asked for."""
    swept = [swept_run(runs, kind) for kind in kinds(runs)]
    return [
        dataclasses.replace(
            run,
            name=f"sweep-{run.name.removesuffix(f'-s{run.seed}')}-lr{rate:g}",
            is_sweep=True,
            steps=max(1, round(TUNING_SHARE * run.steps)),
            learning_rate=rate,
            waits_for=(),
        )
        for run in swept
        for rate in arguments.tune
    ]


def kinds(runs: Sequence[Run]) -> list[str]:
    """Of run, as they come first."""
    return list(dict.fromkeys(run.kind for run in runs))


def swept_run(runs: Sequence[Run], kind: str) -> Run:
    """Whose learning rate is tuned: of the smallest budget, and the middle one of its sizes."""
    of_kind = [run for run in runs if run.kind == kind and not run.is_sweep]
    smallest = [run for run in of_kind if run.budget == of_kind[0].budget and run.seed == of_kind[0].seed]
    return smallest[len(smallest) // 2]


def short(count: float) -> str:
    """Three digits and a unit: `46.2K`."""
    scale, unit = unit_of(count, digits=3)
    return f"{count / scale:.3g}{unit}"


# ---------------------------------------------------------------------------------------------------------------------
# The folder


@dataclasses.dataclass(frozen=True)
class Folder:
    """Paths of a ladder."""

    path: Path

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    def config(self, run: Run) -> Path:
        return self.path / "configs" / f"{run.name}.py"

    def run(self, run: Run) -> Path:
        return self.path / "runs" / run.name

    def output(self, run: Run) -> Path:
        return self.path / "output" / f"{run.name}.txt"


def existing_plan(path: Path, wanted: Plan) -> Plan | None:
    """The plan that the folder holds, if it is the wanted one; None where there is no folder yet. Raises UserError for
    another plan, and for a folder that holds none."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    found = read_plan(path)
    if found.hash == wanted.hash:
        return found
    before, after = ({**dataclasses.asdict(plan.arguments), "data": plan.dataset} for plan in (found, wanted))
    differing = ", ".join(name for name in before if before[name] != after[name]) or "the planner's choices"
    raise UserError(
        f"{path} holds another plan, {found.hash} ({differing} differ), and this one is {wanted.hash}: "
        "choose another --out, or delete that folder"
    )


def read_plan(path: Path) -> Plan:
    """Raises UserError for a folder without a plan, and for what cannot be one: it may be a stranger's."""
    file = Folder(path).plan
    try:
        with open_text(file) as content:
            values = json.load(content)
        arguments, runs = values["arguments"], values["runs"]
        lists = {name: tuple(arguments[name]) for name in ("budgets", "archs", "tune")}
        plan = Plan(
            Arguments(**(arguments | lists)),
            values["dataset"],
            tuple(Run(**{**run, "waits_for": tuple(run["waits_for"])}) for run in runs),
            values["calibration"],
        )
        check_plan(plan)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} holds no plan: python ladder.py plan --out {path} makes one") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"{file} is damaged: plan the ladder again in another folder") from None
    if values.get("hash") != plan.hash:
        raise UserError(f"{file} was changed: its hash is {plan.hash}, and it says {values.get('hash')}")
    return plan


def check_plan(plan: Plan) -> None:
    """Raises TypeError or ValueError for what no ladder can be planned as."""
    for part in (plan.arguments, plan, *plan.runs):
        check_fields(part)
    for run in plan.runs:
        if not re.fullmatch(r"[\w.+-]{1,200}", run.name) or run.name.startswith("."):  # it names files
            raise ValueError(f"a run's name is {run.name!r}")
        if min(run.steps, run.tokens_per_step, run.flops_per_token, run.n_params, run.batch_size, run.eval_iters) < 1:
            raise ValueError(f"a size of {run.name} is not above 0")
    if plan.calibration is not None and type(plan.calibration["start_seconds"]) not in (int, float):
        raise TypeError("start_seconds is no number")


def as_json(plan: Plan) -> str:
    values = {
        "hash": plan.hash,
        "flops": plan.flops,
        "seconds": plan.seconds,
        "bytes": plan.bytes,
        "arguments": _as_dict(plan.arguments),
        "dataset": plan.dataset,
        "calibration": plan.calibration,
        "runs": [_as_dict(run) for run in plan.runs],
    }
    return json.dumps(values, indent=1) + "\n"
