"""Laws that predict the loss from parameters and tokens, and published rules for learning rate and batch.

A law is L(N, D) = E + A / N^alpha + B / D^beta, in nats per token of the tokenizer it was fitted with: losses of
different tokenizers do not compare. Each law and each rule names the N that it means (`count_parameters` converts).
A law of experts or of precision sees more of a model than its N: `Law.of` gives the law of one model (experts.py).
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, did_you_mean
from common.json_files import read_json
from components.spec import Routing
from flops_parameter_counting.costs.model_cost import ModelCost, with_backward
from flops_parameter_counting.laws import experts

CONSTANTS = ("E", "A", "B", "alpha", "beta")

# What "N" can mean. Tied weights count once in `total`, and belong to the head where the embedding is left out.
N_MEANINGS = {
    "total": "all parameters",
    "non_embedding": "parameters without token and position embeddings and without the head",
    "non_embedding_with_head": "parameters without token and position embeddings, with the head",
    "active": "parameters that a token meets",
    "with_all_experts": "all parameters, those of every expert among them",
}


def count_parameters(cost: ModelCost, meaning: str) -> Any:
    """The parameters of a model (or int64 array of a grid) as a law or a rule means them. Of experts those count that a
    token meets, unless a law of experts means all."""
    if meaning == "with_all_experts":
        return cost.n_params
    if meaning in ("total", "active"):
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

    @property
    def is_of_experts(self) -> bool:
        """Whether it tells models apart by their experts."""
        return False

    @property
    def is_of_n_and_d(self) -> bool:
        """Whether it sees nothing of a model but its N, and of a run but its D."""
        return type(self) is Law

    @property
    def formula(self) -> str:
        """In words for the console."""
        return f"{self.E:.4f} + {self.A:.2f} / N^{self.alpha:.4f} + {self.B:.2f} / D^{self.beta:.4f}"

    def of(self, cost: ModelCost, rows: Any = None) -> "Law":
        """The law of a model, or of an int64 array of `rows` of a grid's: itself, where it sees N and D alone."""
        return self

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in ("name", *CONSTANTS, "N", "source")}

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


def _of_rows(value: Any, rows: Any) -> Any:
    """Those of an array's elements that `rows` names, where it is one."""
    return value if rows is None or np.ndim(value) == 0 else value[rows]


@dataclasses.dataclass(frozen=True)
class ExpertLaw(Law):
    """A law that tells models apart by their experts. As it stands in LAWS it is that of dense models; `of` gives the
    law of one model: `routing` says of its experts, None where it is dense; `flops` are its training FLOPs per token
    (full) over its N, as this law means it."""

    routing: Routing | None = None
    flops: Any = 6.0

    @property
    def is_of_experts(self) -> bool:
        return True

    def of(self, cost: ModelCost, rows: Any = None) -> "Law":
        found = cost.routing
        if found is not None:
            found = Routing(*(_of_rows(value, rows) for value in (found.met, found.of, found.width)))
        flops = cost.training_flops() / count_parameters(cost, self.N)
        return self._with(dataclasses.replace(self, routing=found, flops=_of_rows(flops, rows)))

    def _with(self, law: Any) -> "Law":
        """`law`, which has the experts of a model, with what follows from them."""
        return law

    @property
    def share(self) -> Any:
        """Of the experts, how much a token meets, shared ones among them."""
        return 1.0 if self.routing is None else self.routing.met / self.routing.of

    def as_data(self) -> dict[str, Any]:
        return {"name": self.name, "formula": self.formula, "N": self.N, "source": self.source}

    def outside_range(self, n: float, d: float) -> list[str]:
        found = [] if self.n_range is None else super().outside_range(n, d)
        return found + [
            f"{what} = {value:.3g} lies outside the {low:.3g} to {high:.3g} that {self.name} was fitted on"
            for what, value, (low, high) in self._checks(self.flops * n * d)
            if not low <= value <= high
        ]

    def _checks(self, flops: float) -> list[tuple[str, float, tuple[float, float]]]:
        """What else the law was fitted on: in words, this model's value, and the bounds."""
        return []


class JointLaw(ExpertLaw):
    """Ludziejewski et al. 2025: L = a e^delta N^(alpha + gamma ln e) + b e^omega D^(beta + zeta ln e) + c, of dense
    models and of E experts as wide as a dense FFN, of which a token meets one (experts.joint_constants has constants
    and source). N: active, embedding and head among them. Fitted on N of 79 million to 2.7 billion, D of 0.5 to 80
    billion, and E of 1 to 32. Of experts that are narrower, or of which a token meets several, E is taken as all
    experts over those that a token meets."""

    @property
    def formula(self) -> str:
        return (
            f"{experts.JOINT_C} + {experts.JOINT_A} e^{experts.JOINT_DELTA} N^({experts.JOINT_ALPHA} + "
            f"{experts.JOINT_GAMMA} ln e) + {experts.JOINT_B} e^{experts.JOINT_OMEGA} D^({experts.JOINT_BETA} - "
            f"{-experts.JOINT_ZETA} ln e), e of E experts"
        )

    def _with(self, law: Any) -> Law:
        return dataclasses.replace(law, **experts.joint_constants(1 / law.share))

    def outside_range(self, n: float, d: float) -> list[str]:
        found = super().outside_range(n, d)
        if self.routing is not None and self.routing.met > 1:
            found.append(
                f"{self.name} was fitted on layers of which a token meets one expert: here it meets "
                f"{self.routing.met:g}, and E is taken as all experts over these"
            )
        return found

    def _checks(self, flops: float) -> list[tuple[str, float, tuple[float, float]]]:
        return [("E", 1 / self.share, experts.JOINT_EXPERTS)]


class SparsityLaw(ExpertLaw):
    """Abnar et al. 2025, equation 6: L = E + A / N^alpha + B / D^beta + c / (1 - S)^lambda + d / ((1 - S)^delta
    N^gamma), S the share of the experts that a token does not meet (experts.sparsity_terms has constants and source).
    N: all parameters, every expert's. Fitted on S of 0 to 0.98, the last held out, and on 3e19 to 1e21 FLOPs; which N
    and D that were, its text does not say in numbers."""

    @property
    def formula(self) -> str:
        return (
            f"{self.E} + {self.A} / N^{self.alpha} + {self.B} / D^{self.beta} + {experts.SPARSITY_C} "
            f"(1 - S)^{-experts.SPARSITY_LAMBDA} + {experts.SPARSITY_D} / ((1 - S)^{experts.SPARSITY_DELTA} "
            f"N^{experts.SPARSITY_GAMMA}), S of sparsity"
        )

    def loss(self, n: Any, d: Any, unique_tokens: float | None = None) -> Any:
        if unique_tokens is not None:
            n, d = self.effective(n, d, unique_tokens)
        return super().loss(n, d) + experts.sparsity_terms(n, 1 - self.share)

    def _checks(self, flops: float) -> list[tuple[str, float, tuple[float, float]]]:
        return [("S", 1 - self.share, experts.SPARSITY_LEVELS), ("C", flops, experts.SPARSITY_FLOPS)]


class LeverageLaw(ExpertLaw):
    """Tian et al. 2025: a model of experts reaches the loss of a dense one of EL times its FLOPs a token, on the same
    tokens (section 3; experts.leverage has constants and source). They fit no loss: here N times EL stands in the place
    of the N of Besiroglu et al., whose constants these are. N: active. Fitted on models of which a token meets 0.8 to
    100 % of the experts, of 2 n_embd / expert_d_ff of 2 to 16, and on 3e18 to 3e20 FLOPs."""

    @property
    def formula(self) -> str:
        return (
            f"besiroglu's of N x EL, EL = (A + {experts.LEVERAGE_START})^({experts.LEVERAGE_A} - "
            f"{-experts.LEVERAGE_D} log10 C + {experts.LEVERAGE_GAMMA} log2(G)^2 - {-experts.LEVERAGE_BETA} log2 G)"
        )

    def leverage(self, flops: Any) -> Any:
        """EL of this model, trained with so many FLOPs; 1 of a dense one."""
        if self.routing is None:
            return 1.0
        return experts.leverage(self.share, 2 / self.routing.width, flops)

    def loss(self, n: Any, d: Any, unique_tokens: float | None = None) -> Any:
        return super().loss(n * self.leverage(self.flops * n * d), d, unique_tokens)

    def _checks(self, flops: float) -> list[tuple[str, float, tuple[float, float]]]:
        if self.routing is None:
            return []
        return [
            ("A", self.share, experts.LEVERAGE_SHARES),
            ("G", 2 / self.routing.width, experts.LEVERAGE_GRANULARITIES),
            ("C", flops, experts.LEVERAGE_FLOPS),
        ]


@dataclasses.dataclass(frozen=True)
class PrecisionLaw(Law):
    """Kumar et al. 2024, equation 3 with equation 4: A / (N f(P))^alpha in the place of A / N^alpha, f the share of the
    parameters that training leaves with weights, activations and KV cache of P bits (experts.parameters_left has
    constants and source). N: without embeddings and head. Fitted on N of 30 to 220 million, D of 1.5 to 26 billion, and
    integers of 3 to 12 bits; what quantizing a trained model costs is not included (docs/scaling_laws.md)."""

    bits: int = 16

    @property
    def formula(self) -> str:
        left = experts.parameters_left(self.bits)
        return (
            f"{self.E} + {self.A:.0f} / (N x {left:.4f})^{self.alpha} + {self.B:.0f} / D^{self.beta}, of training in "
            f"{self.bits} bits"
        )

    def in_bits(self, text: str) -> "PrecisionLaw":
        """The law of training in so many bits. Raises UserError."""
        low, high = experts.PRECISION_BITS
        if not text.isdecimal() or not low <= int(text) <= high:
            raise UserError(f"law {self.name + ':' + text!r}: bits are a whole number from {low} to {high}")
        return dataclasses.replace(self, name=f"{self.name}:{int(text)}", bits=int(text))

    def loss(self, n: Any, d: Any, unique_tokens: float | None = None) -> Any:
        return super().loss(n * experts.parameters_left(self.bits), d, unique_tokens)

    def outside_range(self, n: float, d: float) -> list[str]:
        found = super().outside_range(n, d)
        if self.bits < experts.PRECISION_BITS[1]:
            found.append(f"{self.name} is of training in integers of {self.bits} bits, which train.py does not do")
        return found

    def as_data(self) -> dict[str, Any]:
        return super().as_data() | {"bits": self.bits, "formula": self.formula}


# Hoffmann et al. trained from 70M to over 16B parameters on 5B to over 500B tokens (their abstract and figure 2).
_CHINCHILLA_RANGE: dict[str, Any] = {"n_range": (70e6, 16e9), "d_range": (5e9, 500e9)}

_BESIROGLU: dict[str, Any] = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}

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
            "besiroglu",
            source="Besiroglu et al. 2024, a new fit to the data of Hoffmann et al.",
            **_BESIROGLU,
            standard_errors={"E": 0.03, "A": 124.58, "B": 1293.23, "alpha": 0.02, "beta": 0.02},
            **_CHINCHILLA_RANGE,
        ),
        Law(
            "muennighoff", math.exp(0.6254804), math.exp(6.255414), math.exp(7.3049974), 0.3526596, 0.3526596,
            "Muennighoff et al. 2023",
            n_range=(7e6, 9e9), d_range=(100e6, 900e9),
            repeats=MUENNIGHOFF_REPEATS,
        ),
        JointLaw(
            "ludziejewski", N="active",
            source="Ludziejewski et al. 2025, Joint MoE Scaling Laws, equation 6 and table 3",
            n_range=(79e6, 2.7e9), d_range=(0.5e9, 80e9), **experts.joint_constants(1.0),
        ),
        LeverageLaw(
            "tian", N="active",
            source="Tian et al. 2025, Towards Greater Leverage, equation 13 and table 2",
            **_BESIROGLU,
        ),
        SparsityLaw(
            "abnar", 0.94, 16612.50, 5455.67, 0.5962, 0.3954, N="with_all_experts",
            source="Abnar et al. 2025, Parameters vs FLOPs, equation 6 and table 3",
        ),
        PrecisionLaw(
            "kumar", 2.7648, 4.299e3, 1.806e4, 0.4965, 0.4965, N="non_embedding",
            source="Kumar et al. 2024, Scaling Laws for Precision, equation 4 and table 2",
            n_range=(30e6, 220e6), d_range=(1.5e9, 26e9),
        ),
    )
}  # fmt: skip


def find_law(name: str) -> Law:
    """A published law by its name, with `:8` after that of a law of precision the bits, or a fitted one from a file
    `*.json`. Raises UserError."""
    if name.endswith(".json"):
        return read_law(Path(name))
    first, _, bits = name.partition(":")
    if bits and isinstance(law := LAWS.get(first), PrecisionLaw):
        return law.in_bits(bits)
    if name not in LAWS:
        raise UserError(f"law {name!r} is none of: {', '.join(LAWS)}, or a law file *.json{did_you_mean(name, LAWS)}")
    return LAWS[name]


def is_published(law: Law) -> bool:
    """Whether it is one of LAWS, in any number of bits."""
    if isinstance(law, PrecisionLaw):
        law = dataclasses.replace(law, name=law.name.partition(":")[0], bits=PrecisionLaw.bits)
    return LAWS.get(law.name) == law


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


def on_experts(law: Law, cost: ModelCost) -> list[str]:
    """What must be said where a token does not meet all parameters."""
    if cost.n_active == cost.n_params or law.is_of_experts:
        return []
    return ["the law is one of dense models: of experts its N counts those that a token meets"]


def on_state_spaces(law: Law) -> list[str]:
    """What must be said of a published law about a model with recurrent layers; what a law of one's own was fitted to,
    its owner knows."""
    if not is_published(law):
        return []
    return [f"{law.name} was fitted to transformers: of models with recurrent layers it may be wrong"]
