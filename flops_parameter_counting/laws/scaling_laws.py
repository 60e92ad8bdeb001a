"""Laws that predict the loss from parameters and tokens, and published rules for learning rate and batch.

A law is L(N, D) = E + A / N^alpha + B / D^beta, in nats per token of the tokenizer it was fitted with: losses of
different tokenizers do not compare. Each law and each rule names the N that it means (`count_parameters` converts).
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, did_you_mean
from common.json_files import read_json
from flops_parameter_counting.costs.model_cost import ModelCost, with_backward

CONSTANTS = ("E", "A", "B", "alpha", "beta")

# What "N" can mean. Tied weights count once in `total`, and belong to the head where the embedding is left out.
N_MEANINGS = {
    "total": "all parameters",
    "non_embedding": "parameters without token and position embeddings and without the head",
    "non_embedding_with_head": "parameters without token and position embeddings, with the head",
}


def count_parameters(cost: ModelCost, meaning: str) -> Any:
    """The parameters of a model (or int64 array of a grid) as a law or a rule means them. All laws here are of dense
    models: of experts those count that a token meets."""
    if meaning == "total":
        return cost.n_active
    blocks = cost.n_active - cost.parameters["embedding"] - cost.parameters["position"] - cost.parameters["lm_head"]
    head = cost.flops["lm_head"] // 2  # its matrix, tied or not: 2 FLOPs a weight
    return blocks + head if meaning == "non_embedding_with_head" else blocks


@dataclasses.dataclass(frozen=True)
class Repeats:
    """How fast repeated tokens and excess parameters lose value (Muennighoff et al. 2023, section 3.1)."""

    tokens: float  # R_D*: the repetitions at which a repeated token has lost 1 - 1/e of its value
    parameters: float  # R_N*


MUENNIGHOFF_REPEATS = Repeats(tokens=15.387756, parameters=5.309743)


@dataclasses.dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta.

    `draws`, of shape (n, 5) in the order of CONSTANTS, are bootstrap fits: a joint distribution of the constants.
    `standard_errors` say how far each constant is known by itself, which gives no interval for a loss: the errors of
    A and alpha, and of B and beta, all but cancel. `n_range` and `d_range` bound the data of the fit.
    """

    name: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    source: str
    N: str = "total"
    n_range: tuple[float, float] | None = None
    d_range: tuple[float, float] | None = None
    standard_errors: dict[str, float] | None = None
    draws: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    repeats: Repeats | None = None

    def loss(self, n: Any, d: Any, unique_tokens: float | None = None) -> Any:
        """Nats per token of models with `n` parameters, as this law means them, trained on `d` tokens.

        Numbers or arrays that broadcast. With `unique_tokens`, what goes beyond them are repetitions.
        """
        if unique_tokens is not None:
            n, d = self.effective(n, d, unique_tokens)
        return self.E + self.A * np.power(n, -self.alpha, dtype=float) + self.B * np.power(d, -self.beta, dtype=float)

    def effective(self, n: Any, d: Any, unique_tokens: float) -> tuple[Any, Any]:
        """(N', D'): what parameters and tokens are worth when only `unique_tokens` of the tokens are new.

        Muennighoff et al. 2023, section 3.1: D' = U + U R* (1 - exp(-R_D / R*)) with R_D = D/U - 1, and the
        same for N beyond the parameters that U tokens are best for. Another law borrows D' and its R*, and no N'.
        """
        seen = np.minimum(d, unique_tokens)
        decay = self.repeats or MUENNIGHOFF_REPEATS
        d = _diminished(d, seen, decay.tokens)
        if self.repeats is not None:
            n = _diminished(n, np.minimum(n, self.optimal_parameters(seen)), self.repeats.parameters)
        return n, d

    def optimal_parameters(self, d: Any) -> Any:
        """N for which `d` tokens are the optimum under C = 6 N D (Hoffmann et al. 2022, equation 4)."""
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return g * np.power(g * np.asarray(d, dtype=float), self.beta / self.alpha)

    def outside_range(self, n: float, d: float) -> list[str]:
        """What of (n, d) the law was not fitted on, as readable lines; one line when the range is not known."""
        if self.n_range is None or self.d_range is None:
            return [f"the range of data that {self.name} was fitted on is not known"]
        checks = (("N", n, self.n_range), ("D", d, self.d_range))
        return [
            f"{letter} = {value:.3g} lies outside the {low:.3g} to {high:.3g} that {self.name} was fitted on"
            for letter, value, (low, high) in checks
            if not low <= value <= high
        ]

    def drawn(self, constants: np.ndarray) -> "Law":
        """The same law with one draw's constants, of shape (5,)."""
        values: dict[str, Any] = dict(zip(CONSTANTS, map(float, constants), strict=True))
        return dataclasses.replace(self, **values)


def _diminished(total: Any, fresh: Any, r_star: float) -> Any:
    """`fresh`, and what the rest of `total` is worth at a decay of `r_star` repetitions."""
    repetitions = total / fresh - 1
    return fresh + fresh * r_star * -np.expm1(-repetitions / r_star)


# Hoffmann et al. trained from 70M to over 16B parameters on 5B to over 500B tokens (their abstract and figure 2).
_CHINCHILLA_RANGE: dict[str, Any] = {"n_range": (70e6, 16e9), "d_range": (5e9, 500e9)}

LAWS = {
    law.name: law
    for law in (
        Law(
            "hoffmann", 1.69, 406.4, 410.7, 0.34, 0.28,
            "Hoffmann et al. 2022, equation 10 (rounded)",
            **_CHINCHILLA_RANGE,
        ),
        Law(
            "hoffmann_unrounded", math.exp(0.5267228), math.exp(6.0073404), math.exp(6.0179186), 0.33917084, 0.2849083,
            "Hoffmann et al. 2022, the same fit before rounding, from the paper's TeX source",
            **_CHINCHILLA_RANGE,
        ),
        Law(
            "besiroglu", 1.8172, 482.01, 2085.43, 0.3478, 0.3658,
            "Besiroglu et al. 2024, a new fit to the data of Hoffmann et al.",
            standard_errors={"E": 0.03, "A": 124.58, "B": 1293.23, "alpha": 0.02, "beta": 0.02},
            **_CHINCHILLA_RANGE,
        ),
        Law(
            "muennighoff", math.exp(0.6254804), math.exp(6.255414), math.exp(7.3049974), 0.3526596, 0.3526596,
            "Muennighoff et al. 2023",
            n_range=(7e6, 9e9), d_range=(100e6, 900e9),
            repeats=MUENNIGHOFF_REPEATS,
        ),
    )
}  # fmt: skip


def find_law(name: str) -> Law:
    """A published law by its name, or a fitted one from a file `*.json`. Raises UserError."""
    if name.endswith(".json"):
        return read_law(Path(name))
    if name not in LAWS:
        raise UserError(f"law {name!r} is none of: {', '.join(LAWS)}, or a law file *.json{did_you_mean(name, LAWS)}")
    return LAWS[name]


# ---------------------------------------------------------------------------------------------------------------------
# Law files

# {"E", "A", "B", "alpha", "beta": numbers, "N": one of N_MEANINGS, "source": text}; and, where they are known,
# {"range": {"N": [low, high], "D": [low, high]}, "draws": [[E, A, B, alpha, beta], ...],
#  "standard_errors": {constant: number}, "fit": {anything the fit wants to keep}}.
_REQUIRED = (*CONSTANTS, "N", "source")
_OPTIONAL = ("name", "range", "draws", "standard_errors", "fit")


def read_law(path: Path) -> Law:
    """A law that was fitted and written to JSON; its name is the file's unless it says another. Raises UserError."""
    try:
        return law_from(read_json(path), path.stem)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def law_from(values: dict[str, Any], name: str) -> Law:
    """The law of a law file's content, called `name` unless it says another. Raises UserError."""
    for key in values:
        if key not in _REQUIRED + _OPTIONAL:
            raise UserError(f"unknown key {key!r}{did_you_mean(key, _REQUIRED + _OPTIONAL)}")
    if missing := [key for key in _REQUIRED if key not in values]:
        raise UserError(f"the law lacks {', '.join(missing)}")
    if not isinstance(values["N"], str) or values["N"] not in N_MEANINGS:
        raise UserError(f"N={values['N']!r} is none of: {', '.join(N_MEANINGS)}")
    constants: dict[str, Any] = {key: _positive(values[key], key) for key in CONSTANTS}
    ranges = values.get("range", {})
    if not isinstance(ranges, dict) or set(ranges) - {"N", "D"}:
        raise UserError('range must be {"N": [low, high], "D": [low, high]}')
    errors = values.get("standard_errors")
    if errors is not None and (not isinstance(errors, dict) or set(errors) != set(CONSTANTS)):
        raise UserError(f"standard_errors must have exactly the keys {', '.join(CONSTANTS)}")
    return Law(
        name=_text(values.get("name", name), "name"),
        source=_text(values["source"], "source"),
        N=values["N"],
        n_range=_interval(ranges["N"], "range of N") if "N" in ranges else None,
        d_range=_interval(ranges["D"], "range of D") if "D" in ranges else None,
        standard_errors=errors and {key: _positive(value, f"standard error of {key}") for key, value in errors.items()},
        draws=_draws(values["draws"]) if "draws" in values else None,
        **constants,
    )


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise UserError(f"{name}={value!r} must be a text in quotes, on one line")
    return value


def _positive(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not 0 < value < 1e300:  # whole numbers of JSON go beyond what a float holds
        raise UserError(f"{name}={value!r} must be a number above 0")
    return float(value)


def _interval(value: Any, name: str) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise UserError(f"the {name} must be [low, high]")
    low, high = (_positive(bound, name) for bound in value)
    if low > high:
        raise UserError(f"the {name}, {value}, ends before it begins")
    return low, high


def _draws(value: Any) -> np.ndarray:
    """(n, 5) in the order of CONSTANTS."""
    wanted = f"draws must be a list of at least two [{', '.join(CONSTANTS)}], each a number above 0"
    try:
        draws = np.array(value, dtype=float)
    except (TypeError, ValueError, OverflowError):
        raise UserError(wanted) from None
    if draws.ndim != 2 or draws.shape[0] < 2 or draws.shape[1] != len(CONSTANTS):
        raise UserError(wanted)
    if not (np.isfinite(draws).all() and (draws > 0).all()):
        raise UserError(wanted)
    return draws


def knows_nothing(loss: float, vocab_size: int) -> bool:
    """Whether a loss is above that of a model to which all tokens are alike: no loss, then, of this vocabulary."""
    return loss > math.log(vocab_size)


def middle_95(values: np.ndarray) -> tuple[float, float]:
    """The interval that holds the middle 95 % of `values` (draws,)."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


# ---------------------------------------------------------------------------------------------------------------------
# Learning rate and batch


@dataclasses.dataclass(frozen=True)
class TrainingRule:
    """A published fit of the best peak learning rate and batch of AdamW.

    Both are functions of (N as `N` says, D in tokens, C in training FLOPs); the batch is in tokens. C is counted
    without the vocabulary, as DeepSeek does (non-embedding FLOPs, attention included).
    """

    name: str
    N: str | None  # None: the rule does not look at N
    learning_rate: Callable[[float, float, float], float]
    batch_tokens: Callable[[float, float, float], float]
    source: str


TRAINING_RULES = (
    TrainingRule(
        "step_law", "non_embedding",
        lambda n, d, c: 1.79 * n**-0.713 * d**0.307,
        lambda n, d, c: 0.58 * d**0.571,
        "Li et al. 2025",
    ),
    TrainingRule(
        "deepseek", None,
        lambda n, d, c: 0.3118 * c**-0.125,
        lambda n, d, c: 0.2920 * c**0.3271,
        "DeepSeek LLM 2024",
    ),
    TrainingRule(
        "porian", "non_embedding_with_head",
        lambda n, d, c: 3.7 * n**-0.36,
        lambda n, d, c: 0.7576 * n**0.703,
        "Porian et al. 2024",
    ),
    TrainingRule(
        "olmo_ladder", "non_embedding",
        lambda n, d, c: 0.0047 * (n / 108e6) ** (-1 / 3),
        lambda n, d, c: 160 * (n / 108e6) ** (2 / 3) * 2048,
        "Bhagia et al. 2024, in sequences of 2,048 tokens",
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RuleValue:
    """What one rule says about one run."""

    name: str
    learning_rate: float
    batch_tokens: float
    source: str


def training_rules(cost: ModelCost, tokens: float) -> list[RuleValue]:
    """What every rule says about training a model on so many tokens, in the order of TRAINING_RULES."""
    forward = cost.forward_flops("full") - cost.flops["lm_head"]
    values = []
    for rule in TRAINING_RULES:
        n = count_parameters(cost, rule.N) if rule.N else math.nan
        arguments = (float(n), float(tokens), float(with_backward(forward) * tokens))
        values.append(RuleValue(rule.name, rule.learning_rate(*arguments), rule.batch_tokens(*arguments), rule.source))
    return values


def on_experts(cost: ModelCost) -> list[str]:
    """What must be said where a token does not meet all parameters."""
    if cost.n_active == cost.n_params:
        return []
    return ["the law is one of dense models: of experts its N counts those that a token meets"]


def on_state_spaces(law: Law) -> list[str]:
    """What must be said of a published law about a model with Mamba layers; what a law of one's own was fitted to, its
    owner knows."""
    if law.name not in LAWS:
        return []
    return [f"{law.name} was fitted to transformers: of models with Mamba layers it may be wrong"]
