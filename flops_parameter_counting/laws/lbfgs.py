"""L-BFGS for many small problems at once: every row of an array is a problem of its own, with its own steps.

Thousands of starts, or of bootstrap resamples, cost a few hundred array operations each instead of as many calls of an
optimiser: 4,500 starts on 250 points take seconds, and no start has to be left out.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

# (x of shape (k, p), which rows of the batch they are (k,)) -> values (k,), gradients (k, p)
Objective = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

MEMORY = 10  # past steps that the direction is made of
MOST_ITERATIONS = 500
MOST_TRIALS = 25  # step lengths that a line search tries
SUFFICIENT_DECREASE, CURVATURE = 1e-4, 0.9  # the two Wolfe conditions (Nocedal and Wright 2006, section 3.1)
LONGEST_FIRST_TRIAL = 2.0  # in any coordinate: a direction from a nearly flat region can point absurdly far
SMALL_DECREASE = 1e-11  # relative; a row that decreases by less three times in a row has converged
SMALL_GRADIENT = 1e-9


@dataclasses.dataclass
class _History:
    """The last steps and changes of the gradient, newest first: (MEMORY, rows, p), and 1 / (s . y): (MEMORY, rows).

    A pair without positive curvature, or one not there yet, has the factor 0 and no effect.
    """

    steps: np.ndarray
    changes: np.ndarray
    factors: np.ndarray
    scale: np.ndarray  # of the initial inverse Hessian, (rows,)

    @classmethod
    def empty(cls, gradient: np.ndarray) -> "_History":
        pairs = np.zeros((MEMORY, *gradient.shape))
        scale = 1 / np.maximum(np.linalg.norm(gradient, axis=1), np.finfo(float).tiny)
        return cls(pairs, pairs.copy(), pairs[..., 0].copy(), scale)

    def add(self, step: np.ndarray, change: np.ndarray) -> None:
        curvature, square = _dot(step, change), _dot(change, change)
        good = curvature > 1e-14 * square
        for pairs, newest in ((self.steps, step), (self.changes, change)):
            pairs[1:], pairs[0] = pairs[:-1].copy(), newest
        self.factors[1:] = self.factors[:-1].copy()
        self.factors[0] = np.divide(1, curvature, where=good, out=np.zeros_like(curvature))
        np.divide(curvature, square, where=good, out=self.scale)

    def keep(self, rows: np.ndarray) -> None:
        self.steps, self.changes = self.steps[:, rows], self.changes[:, rows]
        self.factors, self.scale = self.factors[:, rows], self.scale[rows]

    def direction(self, gradient: np.ndarray) -> np.ndarray:
        """The two-loop recursion (Nocedal and Wright 2006, algorithm 7.4), for every row."""
        direction, weights = -gradient, []
        for step, change, factor in zip(self.steps, self.changes, self.factors, strict=True):
            weights.append(factor * _dot(step, direction))
            direction -= weights[-1][:, None] * change
        direction *= self.scale[:, None]
        oldest_first = (pairs[::-1] for pairs in (self.steps, self.changes, self.factors))
        for step, change, factor in zip(*oldest_first, strict=True):
            direction += (weights.pop() - factor * _dot(change, direction))[:, None] * step
        return direction


def minimise(objective: Objective, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x, values) of the minima that L-BFGS reaches from `starts`, of shapes (rows, p) and (rows,).

    A row ends when its gradient vanishes, when it no longer decreases, or after MOST_ITERATIONS.
    """
    reached, values = starts.copy(), np.empty(len(starts))
    rows = np.arange(len(starts))
    x, (value, gradient) = starts, objective(starts, rows)
    values[:] = value
    history, small = _History.empty(gradient), np.zeros(len(rows), int)
    for _ in range(MOST_ITERATIONS):
        direction = history.direction(gradient)
        uphill = _dot(direction, gradient) >= 0  # rounding, where the objective is flat
        direction[uphill] = -gradient[uphill]
        new_x, new_value, new_gradient = _line_search(objective, rows, x, value, gradient, direction)
        history.add(new_x - x, new_gradient - gradient)
        small = np.where(value - new_value <= SMALL_DECREASE * np.abs(value), small + 1, 0)
        x, value, gradient = new_x, new_value, new_gradient
        reached[rows], values[rows] = x, value
        going = (small < 3) & (np.abs(gradient).max(axis=1) > SMALL_GRADIENT)
        if not going.any():
            break
        if not going.all():
            rows, x, value, gradient, small = (array[going] for array in (rows, x, value, gradient, small))
            history.keep(going)
    return reached, values


def _line_search(
    objective: Objective,
    rows: np.ndarray,
    x: np.ndarray,
    value: np.ndarray,
    gradient: np.ndarray,
    direction: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, value, gradient) at a step length of each row that meets the weak Wolfe conditions, by bisection and
    doubling, which also works where the gradient jumps (Lewis and Overton 2013). A row that finds none takes the last
    one that decreased, or stays."""
    best_x, best_value, best_gradient = x.copy(), value.copy(), gradient.copy()
    slope = _dot(direction, gradient)
    length = np.minimum(1, LONGEST_FIRST_TRIAL / np.maximum(np.abs(direction).max(axis=1), np.finfo(float).tiny))
    low, high = np.zeros(len(x)), np.full(len(x), np.inf)
    searching = np.arange(len(x))
    for _ in range(MOST_TRIALS):
        step = length[searching]
        trial = x[searching] + step[:, None] * direction[searching]
        trial_value, trial_gradient = objective(trial, rows[searching])
        decreases = trial_value <= value[searching] + SUFFICIENT_DECREASE * step * slope[searching]
        flattens = _dot(trial_gradient, direction[searching]) >= CURVATURE * slope[searching]
        better = searching[decreases]
        best_x[better], best_value[better] = trial[decreases], trial_value[decreases]
        best_gradient[better] = trial_gradient[decreases]
        high[searching[~decreases]], low[better] = step[~decreases], step[decreases]
        searching = searching[~(decreases & flattens)]
        if not len(searching):
            break
        ends = high[searching]
        length[searching] = np.where(np.isinf(ends), 2 * length[searching], (low[searching] + ends) / 2)
    return best_x, best_value, best_gradient


def _dot(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The dot product of every row."""
    return np.einsum("rp,rp->r", left, right)
