"""Run lengths and learning rates against their formulas."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs.config import RunConfig
from training.schedule import jump_note, learning_rate, run_length, schedule_notes


def run(**keys) -> RunConfig:
    return RunConfig(**{"learning_rate": 1.0, "min_lr": 0.1, "warmup_iters": 10, "max_iters": 110} | keys)


def test_warm_up_rises_in_equal_steps_and_never_starts_at_zero():
    rates = [learning_rate(run(), step, 110) for step in range(11)]
    assert rates[0] == pytest.approx(1 / 11) and rates[10] == 1.0
    assert [b - a for a, b in itertools.pairwise(rates)] == pytest.approx([1 / 11] * 10)


@pytest.mark.parametrize(
    ("keys", "rates"),
    # after the warm-up of 10: at a quarter, the half and the end of the remaining 100 steps
    [
        ({"lr_schedule": "cosine"}, {35: 0.1 + 0.45 * (1 + math.cos(math.pi / 4)), 60: 0.55, 110: 0.1}),
        ({"lr_schedule": "linear"}, {35: 0.775, 60: 0.55, 110: 0.1}),
        ({"lr_schedule": "wsd"}, {35: 1.0, 88: 1.0, 99: 0.55, 110: 0.1}),
        ({"lr_schedule": "wsd", "wsd_decay_fraction": 0.5}, {55: 1.0, 110: 0.1}),
        ({"lr_schedule": "constant"}, {35: 1.0, 60: 1.0, 110: 1.0}),
        ({"lr_schedule": "cosine", "lr_decay_iters": 60}, {35: 0.55, 60: 0.1, 110: 0.1}),
        ({"decay_lr": False}, {0: 1.0, 5: 1.0, 110: 1.0}),
    ],
)
def test_each_schedule_passes_through_its_closed_form(keys, rates):
    for step, rate in rates.items():
        assert learning_rate(run(**keys), step, 110) == pytest.approx(rate)


@given(
    schedule=st.sampled_from(["cosine", "linear", "wsd", "constant"]),
    warmup=st.integers(0, 50),
    length=st.integers(1, 200),
    fraction=st.floats(0.01, 1),
)
def test_rates_stay_between_their_bounds_and_fall_after_the_warm_up(schedule, warmup, length, fraction):
    config = run(lr_schedule=schedule, warmup_iters=warmup, wsd_decay_fraction=fraction)
    rates = [learning_rate(config, step, length) for step in range(length)]
    assert all(0 < rate <= 1.0 for rate in rates)
    after = rates[warmup:]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(after))
    assert all(rate >= 0.1 - 1e-12 for rate in after)


@given(st.integers(1, 10**6), st.integers(1, 10**12), st.integers(1, 10**9), st.integers(1, 10**9))
def test_a_run_is_the_shortest_that_reaches_a_limit(iters, tokens, tokens_per_step, flops_per_token):
    config = run(max_iters=iters, max_tokens=tokens, max_flops=None)
    steps = run_length(config, tokens_per_step, flops_per_token)
    assert steps == iters or steps * tokens_per_step >= tokens > (steps - 1) * tokens_per_step
    assert steps <= iters


# ---------------------------------------------------------------------------------------------------------------------
# What is said of a schedule


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, None),
        ({"lr_decay_iters": 110}, None),
        ({"lr_decay_iters": 60}, None),
        ({"lr_decay_iters": 210}, "it decays until step 210 (lr_decay_iters), and the run ends after 110, at 5.57e-01"),
        ({"lr_decay_iters": 210, "decay_lr": False}, None),
        ({"lr_decay_iters": 210, "lr_schedule": "constant"}, None),
        ({"lr_schedule": "wsd"}, None),
        ({"lr_schedule": "wsd", "warmup_iters": 88}, None),
        ({"lr_schedule": "wsd", "warmup_iters": 89}, "not over at step 88, where wsd would begin to decay"),
    ],
)
def test_a_schedule_that_may_not_be_meant_is_said(keys, said):
    notes = schedule_notes(run(**keys), 110)
    assert len(notes) == (said is not None) and (said or "") in "".join(notes)


@given(st.integers(11, 105), st.sampled_from(["cosine", "linear", "wsd", "constant"]), st.integers(60, 400))
def test_a_rate_that_jumps_is_said_with_both_rates(step, schedule, length):
    before, now = run(lr_schedule=schedule), run(lr_schedule=schedule, max_iters=length)
    due, rate = (learning_rate(of, step, steps) for of, steps in ((before, 110), (now, length)))
    note = jump_note(before, now, step, (110, length))
    assert (note is not None) == (step < length and abs(rate - due) > 0.1 * max(rate, due))
    if note is not None:
        last = learning_rate(before, step - 1, 110)
        assert f"jumps from {last:.2e} to {rate:.2e}" in note and f"now one of {length:,}" in note
