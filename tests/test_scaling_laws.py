"""Loss laws, repeated data, law files, and the rules for learning rate and batch, against figures made elsewhere."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from components.spec import Routing
from flops_parameter_counting.costs.model_cost import model_cost
from flops_parameter_counting.laws import experts
from flops_parameter_counting.laws.scaling_laws import (
    LAWS,
    TRAINING_RULES,
    count_parameters,
    find_law,
    training_rules,
)
from model_config import resolve_architecture

# (E, A, B, alpha, beta) as published; those with logarithms as in the papers' sources.
PUBLISHED = {
    "hoffmann": (1.69, 406.4, 410.7, 0.34, 0.28),
    "hoffmann_unrounded": (math.e**0.5267228, math.e**6.0073404, math.e**6.0179186, 0.33917084, 0.2849083),
    "besiroglu": (1.8172, 482.01, 2085.43, 0.3478, 0.3658),
    "muennighoff": (math.e**0.6254804, math.e**6.255414, math.e**7.3049974, 0.3526596, 0.3526596),
}
MODEL = {"n_layer": 2, "n_head": 2, "n_embd": 8, "d_ff": 16, "vocab_size": 100, "block_size": 10}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_constants_are_the_published_ones(name):
    e, a, b, alpha, beta = PUBLISHED[name]
    for n, d in ((1e6, 1e8), (70e9, 1.4e12)):
        assert LAWS[name].loss(n, d) == pytest.approx(e + a / n**alpha + b / d**beta, rel=1e-12)


def test_gopher_and_chinchilla():
    """1.69 + 0.052 + 0.251 for Gopher, 1.69 + 0.083 + 0.163 for Chinchilla: sums of terms with three digits each."""
    assert LAWS["hoffmann"].loss(280e9, 300e9) == pytest.approx(1.993, abs=1e-3)
    assert LAWS["hoffmann"].loss(70e9, 1.4e12) == pytest.approx(1.936, abs=1e-3)


def test_the_loss_of_arrays_is_that_of_their_elements():
    n, d = np.array([[1e8], [2e9]]), np.array([1e9, 1e10, 1e11])
    losses = LAWS["besiroglu"].loss(n, d)
    assert losses.shape == (2, 3)
    assert losses[1, 2] == LAWS["besiroglu"].loss(2e9, 1e11)


@pytest.mark.parametrize("name", [name for name, law in LAWS.items() if law.is_of_n_and_d])
@pytest.mark.parametrize("budget", [1e17, 1e21, 1e25])
def test_the_optimum_in_closed_form_is_the_one_a_fine_grid_finds(name, budget):
    law = LAWS[name]
    n = np.geomspace(1e5, 1e14, 200_001)
    best = n[law.loss(n, budget / 6 / n).argmin()]
    assert law.optimal_parameters(budget / 6 / best) == pytest.approx(best, rel=1e-3)


# Laws of experts, and of precision

# Ludziejewski et al. 2025, table 4: what the joint law is for a number of experts, m N^mu + n D^nu + c
TABLE_4 = {
    1: (30.3640, -0.1817, 53.9838, -0.1965),
    2: (27.7982, -0.1780, 66.8401, -0.2065),
    4: (24.8462, -0.1731, 87.7022, -0.2192),
    8: (21.8330, -0.1676, 119.9126, -0.2338),
    16: (19.0159, -0.1617, 167.5073, -0.2494),
    32: (16.5424, -0.1557, 234.6726, -0.2652),
}
# The same, table 1: the best N (active) and D under 6 N D = C
TABLE_1 = {
    (1e20, 1): (1.7e9, 9.7e9), (1e20, 8): (0.99e9, 17e9), (1e20, 32): (0.669e9, 24.9e9), (1e21, 1): (5.7e9, 29.3e9),
    (1e21, 16): (3.3e9, 51.2e9), (1e22, 2): (17.4e9, 96e9), (1e22, 32): (12.2e9, 136.9e9),
}  # fmt: skip


def of_experts(**changes):
    """A model of experts, and what it costs."""
    keys = {"arch_preset": "custom", "ffn_pattern": "E", "n_experts": 8, "n_experts_per_token": 1, "expert_d_ff": 24}
    return model_cost(resolve_architecture({**MODEL, "d_ff": None, **keys, **changes}))


@pytest.mark.parametrize("experts", TABLE_4)
def test_the_joint_law_is_its_papers_for_every_number_of_experts(experts):
    law = LAWS["ludziejewski"].of(of_experts(n_experts=experts))
    m, mu, n, nu = TABLE_4[experts]
    for constant, printed in ((law.A, m), (law.B, n)):
        assert constant == pytest.approx(printed, rel=5e-3), "of constants with four digits"
    assert law.alpha == pytest.approx(-mu, abs=2e-4) and law.beta == pytest.approx(-nu, abs=2e-4)
    assert law.loss(1e9, 2e10) == pytest.approx(m * 1e9**mu + n * 2e10**nu + 1.3637, rel=1e-3)
    dense = LAWS["ludziejewski"].of(model_cost(resolve_architecture(MODEL)))
    assert experts > 1 or dense.loss(1e9, 2e10) == law.loss(1e9, 2e10), "one expert is a dense FFN"


@pytest.mark.parametrize(("budget", "experts"), TABLE_1)
def test_the_joint_law_advises_what_its_paper_prints(budget, experts):
    n, d = TABLE_1[budget, experts]
    law = LAWS["ludziejewski"].of(of_experts(n_experts=experts))
    sizes = np.geomspace(1e8, 1e11, 100_001)
    best = sizes[law.loss(sizes, budget / 6 / sizes).argmin()]
    assert best == pytest.approx(n, rel=0.05) and budget / 6 / best == pytest.approx(d, rel=0.05)


def test_the_leverage_is_what_its_paper_states():
    """Above 7 at 3.1 %, a granularity of 12 and 1e22 FLOPs (section 4.2), 1 of a dense model, and best near 12, in 8 to
    16. No other bases of the two logarithms give that."""
    assert 7 < experts.leverage(0.031, 12, 1e22) < 7.5
    assert experts.leverage(1, 2, 1e20) == pytest.approx(1, abs=0.01)
    granularities = np.geomspace(1, 100, 10_001)
    assert 10 < granularities[experts.leverage(0.031, granularities, 1e20).argmax()] < 13
    fitting = []
    for of_c, of_g in itertools.product((2, math.e, 10), repeat=2):
        log_g = np.log(granularities) / math.log(of_g)
        exponent = 1.23 - 0.0761 * math.log(1e22, of_c) + 0.0167 * log_g**2 - 0.117 * log_g
        values = (0.031 + 0.0163) ** exponent
        at_12, best = float(np.interp(12, granularities, values)), granularities[values.argmax()]
        fitting += [(of_c, of_g)] if 7 < at_12 < 10 and 8 <= best <= 16 else []
    assert fitting == [(10, 2)]


def test_a_model_of_experts_is_a_larger_dense_one_by_its_leverage():
    cost = of_experts(n_experts=63, n_experts_per_token=3, n_shared_experts=1)
    law, n, d = LAWS["tian"].of(cost), cost.n_active, 1e9
    flops = cost.training_flops() * d
    of_dense = n * float(experts.leverage(4 / 64, 2 * 8 / 24, flops))
    assert law.loss(n, d) == pytest.approx(LAWS["besiroglu"].loss(of_dense, d), rel=1e-12)
    dense = model_cost(resolve_architecture(MODEL))
    assert LAWS["tian"].of(dense).loss(1e9, d) == LAWS["besiroglu"].loss(1e9, d)


def test_the_law_of_sparsity_by_hand():
    cost = of_experts(n_experts=20, n_experts_per_token=2)
    n, d, met = cost.n_params, 2e10, 0.1
    by_hand = 16612.50 / n**0.5962 + 5455.67 / d**0.3954 + 0.4598 * met**0.1666 + 17.26 / (met**0.1603 * n**0.1595)
    assert count_parameters(cost, LAWS["abnar"].N) == n > count_parameters(cost, "active")
    assert LAWS["abnar"].of(cost).loss(n, d) == pytest.approx(by_hand + 0.94, rel=1e-12)


def test_the_law_of_sparsity_says_what_its_paper_concludes():
    """With 6 N_a D = C and models of experts alone, N_a = (1 - S) N: of a fixed N the best S grows with N, and at the
    best N for each, a sparser model is the better one (section 2)."""
    sparsity, n = np.linspace(0, 0.98, 99)[:, None], np.geomspace(1e8, 1e12, 401)
    laws = dataclasses.replace(LAWS["abnar"], routing=Routing(1 - sparsity, 1.0, 1.0))
    losses = laws.loss(n, 1e21 / 6 / ((1 - sparsity) * n))
    best = sparsity[losses.argmin(0), 0]
    assert best[0] < 0.5 and best[-1] == 0.98 and (np.diff(best) >= 0).all()
    assert (np.diff(losses.min(1)) < 0).all()


def test_the_law_of_precision_says_what_its_paper_concludes():
    """Under C = 6 N D P / 16 the best P is 7 to 8 bits at every budget, and 4 bits make a model more than 4 times too
    small (section 4.3.2)."""
    bits = range(4, 17)
    for budget in (1e18, 1e21):
        n = np.geomspace(1e6, 1e12, 20_001)
        losses = {p: find_law(f"kumar:{p}").loss(n, budget * 16 / (6 * p * n)).min() for p in bits}
        assert min(losses, key=losses.__getitem__) in (7, 8)
    assert 4 < 1 / experts.parameters_left(4) < 6
    assert math.prod(1 - math.exp(n - 3 / gamma) for gamma, n in experts.PRECISION.values()) < 0, "3 bits diverge"
    left = (
        (1 - math.exp(0.3037 - 8 / 2.6745)) * (1 - math.exp(1.4072 - 8 / 2.2102)) * (1 - math.exp(2.4185 - 8 / 0.9578))
    )
    by_hand = 2.7648 + 4299 / (1e8 * left) ** 0.4965 + 18060 / 1e10**0.4965
    assert find_law("kumar:8").loss(1e8, 1e10) == pytest.approx(by_hand, rel=1e-12)
    assert find_law("kumar:16") == dataclasses.replace(LAWS["kumar"], name="kumar:16")


@pytest.mark.parametrize("name", ["ludziejewski", "tian", "abnar", "kumar"])
def test_what_these_laws_were_fitted_on(name):
    cost = of_experts(n_experts=1000, n_experts_per_token=3)
    said = " ".join(LAWS[name].of(cost).outside_range(1e6, 1e7))
    wanted = {
        "ludziejewski": ["N = 1e+06 lies", "D = 1e+07 lies", "E = 333 lies outside the 1 to 32", "here it meets 3"],
        "tian": ["A = 0.003 lies outside the 0.008 to 1", "G = 0.667 lies outside the 2 to 16", "C = "],
        "abnar": ["S = 0.997 lies outside the 0 to 0.98", "C = "],
        "kumar": ["N = 1e+06 lies outside the 3e+07 to 2.2e+08"],
    }
    assert all(part in said for part in wanted[name]), said


@pytest.mark.parametrize("name", ["kumar:3", "kumar:17", "kumar:eight", "kumar:", "besiroglu:8"])
def test_bits_that_no_law_has(name):
    with pytest.raises(UserError):
        find_law(name)


# Repeated data


def test_four_epochs_are_worth_almost_as_much_as_new_data():
    """Muennighoff et al. 2023: little is lost up to four epochs, and all is lost after some forty."""
    unique = 1e9
    worth = {
        epochs: LAWS["hoffmann"].effective(1e9, epochs * unique, unique)[1] / unique for epochs in (1, 4, 40, 1000)
    }
    assert worth[1] == 1
    assert worth[4] == pytest.approx(1 + 15.387756 * (1 - math.exp(-3 / 15.387756)), rel=1e-12)
    assert 0.92 < worth[4] / 4 < 0.94 and worth[40] / 40 < 0.4
    assert worth[1000] == pytest.approx(1 + 15.387756, rel=1e-9), "no repetition is worth more than R*"


@given(st.floats(1e6, 1e13), st.floats(1e6, 1e13), st.floats(1e6, 1e12), st.sampled_from(sorted(LAWS)))
def test_repetition_never_helps_and_never_hurts(d, unique, n, name):
    law = LAWS[name]
    n_effective, d_effective = law.effective(n, d, unique)
    assert min(d, unique) * (1 - 1e-12) <= d_effective <= d * (1 + 1e-12)
    assert n_effective <= n * (1 + 1e-12)
    if d <= unique and name != "muennighoff":
        assert (n_effective, d_effective) == (n, pytest.approx(d))


def test_only_muennighoff_discounts_parameters_beyond_the_optimum():
    excess = 100 * LAWS["muennighoff"].optimal_parameters(1e9)
    assert LAWS["muennighoff"].effective(excess, 4e9, 1e9)[0] < 0.1 * excess
    assert LAWS["hoffmann"].effective(excess, 4e9, 1e9)[0] == excess
    fitting = LAWS["muennighoff"].optimal_parameters(1e9)
    assert LAWS["muennighoff"].effective(fitting, 4e9, 1e9)[0] == pytest.approx(fitting)


def test_the_range_of_the_fit():
    law = LAWS["hoffmann"]
    assert law.outside_range(1e9, 1e11) == []
    outside = law.outside_range(1e6, 1e8)
    assert len(outside) == 2 and outside[0].startswith("N = 1e+06") and outside[1].startswith("D = 1e+08")


# Law files

GOOD = {"E": 1.7, "A": 400.0, "B": 500.0, "alpha": 0.33, "beta": 0.3, "N": "non_embedding", "source": "a test"}


def law_file(folder, **changes):
    values = {key: value for key, value in (GOOD | changes).items() if value is not None}
    path = folder / "mine.json"
    path.write_text(json.dumps(values))
    return path


def test_a_fitted_law(tmp_path):
    draws = [[1.7, 400.0, 500.0, 0.33, 0.3], [1.8, 390.0, 510.0, 0.34, 0.31]]
    ranges = {"N": [1e6, 1e8], "D": [1e7, 1e9]}
    law = find_law(str(law_file(tmp_path, draws=draws, range=ranges, fit={"points": 20})))
    assert (law.name, law.N, law.n_range, law.d_range) == ("mine", "non_embedding", (1e6, 1e8), (1e7, 1e9))
    assert law.loss(1e7, 1e8) == pytest.approx(1.7 + 400 / 1e7**0.33 + 500 / 1e8**0.3)
    assert law.draws.tolist() == draws
    assert law.drawn(law.draws[1]).loss(1e7, 1e8) == pytest.approx(1.8 + 390 / 1e7**0.34 + 510 / 1e8**0.31)


def test_a_law_without_a_range_says_so(tmp_path):
    assert "not known" in find_law(str(law_file(tmp_path))).outside_range(1e9, 1e9)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": None}, "the law lacks beta"),
        ({"E": None, "N": None}, "the law lacks E, N"),
        ({"A": -3.0}, "A=-3.0 must be a number above 0"),
        ({"A": "400"}, "A='400' must be a number above 0"),
        ({"alpha": True}, "alpha=True must be a number above 0"),
        ({"N": "parameters"}, "N='parameters' is none of: total, non_embedding, non_embedding_with_head"),
        ({"drawz": []}, "unknown key 'drawz' (did you mean 'draws'?)"),
        ({"draws": [[1, 2, 3, 4]]}, "draws must be a list"),
        ({"draws": [[1, 2, 3, 4, 5]]}, "at least two"),
        ({"draws": [[1, 2, 3, 4, 5], [1, 2, 3, 4, -5]]}, "draws must be a list"),
        ({"range": {"N": [5, 1]}}, "the range of N, [5, 1], ends before it begins"),
        ({"range": [1, 2]}, "range must be"),
        ({"standard_errors": {"E": 0.1}}, "standard_errors must have exactly the keys E, A, B, alpha, beta"),
    ],
)
def test_bad_law_files(tmp_path, changes, message):
    path = law_file(tmp_path, **changes)
    with pytest.raises(UserError) as error:
        find_law(str(path))
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"E": NaN}'])
def test_law_files_that_are_no_laws(tmp_path, content):
    path = tmp_path / "law.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"law\.json"):
        find_law(str(path))


LAW_FILE = {"E": 1.7, "A": 400.0, "B": 410.0, "alpha": 0.34, "beta": 0.28, "N": "total", "source": "a test",
            "range": {"N": [1e6, 1e9], "D": [1e8, 1e11]}, "draws": [[1.7, 400, 410, 0.34, 0.28]] * 2,
            "standard_errors": dict.fromkeys(["E", "A", "B", "alpha", "beta"], 0.1), "name": "mine"}  # fmt: skip
NO_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=300)
@given(key=st.sampled_from(sorted(LAW_FILE)), value=NO_VALUE)
@example("N", ["total"])
@example("N", {})
@example("E", 10**400)
@example("source", "two\nlines")
@example("source", "\ud800")
@example("draws", [[10**400] * 5] * 2)
def test_any_value_of_any_key_is_a_law_or_refused(tmp_path_factory, key, value):
    path = tmp_path_factory.mktemp("laws") / "law.json"
    path.write_text(json.dumps(LAW_FILE | {key: value}))
    try:
        law = find_law(str(path))
    except UserError as error:
        assert str(path) in str(error) and str(error).isprintable()
    else:
        assert math.isfinite(law.loss(1e8, 1e9)) and f"{law.name} {law.source}".isprintable()


@pytest.mark.parametrize("name", ["\0.json", "\ud800.json", "a/" * 3000 + ".json", ".json"])
def test_names_that_no_file_has(name):
    with pytest.raises(UserError, match="cannot read it"):
        find_law(name)


def test_unknown_laws():
    with pytest.raises(UserError, match="did you mean 'hoffmann'"):
        find_law("hofmann")
    with pytest.raises(UserError, match="cannot read it"):
        find_law("nowhere.json")


# Learning rate and batch


def test_the_rules_at_round_numbers():
    """Worked with logarithms by hand: (learning rate, batch in tokens) for N = 1e8, D = 1e10, C = 1e20."""
    expected = {
        "step_law": (1.79 * 10 ** (-5.704 + 3.07), 0.58 * 10**5.71),
        "deepseek": (0.3118 * 10**-2.5, 0.2920 * 10**6.542),
        "porian": (3.7 * 10**-2.88, 0.7576 * 10**5.624),
        "olmo_ladder": (0.0047 * (1 / 1.08) ** (-1 / 3), 327_680 * (1 / 1.08) ** (2 / 3)),
    }
    for rule in TRAINING_RULES:
        values = rule.learning_rate(1e8, 1e10, 1e20), rule.batch_tokens(1e8, 1e10, 1e20)
        assert values == pytest.approx(expected[rule.name], rel=1e-9)
    assert {rule.name for rule in TRAINING_RULES} == set(expected)


@pytest.mark.parametrize("tied", [True, False])
def test_what_n_means(tied):
    cost = model_cost(resolve_architecture(MODEL | {"weight_tying": tied}))
    blocks = 2 * (4 * 8 * 8 + 2 * 8 * 16 + 2 * 8) + 8  # no biases: attention, FFN, two norms; the final norm
    assert count_parameters(cost, "non_embedding") == blocks
    assert count_parameters(cost, "non_embedding_with_head") == blocks + 8 * 100
    assert count_parameters(cost, "total") == blocks + (1 if tied else 2) * 8 * 100 + 10 * 8  # and positions


def test_rules_get_the_n_and_c_they_mean():
    """DeepSeek's C leaves the head out: 3 forward passes of the blocks' products and scores."""
    cost = model_cost(resolve_architecture(MODEL))
    forward = 2 * (2 * (4 * 8 * 8 + 2 * 8 * 16) + 4 * 10 * 8)
    values = {value.name: value for value in training_rules(cost, 1e6)}
    assert values["deepseek"].learning_rate == pytest.approx(0.3118 * (3 * forward * 1e6) ** -0.125)
    n = count_parameters(cost, "non_embedding")
    assert values["olmo_ladder"].learning_rate == pytest.approx(0.0047 * (n / 108e6) ** (-1 / 3))
    assert values["porian"].batch_tokens == pytest.approx(0.7576 * (n + 800) ** 0.703)
