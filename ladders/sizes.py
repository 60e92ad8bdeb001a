"""Which models a ladder trains: the planner's choice at a budget, or sizes on both sides of it."""

import dataclasses
import math

import numpy as np

from common.errors import UserError
from flops_parameter_counting.laws.scaling_laws import Law
from flops_parameter_counting.planner.search import KEPT, Candidate, Search, grid_search
from flops_parameter_counting.planner.space import SIZES, default_aspect_ratio, default_space

ISOFLOP_ASPECT = (8.0, 64.0)  # n_embd / n_layer: wider than the planner's, so that there are small models too
ASPECT = 32.0  # which the sizes keep to, as near as they can: a law is one of N and D, not of shapes
NEAR = 0.08  # relative difference of N within which the shape decides
FEWEST_SEQUENCES = 20  # with fewer a model learns nothing


@dataclasses.dataclass(frozen=True)
class Choice:
    """A model and its tokens, and the search that found it."""

    candidate: Candidate
    search: Search


def planners_choice(budget: float, arch: str, law: Law, block_size: int, vocab_size: int) -> Choice:
    """What `--grid_search BUDGET --arch ARCH` chooses for this data. Raises UserError for a budget that buys none."""
    search = search_of(budget, arch, law, block_size, vocab_size, default_aspect_ratio(budget))
    return Choice(_best(search), search)


def sizes_around(
    search: Search, count: int, spread: float, tokens_per_parameter: float | None = None, layers: int | None = None
) -> list[Choice]:
    """`count` models of different N, evenly spaced in its logarithm from 1/spread to spread times that of the law's
    best one, or of the one that the budget gives `tokens_per_parameter`, as far as the space reaches; smallest first.
    All have `layers`, or the number that suits their width. `search` is that of `isoflop_search`. Raises UserError
    where its space has fewer."""
    if layers is not None:
        space = dataclasses.replace(search.space, layers=(layers,))
        search = dataclasses.replace(search, space=space, aspect_ratio=None)
    best = _best(search).n_params
    found = grid_search(search, KEPT).best
    n, aspect = found["n_params"].astype(float), found["n_embd"] / found["n_layer"]
    if tokens_per_parameter is not None:
        best = n[np.abs(np.log(found["tokens"] / n / tokens_per_parameter)).argmin()]
    low, high = max(best / spread, n.min()), min(best * spread, n.max())
    free = (n >= low) & (n <= high)
    rows: list[int] = []
    for target in np.geomspace(low, high, count) if count > 1 else [best]:
        if not free.any():
            raise UserError(
                f"{search.budget:.3g} FLOPs do not have {count} sizes of {search.space.arch}: from {low:,.0f} to "
                f"{high:,.0f} parameters there are {len(rows)}; raise the budget or --spread, or lower --sizes"
            )
        rows.append(_nearest(np.where(free, n, np.inf), aspect, target))
        free &= np.abs(np.log(n / n[rows[-1]])) > NEAR
    shapes = [{name: int(found[name][row]) for name in SIZES} for row in sorted(rows, key=lambda row: n[row])]
    return [_alone(search, shape) for shape in shapes]


def isoflop_search(budget: float, arch: str, law: Law, block_size: int, vocab_size: int) -> Search:
    """The search whose space `sizes_around` takes its models from."""
    return search_of(budget, arch, law, block_size, vocab_size, ISOFLOP_ASPECT)


def search_of(
    budget: float, arch: str, law: Law, block_size: int, vocab_size: int, aspect: tuple[float, float]
) -> Search:
    space = dataclasses.replace(default_space(budget, arch), sequence_length=block_size, vocab_size=vocab_size)
    return Search(budget, law, space, aspect_ratio=aspect)


def _best(search: Search) -> Candidate:
    candidate = _best_or_none(search)
    if candidate is None:
        arch, length = search.space.arch, search.space.sequence_length
        raise UserError(
            f"a budget of {search.budget:.3g} FLOPs is too small for any {arch} on sequences of {length:,} tokens: "
            f"{_enough(search):.2g} are enough"
        )
    return candidate


def _best_or_none(search: Search) -> Candidate | None:
    """None for a budget that buys no model FEWEST_SEQUENCES."""
    try:
        return grid_search(dataclasses.replace(search, tokens_min=_fewest_tokens(search)), 1).candidates(1)[0]
    except UserError:
        return None


def _fewest_tokens(search: Search) -> float:
    return FEWEST_SEQUENCES * search.space.sequence_length


def _enough(search: Search) -> float:
    """A budget that buys something: the first of ever larger ones, each half as large again."""
    budget = search.budget
    while True:
        budget = float(f"{1.5 * budget:.2g}")
        space = search.space
        aspect = default_aspect_ratio(budget)
        if _best_or_none(search_of(budget, space.arch, search.law, space.sequence_length, space.vocab_size, aspect)):
            return budget


def _nearest(n: np.ndarray, aspect: np.ndarray, target: float) -> int:
    """The model whose shape is best among those of about `target` parameters; the nearest where there is none."""
    off = np.abs(np.log(n / target))
    shape = np.abs(np.log(aspect / ASPECT))
    near = off <= NEAR
    return int(np.where(near, shape, np.inf).argmin() if near.any() else off.argmin())


def _alone(search: Search, sizes: dict[str, int]) -> Choice:
    """The candidate of these sizes, from a space that has no other."""
    space = search.space
    only = dataclasses.replace(
        space,
        hidden_sizes=(sizes["n_embd"],),
        layers=(sizes["n_layer"],),
        head_dims=(sizes["n_embd"] // sizes["n_head"],) if space.family.has_heads else (),
    )
    narrowed = dataclasses.replace(search, space=only)
    return Choice(grid_search(narrowed, 1).candidates(1)[0], narrowed)


def budgets(low: float, high: float, count: int) -> list[float]:
    """Evenly spaced in their logarithm, in three digits."""
    return [float(f"{budget:.3g}") for budget in np.geomspace(low, high, count)]


def largest_power_of_two(limit: int) -> int:
    return 2 ** int(math.log2(limit))
