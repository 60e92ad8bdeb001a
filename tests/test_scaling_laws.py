"""Loss laws, repeated data, law files, and the rules for learning rate and batch, against figures made elsewhere."""

import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from flops_parameter_counting.costs.model_cost import model_cost
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


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("budget", [1e17, 1e21, 1e25])
def test_the_optimum_in_closed_form_is_the_one_a_fine_grid_finds(name, budget):
    law = LAWS[name]
    n = np.geomspace(1e5, 1e14, 200_001)
    best = n[law.loss(n, budget / 6 / n).argmin()]
    assert law.optimal_parameters(budget / 6 / best) == pytest.approx(best, rel=1e-3)


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
