"""From a compute budget to the best (architecture, tokens): every architecture of a space, its cost, a law's loss.

By default D is solved from the budget for every architecture; `flops_formula="published"` tries the published grid of
D instead (published_formula.py).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

from common.errors import UserError
from flops_parameter_counting.costs.model_cost import ModelCost, model_cost, with_backward
from flops_parameter_counting.costs.setting import Setting
from flops_parameter_counting.laws.scaling_laws import Law, count_parameters, middle_95
from flops_parameter_counting.planner import published_formula
from flops_parameter_counting.planner.space import SIZES, Grid, SearchSpace
from model_config import ModelArchitectureConfig

FLOPS_FORMULAS = ("exact", "published")
DEFAULT_LAW = "besiroglu"  # the published fit of Hoffmann et al.'s data that agrees with their two other approaches
CHINCHILLA_RATIO = (0.5, 1.5)  # of D / (20 N)
KEPT = 10_000  # the best candidates that a bootstrap compares
CHUNK = 1 << 17  # candidates evaluated at a time: small enough for a processor's cache, large enough for numpy
SHOWS_PROGRESS = 1 << 22  # candidates: about a second

_Item = TypeVar("_Item")


# ---------------------------------------------------------------------------------------------------------------------
# What is asked


@dataclasses.dataclass(frozen=True)
class Search:
    """A budget in FLOPs, a law, a space, and what else the answer must respect.

    The budget pays for training on D tokens and, with `inference_tokens`, for as many tokens of forward passes later
    (Sardana et al. 2023 minimise this sum at a given loss; here the loss is minimised at a given sum).
    """

    budget: float
    law: Law
    space: SearchSpace
    flops_formula: str = "exact"
    tokens_min: float | None = None
    tokens_max: float | None = None
    aspect_ratio: tuple[float, float] | None = None
    enforce_chinchilla: bool = False
    max_params: float | None = None
    unique_tokens: float | None = None
    inference_tokens: int = 0
    training: Setting | None = None  # on which devices and how, where what they hold is asked
    with_budget: Callable[[float], "Search"] | None = None  # the same question of another budget; None: the same space

    def __post_init__(self) -> None:
        if not 0 < self.budget < math.inf:
            raise UserError(f"a budget of {self.budget:g} FLOPs buys nothing: give a number above 0")
        if self.flops_formula not in FLOPS_FORMULAS:
            raise UserError(f"flops_formula {self.flops_formula!r} is none of: {', '.join(FLOPS_FORMULAS)}")
        if self.flops_formula == "published" and self.space.arch != "llama3":
            raise UserError(f"the published formula is Llama's: for --arch={self.space.arch} take the exact one")
        if self.tokens_min is not None and self.tokens_max is not None and self.tokens_min > self.tokens_max:
            raise UserError(f"tokens_min={self.tokens_min:g} is above tokens_max={self.tokens_max:g}")
        if self.aspect_ratio is not None and self.aspect_ratio[0] > self.aspect_ratio[1]:
            raise UserError(f"aspect_ratio {self.aspect_ratio[0]:g}:{self.aspect_ratio[1]:g} ends before it begins")

    @property
    def is_published(self) -> bool:
        return self.flops_formula == "published"


@dataclasses.dataclass
class Bound:
    """What a candidate must satisfy, and what the candidates that met it were like."""

    name: str
    low: float
    high: float
    advice: Callable[["Bound"], str]  # for when it leaves nothing
    without: dict[str, Any]  # what a search says that does not have it
    sizes: tuple[str, ...] = SIZES  # of the architectures
    entered: int = 0
    passed: int = 0
    smallest: float = math.inf
    largest: float = -math.inf
    sizes_of_smallest: dict[str, int] = dataclasses.field(default_factory=dict)  # of its architecture

    def keep(self, alive: np.ndarray, values: np.ndarray, grid: Grid) -> np.ndarray:
        """The mask `alive` without what lies outside, of the shape of `values`: (architectures,) or (..., tokens)."""
        met = values[alive]
        if met.size and met.min() < self.smallest:
            self.smallest = float(met.min())
            row = np.nonzero(alive & (values == self.smallest))[0][0]
            self.sizes_of_smallest = {name: int(_of_each(grid[name], len(alive))[row]) for name in self.sizes}
        if met.size:
            self.largest = max(self.largest, float(met.max()))
        alive = alive & (values >= self.low) & (values <= self.high)
        self.entered += met.size
        self.passed += int(np.count_nonzero(alive))
        return alive

    def why_nothing(self) -> str:
        theirs = f"the one candidate that came to this bound has {self.smallest:.4g}"
        if self.entered > 1:
            reach = f"{self.smallest:.4g} to {self.largest:.4g}"
            theirs = f"the {self.entered:,} candidates that came to this bound have {reach}"
        return f"nothing is feasible: {self.name} must be {self.wanted}, and {theirs}; {self.advice(self)}"

    @property
    def wanted(self) -> str:
        """What is inside of it, in words."""
        if self.high == math.inf:
            return f"at least {self.low:.4g}"
        return f"between {self.low:.4g} and {self.high:.4g}" if self.low else f"at most {self.high:.4g}"


def _bounds(search: Search) -> dict[str, Bound]:
    """In the order in which they are applied."""
    bounds: dict[str, Bound] = {}
    unbounded: dict[str, Any]
    if search.aspect_ratio is not None:
        bounds["aspect"] = Bound("n_embd / n_layer", *search.aspect_ratio, _advise_on_aspect, {"aspect_ratio": None})
    if search.max_params is not None:
        advice = functools.partial(_advise_on_params, search)
        bounds["params"] = Bound("the number of parameters", 0, search.max_params, advice, {"max_params": None})
    if search.training is not None and search.training.device_memory is not None:
        gigabytes, advice = search.training.device_memory / 1e9, functools.partial(_advise_on_memory, search)
        unbounded = {"training": dataclasses.replace(search.training, device_memory=None)}
        bounds["memory"] = Bound("the memory of a device in GB", 0, gigabytes, advice, unbounded)
    if not search.is_published:
        low = search.tokens_min or search.space.sequence_length
        advice = functools.partial(_advise_on_tokens, search)
        unbounded = {"tokens_min": None, "tokens_max": None}
        bounds["tokens"] = Bound("the number of tokens", low, search.tokens_max or math.inf, advice, unbounded)
    if search.enforce_chinchilla:
        unbounded = {"enforce_chinchilla": False}
        bounds["chinchilla"] = Bound("D / (20 N)", *CHINCHILLA_RATIO, _advise_on_ratio, unbounded)
    if search.is_published:
        tolerance = published_formula.TOLERANCE
        bounds["flops"] = Bound("FLOPs / budget", 1 - tolerance, 1 + tolerance, _advise_on_flops, {})
    for bound in bounds.values():
        bound.sizes = search.space.sizes
    return bounds


def _advise_on_aspect(bound: Bound) -> str:
    return "widen --aspect_ratio, or change --hidden_sizes and --layers"


def _advise_on_params(search: Search, bound: Bound) -> str:
    """The fewest parameters of what is feasible without the bound."""
    smaller = f"take smaller --hidden_sizes and --layers{_or_fewer_experts(search)}"
    found = _search(dataclasses.replace(search, max_params=None), KEPT)
    if isinstance(found, Bound):
        return smaller
    return f"raise --max_params to at least {int(found.best['n_params'].min())}, or {smaller}"


def _advise_on_memory(search: Search, bound: Bound) -> str:
    """What lets the lightest architecture in: one change, or all together on so many more devices."""
    sizes = bound.sizes_of_smallest
    config = search.space.config(sizes)

    def fits(**changes: Any) -> bool:
        assert search.training is not None
        training = dataclasses.replace(search.training, **changes)
        return _memory(config, config.block_size, training)["fits"]

    remedies: dict[str, dict[str, Any]] = {
        "--micro_batch 1": {"micro_batch": 1},
        "--activation_checkpointing": {"activation_checkpointing": True},
        "--strategy fsdp": {"strategy": "fsdp"},
    }
    enough = [option for option, change in remedies.items() if fits(**change)]
    if enough:
        return f"{config.name}, the lightest, fits with {' or with '.join(enough)}"
    together = {name: value for change in remedies.values() for name, value in change.items()}
    devices = search.training.devices if search.training else 1
    for factor in (2**power for power in range(17)):
        if fits(**together, devices=factor * devices):
            more = f" on {factor} times the --devices for 1/{factor} of the --days" if factor > 1 else ""
            return f"{config.name}, the lightest, fits with {' '.join(remedies)}{more}"
    smaller = f"take smaller --hidden_sizes, --layers or --vocab_size{_or_fewer_experts(search)}"
    return f"{smaller}, or a shorter --sequence_length"


def _or_fewer_experts(search: Search) -> str:
    return ", or fewer --n_experts" if search.space.family.has_experts else ""


def _advise_on_tokens(search: Search, bound: Bound) -> str:
    if bound.largest < bound.low:
        budget = _budget_that_suffices(search, bound.low / bound.largest if bound.largest > 0 else 1.0)
        more = "" if budget is None else f"raise the budget to at least {budget:.3g} FLOPs, or "
        if bound.largest < 0:
            return f"the inference alone costs more than the budget: {more}lower --inference_tokens"
        return f"{more}lower --tokens_min, or take smaller models"
    if bound.smallest > bound.high:
        return "lower the budget, raise --tokens_max, or take larger --hidden_sizes and --layers"
    return "widen --tokens_min and --tokens_max, or take a finer space"


def _budget_that_suffices(search: Search, factor: float) -> float | None:
    """The first of ever larger budgets, from `factor` times the search's, with which something is feasible: another
    budget may also mean another space. None where that does not come."""
    budget = factor * search.budget
    for _ in range(80):
        budget = float(f"{1.005 * budget:.3g}")  # rounded up to three digits
        try:
            larger = search.with_budget(budget) if search.with_budget else dataclasses.replace(search, budget=budget)
            if isinstance(_search(larger, keep=1), Result):
                return budget
        except UserError:  # what is given of the space does not go with what follows from this budget
            pass
        budget *= 1.5
    return None


def _advise_on_ratio(bound: Bound) -> str:
    if bound.smallest > bound.high:
        return "take larger --hidden_sizes and --layers, lower the budget, or drop --enforce_chinchilla"
    if bound.largest < bound.low:
        return "take smaller --hidden_sizes and --layers, raise the budget, or drop --enforce_chinchilla"
    return "take a finer space, or drop --enforce_chinchilla"


def _advise_on_flops(bound: Bound) -> str:
    return "change --tokens_min and --tokens_max or the sizes, or take --flops_formula=exact, which solves for tokens"


# ---------------------------------------------------------------------------------------------------------------------
# The search


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One architecture and the tokens it is trained on.

    `flops` is what the search counts for training: in exact mode the same as `true_flops`, which is in the
    full-attention convention with logits. In exact mode tokens and FLOPs are integers. `memory_per_device` is
    bytes in training, None where the search names no devices.
    """

    loss: float
    n_params: int
    tokens: float
    flops: float
    true_flops: float
    true_flops_without_logits: float
    inference_flops: float
    flops_per_token: int  # of training, true
    n_layer: int
    n_embd: int
    n_head: int
    num_key_value_heads: int
    d_ff: int
    memory_per_device: int | None
    n_active: int  # parameters that a token meets
    n_experts: int = 0
    n_experts_per_token: int = 0
    n_shared_experts: int = 0
    expert_d_ff: int = 0

    @property
    def tokens_per_parameter(self) -> float:
        """Of those that a token meets."""
        return self.tokens / self.n_active

    def config(self, space: SearchSpace) -> ModelArchitectureConfig:
        return space.config({name: getattr(self, name) for name in space.sizes})


@dataclasses.dataclass(frozen=True)
class Result:
    """`best`: the kept candidates as arrays, best first; `candidates` makes the first of them readable."""

    search: Search
    best: dict[str, np.ndarray]
    configs_tried: int
    passed_chinchilla: int | None  # None: the ratio was not enforced
    passed_flops: int
    bounds: dict[str, Bound]

    def candidates(self, top_k: int) -> list[Candidate]:
        indices = range(min(top_k, len(self.best["loss"])))
        shown = _with_progress(indices, len(indices), "candidate", 100 * len(indices))  # one by one, in integers
        return [self._candidate(index) for index in shown]

    def _candidate(self, index: int) -> Candidate:
        search = self.search
        sizes: dict[str, Any] = {name: int(self.best[name][index]) for name in search.space.sizes}
        n_params, forward = int(self.best["n_params"][index]), int(self.best["forward"][index])
        config = search.space.config(sizes)
        cost = model_cost(config)
        tokens: float = float(self.best["tokens"][index])
        if not search.is_published:  # again in Python's integers: a double cannot hold every FLOP of a large budget
            tokens = (int(search.budget) - search.inference_tokens * forward) // with_backward(forward)
        n = count_parameters(cost, search.law.N)
        return Candidate(
            loss=float(search.law.of(cost).loss(n, tokens, search.unique_tokens)),
            tokens=tokens,
            flops=with_backward(forward) * tokens,
            true_flops=cost.training_flops() * tokens,
            true_flops_without_logits=(cost.training_flops() - with_backward(cost.flops["lm_head"])) * tokens,
            inference_flops=forward * search.inference_tokens,
            flops_per_token=cost.training_flops(),
            n_params=n_params,
            **sizes,
            memory_per_device=None if search.training is None else memory_of(config, search.training),
            n_active=cost.n_active,
        )


def memory_of(config: ModelArchitectureConfig, training: Setting) -> int:
    """Bytes of one device while it trains the model. Raises UserError where that is not known."""
    return _known(_memory(config, config.block_size, training))


def _memory(config: ModelArchitectureConfig, sequence_length: int, training: Setting) -> dict[str, Any]:
    """What counts it is imported here: a search without devices starts without it."""
    from flops_parameter_counting.costs.report import memory_per_device

    return memory_per_device(config, sequence_length, training)


def _known(memory: dict[str, Any]) -> Any:
    if memory["not_known"]:
        raise UserError(f"{memory['not_known']}: search by a budget in FLOPs, without devices")
    return memory["total"]


def grid_search(search: Search, keep: int = KEPT) -> Result:
    """The `keep` best of all candidates. Raises UserError, naming the bound, when nothing is feasible."""
    found = _search(search, keep)
    if isinstance(found, Bound):
        raise UserError(found.why_nothing())
    return found


def _search(search: Search, keep: int) -> Result | Bound:
    """Returns what `grid_search` does, with the bound that leaves nothing in place of the error."""
    bounds = _bounds(search)
    grid = published_formula.token_grid(search.tokens_min, search.tokens_max) if search.is_published else None
    chunk = max(1, CHUNK // (1 if grid is None else len(grid)))
    kept = _Kept(keep)
    chunks, candidates = search.space.chunks(chunk), len(search.space) * (1 if grid is None else len(grid))
    for architectures in _with_progress(search.space.grids(chunk), chunks, "chunk", candidates):
        kept.add(_evaluate(search, architectures, grid, bounds))
    for bound in bounds.values():
        if bound.passed == 0:
            return bound
    passed_chinchilla = bounds["chinchilla"].passed if "chinchilla" in bounds else None
    passed_all = list(bounds.values())[-1].passed
    return Result(search, kept.best(), len(search.space), passed_chinchilla, passed_all, bounds)


def _evaluate(search: Search, grid: Grid, tokens: np.ndarray | None, bounds: dict[str, Bound]) -> dict[str, np.ndarray]:
    """The feasible candidates of a chunk, as arrays (candidates,): `loss`, `n_law`, what a Candidate is made of."""
    if "aspect" in bounds:
        ratio = grid.n_embd / grid.n_layer
        grid = _select(grid, bounds["aspect"].keep(np.ones(ratio.shape, bool), ratio, grid))
    cost = model_cost(grid)
    forward = _forward_flops(search, grid, cost)[:, None]
    n_params: Any = cost.n_params
    n_params = n_params[:, None]
    if tokens is None:  # every architecture is trained on what the budget buys: (architectures, 1)
        tokens = (search.budget - search.inference_tokens * forward.astype(float)) / with_backward(forward)
    passes = with_backward(tokens) + search.inference_tokens  # forward ones: (architectures, 1), or of a grid (tokens,)
    tokens = np.broadcast_to(tokens, (len(n_params), tokens.shape[-1]))
    quantities: dict[str, Callable[[], np.ndarray]] = {
        "params": lambda: np.broadcast_to(n_params, tokens.shape),
        "memory": lambda: np.broadcast_to(_gigabytes(search, grid)[:, None], tokens.shape),
        "tokens": lambda: tokens,
        "chinchilla": lambda: tokens / (20 * np.asarray(cost.n_active)[:, None]),
        "flops": lambda: np.divide(spent := forward * passes, search.budget, out=spent),
    }
    alive = np.ones(tokens.shape, bool)
    for name, bound in bounds.items():
        if name in quantities:
            alive = bound.keep(alive, quantities[name](), grid)
    rows, columns = np.nonzero(alive)
    n_law = np.asarray(count_parameters(cost, search.law.N))[rows]
    found = {
        "tokens": tokens[rows, columns] if search.is_published else np.floor(tokens[rows, columns]),
        "n_law": n_law,
        "n_params": n_params[rows, 0],
        "forward": forward[rows, 0],
    }
    found["loss"] = search.law.of(cost, rows).loss(n_law, found["tokens"], search.unique_tokens)
    return found | {name: _of_each(grid[name], len(n_params))[rows] for name in search.space.sizes}


def _of_each(value: Any, count: int) -> np.ndarray:
    """A size of so many architectures, (architectures,), where it may be the same for all."""
    return value if isinstance(value, np.ndarray) else np.full(count, value)


def _select(grid: Grid, mask: np.ndarray) -> Grid:
    return grid.changed(lambda values: values[mask])


def _forward_flops(search: Search, grid: Grid, cost: ModelCost) -> Any:
    """Per token, (architectures,)."""
    if search.is_published:
        return published_formula.published_forward_flops(grid, search.space.sequence_length)
    return cost.forward_flops("full")


def _gigabytes(search: Search, grid: Grid) -> np.ndarray:
    """What one device holds in training, (architectures,). In floats: 64-bit integers end at 9e9 GB."""
    assert search.training is not None
    real = grid.changed(lambda values: values.astype(float))
    return _known(_memory(real, search.space.sequence_length, search.training)) / 1e9


class _Kept:
    """The best of what is added, in memory for some multiple of them."""

    def __init__(self, limit: int):
        self.limit = limit
        self.worst = math.inf  # of the kept ones, once there are as many as wanted
        self.parts: list[dict[str, np.ndarray]] = []

    def add(self, found: dict[str, np.ndarray]) -> None:
        if self.worst < math.inf:
            better = found["loss"] < self.worst
            found = {name: values[better] for name, values in found.items()}
        self.parts.append(found)
        if sum(len(part["loss"]) for part in self.parts) >= 4 * self.limit:
            self.parts = [self.best()]
            self.worst = float(self.parts[0]["loss"][-1])

    def best(self) -> dict[str, np.ndarray]:
        """Sorted by loss; of equals the first added comes first."""
        together = {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        order = np.argsort(together["loss"], kind="stable")[: self.limit]
        return {name: values[order] for name, values in together.items()}


def _with_progress(items: Iterable[_Item], total: int, unit: str, work: int) -> Iterable[_Item]:
    """With a bar on a terminal's stderr, where the `work` of all items, in candidates, takes a while."""
    if work < SHOWS_PROGRESS:
        return items
    from tqdm import tqdm  # most searches are over before this is imported

    return tqdm(items, total=total, unit=f" {unit}", leave=False, disable=None)


# ---------------------------------------------------------------------------------------------------------------------
# How sure the law is


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """What the bootstrap draws of a law say about the candidates of a result, best first.

    Arrays (candidates,): `p_best`, the share of draws in which a candidate is the best (equals divide a draw equally);
    `regret`, how much more loss than the draw's best it has, averaged over the draws; `within_noise`, whether it is at
    least as good as the first one in 5 % of the draws or more. Intervals hold the middle 95 % of the draws: the first
    candidate's loss, and N and D of each draw's best.
    """

    p_best: np.ndarray
    regret: np.ndarray
    within_noise: np.ndarray
    loss: tuple[float, float]
    n_params: tuple[float, float]
    tokens: tuple[float, float]


def uncertainty(result: Result) -> Uncertainty | None:
    """None for a law without draws."""
    law, best = result.search.law, result.best
    if law.draws is None:
        return None
    winners, first_losses = [], []
    p_best, regret, as_good = (np.zeros(len(best["loss"])) for _ in range(3))
    work = len(law.draws) * (2_000 + len(best["loss"])) // 16  # beside a candidate of the search, a loss is cheap
    for constants in _with_progress(law.draws, len(law.draws), "draw", work):
        losses = law.drawn(constants).loss(best["n_law"], best["tokens"], result.search.unique_tokens)
        winners.append(int(losses.argmin()))
        first_losses.append(losses[0])
        is_best = losses == losses[winners[-1]]
        p_best += is_best / np.count_nonzero(is_best)
        regret += losses - losses[winners[-1]]
        as_good += losses <= losses[0]
    n_draws = len(law.draws)
    return Uncertainty(
        p_best=p_best / n_draws,
        regret=regret / n_draws,
        within_noise=as_good / n_draws >= 0.05,
        loss=middle_95(np.array(first_losses)),
        n_params=middle_95(best["n_params"][winners]),
        tokens=middle_95(best["tokens"][winners]),
    )


EDGES = {
    "hidden_sizes": "n_embd",
    "layers": "n_layer",
    **{name: name for name in ("n_experts", "n_experts_per_token", "n_shared_experts")},
}


def at_the_edge(result: Result, candidate: Candidate) -> list[str]:
    """The sizes in which a candidate is the smallest or largest of its space, as readable lines."""
    space, lines = result.search.space, []
    for option, name in EDGES.items():
        sizes, value = getattr(space, option), getattr(candidate, name)
        if len(set(sizes)) < 2 or (name == "n_shared_experts" and value == 0):
            continue
        for end, word in ((min(sizes), "smallest"), (max(sizes), "largest")):
            if value == end:
                lines.append(f"{name} = {value} is the {word} of the space: a wider --{option} may hold a better one")
    return lines


def deciding(result: Result, candidate: Candidate) -> list[str]:
    """The bounds without any one of which another candidate than this, the best, would be it, as readable lines."""
    lines = []
    for bound in result.bounds.values():
        if bound.passed == bound.entered or not bound.without:
            continue
        free = grid_search(dataclasses.replace(result.search, **bound.without), keep=1).candidates(1)[0]
        if free.loss < candidate.loss:
            sizes = f"{free.n_layer} layers x {free.n_embd} on {free.tokens:.4g} tokens"
            lines.append(
                f"the bound on {bound.name.removeprefix('the ')}, {bound.wanted}, decides: without it the best is "
                f"{sizes}, predicted {free.loss:.4f} in place of {candidate.loss:.4f}"
            )
    return lines
