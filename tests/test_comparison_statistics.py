"""Groups of runs, and intervals of their differences, against scipy and against simulated truth."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from common.errors import UserError
from comparison.looks import COLORS, DASHES, looks
from comparison.statistics import (
    common_place,
    compare_groups,
    groups,
    loss_at,
    paired_interval,
    t_quantile,
    welch_interval,
)
from runs.logs import RunLog

VAL = {"checksum": "1", "tokens": 1000, "bytes": 4000}


def made(losses, seed=1, name="run", flops=1000, val=VAL, vocab_size=256, **config) -> RunLog:
    """A run of 10 tokens and half a second a step, evaluated every 10 steps."""
    run = {
        "type": "run",
        "architecture": config.get("arch_preset"),
        "config": {"seed": seed, "out_dir": f"out/{name}-{seed}", **config},
        "dataset": {"name": "d", "vocab_size": vocab_size, "splits": {"val": val}},
    }
    evals = [
        {
            "type": "eval",
            "step": step,
            "tokens": 10 * step,
            "flops": {"full": 10 * flops * step},
            "train_seconds": step / 2,
            "val_loss": loss,
        }
        for step, loss in zip(range(0, 10 * len(losses), 10), losses, strict=True)
    ]
    return RunLog(Path(f"out/{name}-{seed}/log.jsonl"), run=run, evals=evals)


def seeds_of(preset, last_losses, **keys):
    return [made([5.0, loss], seed=seed, arch_preset=preset, **keys) for seed, loss in enumerate(last_losses)]


# ---------------------------------------------------------------------------------------------------------------------
# Groups


def test_runs_that_differ_by_seed_and_name_alone_are_a_group():
    runs = [
        made([1.0], seed=1, arch_preset="gpt2"),
        made([1.0], seed=1, arch_preset="llama"),
        made([1.0], seed=2, arch_preset="gpt2", name="other", predicted_loss=3.0),
    ]
    found = groups(runs)
    assert [(group.name, group.runs) for group in found] == [("gpt2", [runs[0], runs[2]]), ("llama", [runs[1]])]


@pytest.mark.parametrize(
    "other",
    [
        made([1.0], arch_preset="gpt2", learning_rate=2),
        made([1.0], arch_preset="gpt2", learning_rate=1, val={"checksum": "2"}),
        made([1.0], arch_preset="gpt2", learning_rate=1, vocab_size=300),
    ],
)
def test_every_other_difference_is_another_group(other):
    assert len(groups([made([1.0], seed=2, arch_preset="gpt2", learning_rate=1), other])) == 2


def test_a_step_that_is_divided_otherwise_is_the_same_step():
    def divided(steps, size, batches):
        return made([1.0], seed=size, gradient_accumulation_steps=steps, batch_size=size, eval_iters=batches)

    assert len(groups([divided(1, 16, 8), divided(2, 8, 16), divided(4, 4, 32)])) == 1
    assert len(groups([divided(1, 16, 8), divided(1, 8, 16), divided(2, 8, 8)])) == 3


def test_groups_of_one_architecture_are_named_by_the_keys_that_differ():
    runs = [made([1.0], arch_preset="gpt2", learning_rate=rate, warmup=3) for rate in (1, 2)]
    assert [group.name for group in groups(runs)] == ["learning_rate=1", "learning_rate=2"]
    runs.append(made([1.0], arch_preset="llama", learning_rate=1, warmup=3))
    assert groups(runs)[2].name == "llama, arch_preset=llama, learning_rate=1"


def test_runs_that_do_not_say_what_they_are_are_never_a_group():
    silent = [RunLog(Path(f"{name}/log.jsonl")) for name in "ab"]
    assert [len(group.runs) for group in groups(silent)] == [1, 1]


# ---------------------------------------------------------------------------------------------------------------------
# Where runs are compared


def test_the_place_is_the_latest_that_all_reached_and_losses_between_evaluations_lie_on_a_line():
    long, short = made([5.0, 4.0, 3.0, 2.0]), made([5.0, 4.5, None], flops=1500)
    assert common_place([long, short], "steps") == 10
    assert common_place([long, short], "flops") == 10 * 1500 * 10  # step 15 of the first
    assert loss_at(long, "flops", 150_000) == pytest.approx(4.0 - np.log(1.5) / np.log(2))
    assert loss_at(long, "time", 6.0) == pytest.approx(4.0 - np.log(1.2) / np.log(2)), "at step 12"


def test_no_common_place_is_refused():
    early, late = made([5.0, 4.0]), made([None, None, 4.0])
    with pytest.raises(UserError, match="was first evaluated after"):
        common_place([early, late], "steps")
    with pytest.raises(UserError, match="no finite validation loss after its first step"):
        common_place([early, made([5.0])], "steps")  # nothing was trained there: every loss is that of chance
    with pytest.raises(UserError, match="no finite validation loss"):
        common_place([early, made([None])], "steps")


def test_each_convention_compares_at_its_own_place():
    a, b = groups([made([5.0, 4.0, 3.0], arch_preset="a"), made([5.0, 4.0, 3.0], arch_preset="b", flops=2000)])
    equal = compare_groups(b, a, "tokens")
    assert equal.difference == 0 and equal.place == 200
    costlier = compare_groups(b, a, "flops")
    assert costlier.place == 200_000 and costlier.difference == pytest.approx(4.0 - 3.0)
    assert "at equal FLOPs (2e+05, before the end of b): " in costlier.text


def test_a_run_that_is_not_at_its_planned_end_is_named_though_nothing_of_it_comes_later():
    young, done = made([5.0, 4.0], arch_preset="a"), made([5.0, 4.0], arch_preset="b")
    young.run["steps"], done.run["steps"] = 1000, 10
    assert "(10, before the end of a): " in compare_groups(*groups([young, done]), "steps").text


# ---------------------------------------------------------------------------------------------------------------------
# Sentences


def test_a_clear_difference_is_told_with_its_interval():
    first, second = groups(seeds_of("gpt2", (3.0, 3.1, 3.2)) + seeds_of("llama3", (2.9, 3.01, 3.1)))
    found = compare_groups(second, first, "flops")
    test = stats.ttest_rel([2.9, 3.01, 3.1], [3.0, 3.1, 3.2]).confidence_interval(0.95)
    assert found.paired and found.seeds == (3, 3) and found.interval == pytest.approx((test.low, test.high))
    assert found.difference == pytest.approx(-0.29 / 3)
    low, high = f"{-test.high:.3g}", f"{-test.low:.3g}"
    assert found.text == (
        f"llama3 is 0.0967 nats below gpt2 at equal FLOPs (1e+05): 95 % interval {low} to {high}, 3 seeds each"
    )
    back = compare_groups(first, second, "flops")
    assert back.difference == -found.difference and "gpt2 is 0.0967 nats above llama3" in back.text


def test_noise_is_called_so():
    first, second = groups(seeds_of("a", (3.0, 3.3, 3.6)) + seeds_of("b", (3.5, 3.01, 3.3, 3.1)))
    found = compare_groups(second, first, "steps")
    test = stats.ttest_ind([3.5, 3.01, 3.3, 3.1], [3.0, 3.3, 3.6], equal_var=False).confidence_interval(0.95)
    assert not found.paired and found.interval == pytest.approx((test.low, test.high))
    assert "is smaller than the seeds' noise" in found.text and found.text.endswith("4 and 3 seeds")


def test_one_seed_has_no_interval_and_one_seed_twice_is_one_sample():
    first, second = groups([*seeds_of("a", (3.0, 3.1)), *seeds_of("b", (2.5,)), *seeds_of("b", (2.7,))])
    found = compare_groups(second, first, "steps")
    assert found.interval is None and found.seeds == (1, 2) and found.difference == pytest.approx(2.6 - 3.05)
    assert found.text.endswith("no interval, seeds were not repeated in b")


def test_other_tokenizers_compare_in_bits_per_byte_of_the_same_text_or_not_at_all():
    other = {"checksum": "2", "tokens": 2000, "bytes": 4000}
    first, second = groups(
        [made([6.0, 3.0], arch_preset="a"), made([3.0, 1.6], arch_preset="b", val=other, vocab_size=99)]
    )
    found = compare_groups(second, first, "steps")
    assert found.unit == "bits per byte"
    assert found.difference == pytest.approx((1.6 * 2000 - 3.0 * 1000) / 4000 / np.log(2))
    unlike = (({**other, "bytes": 4001}, "4,001 and 4,000 bytes"), ({"checksum": "2"}, "does not say how many"))
    for val, reason in unlike:
        first, second = groups(
            [made([6.0, 3.0], arch_preset="a"), made([3.0, 1.6], arch_preset="b", val=val, vocab_size=99)]
        )
        with pytest.raises(UserError, match=f"no common metric: .*{reason}"):
            compare_groups(second, first, "steps")


def test_another_machine_is_told_where_time_is_compared():
    runs = [made([3.0, 2.0], arch_preset=preset) for preset in "ab"]
    runs[1].run["hardware"] = {"device_name": "another"}
    first, second = groups(runs)
    assert "on different machines" in compare_groups(second, first, "time").text
    assert "machines" not in compare_groups(second, first, "tokens").text


@given(st.lists(st.floats(1, 10), min_size=1, max_size=4), st.lists(st.floats(1, 10), min_size=1, max_size=4))
def test_a_sentence_never_says_better_where_the_interval_holds_zero(a, b):
    second, first = groups(seeds_of("b", b) + seeds_of("a", a))
    found = compare_groups(first, second, "tokens")
    assert found.difference == pytest.approx(np.mean(a) - np.mean(b), abs=1e-12)
    if found.interval is not None:
        low, high = found.interval
        assert low <= found.difference + 1e-9 and found.difference <= high + 1e-9
        assert ("noise" in found.text) == (low <= 0 <= high)
    else:
        assert "no interval" in found.text and 1 in found.seeds
    assert not re.search(r"nan|inf\b", found.text)


# ---------------------------------------------------------------------------------------------------------------------
# Intervals


@given(st.floats(1, 1e6))
def test_the_quantile_is_scipys(freedom):
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-7)


SAMPLES = st.lists(st.floats(-100, 100), min_size=2, max_size=8).filter(lambda values: np.std(values) > 1e-3)


@given(SAMPLES, SAMPLES)
def test_the_intervals_are_scipys(a, b):
    test = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert welch_interval(a, b) == pytest.approx((test.low, test.high), rel=1e-6, abs=1e-6)
    test = stats.ttest_1samp(a, 0).confidence_interval(0.95)
    assert paired_interval(a) == pytest.approx((test.low, test.high), rel=1e-6, abs=1e-6)


def test_equal_losses_leave_no_room():
    assert welch_interval([2.0, 2.0], [1.0, 1.0]) == (1.0, 1.0) == paired_interval([1.0, 1.0])


def test_the_intervals_hold_the_truth_nineteen_times_in_twenty():
    """3 and 4 seeds of unequal noise; and 3 pairs. A thousand each: 95 % within three standard errors."""
    rng, welch, paired = np.random.default_rng(0), 0, 0
    for _ in range(1000):
        low, high = welch_interval(rng.normal(1, 0.1, 3), rng.normal(0, 0.2, 4))
        welch += low <= 1 <= high
        low, high = paired_interval(rng.normal(1, 0.1, 3))
        paired += low <= 1 <= high
    assert 929 <= paired <= 971 and 929 <= welch <= 985  # Welch errs to the safe side with so few


# ---------------------------------------------------------------------------------------------------------------------
# How they are drawn


STYLE = (ROOT / "comparison/page.css").read_text()
# What is left of linear red, green and blue to readers without red cones, and without green ones (Machado et al. 2009).
SEEN = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}


def linear(color):
    parts = np.array([int(color[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(*colors):
    """The contrast ratio that WCAG defines."""
    dark, light = sorted(linear(color) @ [0.2126, 0.7152, 0.0722] for color in colors)
    return (light + 0.05) / (dark + 0.05)


def in_lab(light):
    """CIELAB: a distance of 2 can just be seen."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ np.clip(light, 0, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_the_contrast_is_that_of_the_definition():
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#ffffff") == pytest.approx(
        4.48, abs=0.01
    )


def test_every_colour_stands_out_on_a_light_and_on_a_dark_page():
    grounds, texts = (re.findall(rf"--{name}: (#[0-9a-f]{{6}})", STYLE)[:2] for name in ("ground", "text"))
    assert grounds == ["#ffffff", "#16181b"]  # as the style has them: light, then dark
    for ground, text in zip(grounds, texts, strict=True):
        for color in COLORS:
            assert contrast(text if color == "#000000" else color, ground) >= 3, (color, ground)


@pytest.mark.parametrize("eyes", SEEN)
def test_every_colour_can_be_told_from_the_others(eyes):
    seen = [in_lab(np.array(SEEN[eyes]) @ linear(color)) for color in COLORS if color != "#000000"]
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(distances) > 17  # the least of Okabe and Ito's


def test_seeds_share_their_colour_and_no_two_runs_look_alike():
    runs = [made([1.0], seed=seed, arch_preset=arch) for seed in (1, 2, 3) for arch in ("gpt2", "llama", "mamba2")]
    colors = [color for color, _ in looks(runs)]
    assert len(set(colors)) == 3 and colors[:3] == colors[3:6] == colors[6:]
    assert len(set(looks(runs))) == 9
    assert {dashes for color, dashes in looks(runs) if color == colors[0]} == {0, 1, 2}


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_no_two_of_56_runs_look_alike_however_they_are_grouped(sizes):
    runs = [made([1.0], seed=seed, dropout=number) for number, size in enumerate(sizes) for seed in range(size)]
    found = looks(runs[: len(COLORS) * DASHES])
    assert len(set(found)) == len(found)
    assert all(color in COLORS and 0 <= dashes < DASHES for color, dashes in found)
