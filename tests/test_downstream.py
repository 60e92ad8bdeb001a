"""From loss to benchmark: a planted sigmoid is found within its intervals, signal to noise is its closed form, and what
compare_architectures.py says of runs with benchmarks."""

import json
import math

import numpy as np
import pytest
from commands import command
from conftest import training

import compare_architectures
from common.errors import UserError
from comparison.downstream import APART, fit, signal_to_noise

CHANCE, MIDDLE, WIDTH = 0.25, 1.6, 0.2


def planted(losses):
    return CHANCE + (1 - CHANCE) / (1 + np.exp((np.asarray(losses) - MIDDLE) / WIDTH))


def test_a_sigmoid_without_noise_is_found():
    """And what scipy finds of one with noise."""
    optimize = pytest.importorskip("scipy.optimize")
    losses, errors = np.linspace(1.2, 2.4, 8), np.full(8, 0.02)
    found = fit(losses, planted(losses), errors, CHANCE)
    assert (found.middle, found.width) == (pytest.approx(MIDDLE, abs=1e-4), pytest.approx(WIDTH, abs=1e-4))
    assert found.score(1.6) == pytest.approx((1 + CHANCE) / 2, abs=1e-4)
    drawn = np.random.default_rng(0)
    for _ in range(5):
        errors = drawn.uniform(0.01, 0.05, 8)
        values = planted(losses) + errors * drawn.normal(size=8)
        found = fit(losses, values, errors, CHANCE)

        def sigmoid(loss, middle, width):
            return CHANCE + (1 - CHANCE) / (1 + np.exp((loss - middle) / width))

        best, covariance = optimize.curve_fit(sigmoid, losses, values, (1.7, 0.3), errors, absolute_sigma=True)
        assert (found.middle, found.width) == pytest.approx(tuple(best), rel=1e-4)
        scatter = max(1.0, found.chi_squared / 6)
        assert found.errors == pytest.approx(tuple(np.sqrt(np.diag(covariance) * scatter)), rel=1e-3)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Over 100 ladders of twelve runs: standard errors 95 times in 100, resamples of so few runs a little less."""
    drawn, losses = np.random.default_rng(1), np.linspace(1.2, 2.4, 12)
    errors, held = np.full(12, 0.03), np.zeros(4)
    for number in range(100):
        values = planted(losses) + errors * drawn.normal(size=12)
        found = fit(losses, values, errors, CHANCE, draws=200, seed=number)
        low, high = found.interval(1.5)
        middles = np.quantile(found.draws[:, 0], (0.025, 0.975))
        held += (
            abs(found.middle - MIDDLE) < 1.96 * found.errors[0],
            abs(found.width - WIDTH) < 1.96 * found.errors[1],
            low <= planted(1.5) <= high,
            middles[0] <= MIDDLE <= middles[1],
        )
    assert (held[:2] > 89).all() and (held[2:] > 82).all() and (held < 100).all(), held


def test_what_cannot_be_fitted():
    losses, errors = np.linspace(1.2, 2.4, 6), np.full(6, 0.03)
    with pytest.raises(UserError, match="does not depend on the loss"):
        fit(losses, CHANCE + errors * [1, -1, 1, -1, 1, -1], errors, CHANCE)
    with pytest.raises(UserError, match="3 losses are too few"):
        fit(np.repeat(losses[:3], 2), planted(np.repeat(losses[:3], 2)), errors, CHANCE)
    chance = np.random.default_rng(2)
    refused = 0
    for _ in range(20):  # of scores without any signal nineteen in twenty are refused
        try:
            fit(losses, CHANCE + errors * chance.normal(size=6), errors, CHANCE, draws=10)
        except UserError:
            refused += 1
    assert refused > 15


def test_signal_to_noise_is_its_closed_form():
    """Three runs around 0.4, 0.5 and 0.6, each in turn 0.01 above and below."""
    runs = [[centre + 0.01, centre - 0.01, centre + 0.01, centre - 0.01] for centre in (0.4, 0.5, 0.6)]
    found = signal_to_noise(runs)
    deviation = 0.01 * math.sqrt(4 / 3)
    assert found.signal == pytest.approx(0.2 / 0.5) and found.noise == pytest.approx(deviation / 0.5)
    assert found.ratio == pytest.approx(0.2 / deviation) and found.smallest == pytest.approx(APART * deviation)
    assert "decides between runs that differ by 0.032 or more" in found.text
    assert signal_to_noise([[0.0, *run] for run in [[*own, own[0]] for own in runs]]).runs == 3  # the last five
    near = signal_to_noise([[0.50, 0.52, 0.51], [0.51, 0.53, 0.52]])
    assert near.ratio == pytest.approx(1.0) and "decides nothing here" in near.text
    assert signal_to_noise([[0.4, 0.42, 0.41], [0.6]]).checkpoints == 3
    refused = {"two runs": [[0.5] * 3], "no noise is known": [[0.5], [0.6]], "all scores are 0": [[0.0] * 3] * 2}
    for reason, runs in refused.items():
        with pytest.raises(UserError, match=reason):
            signal_to_noise(runs)


def test_two_runs_apart_by_less_look_different_once_in_twenty():
    """What `smallest` means."""
    drawn = np.random.default_rng(3)
    differences = drawn.normal(0, 0.01, (2, 10000))
    assert np.mean(abs(differences[0] - differences[1]) < APART * 0.01) == pytest.approx(0.95, abs=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def write_run(folder, loss, scores, checksum="crc32:1"):
    """A run's log, whose loss falls to `loss` nats a byte in bits; with scores after steps 10, 20 and so on."""
    folder.mkdir(parents=True)
    split = {"tokens": 1000, "bytes": 1000, "checksum": checksum}
    records = [{"type": "run", "time": 0, "name": folder.name, "config": {"seed": 1, "width": folder.name},
                "dataset": {"name": "made", "vocab_size": 256, "splits": {"train": split, "val": split}}}]  # fmt: skip
    for number, score in enumerate(scores, 1):
        place = {"time": number, "step": 10 * number, "tokens": 100 * number}
        bits = loss + 0.1 * (len(scores) - number)
        records.append({"type": "eval", **place, "val_loss": bits * math.log(2), "val_bits_per_byte": bits})
        found = {"value": score, "error": 0.02, "chance": 0.25, "samples": 400, "higher_is_better": True}
        other = {"value": 3.0 - score, "error": 0.1, "chance": None, "samples": 9, "higher_is_better": False}
        records.append({"type": "benchmarks", **place, "tasks": {"choice": {"acc": found}, "text": {"loss": other}}})
    records.append({"type": "summary", "time": 99, "step": 10 * len(scores), "reason": "finished"})
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture
def ladder(tmp_path):
    drawn = np.random.default_rng(4)
    return [
        write_run(tmp_path / f"run{n}", loss, [planted(loss) + 0.01 * drawn.normal() for _ in range(4)])
        for n, loss in enumerate(np.linspace(1.3, 2.2, 6))
    ]


def test_what_is_said_of_a_ladder(ladder, tmp_path):
    done = command(
        compare_architectures.main, *ladder, "--benchmarks", f"--json={tmp_path / 'x.json'}",
        f"--report={tmp_path / 'x.html'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "x.json").read_text())
    fitted = found["from_loss_to_benchmark"]["choice acc"]
    assert fitted["fit"]["middle"] == pytest.approx(MIDDLE, abs=3 * fitted["fit"]["middle_error"])
    assert f"exp((bits per byte - {fitted['fit']['middle']:.4g} ±" in done.stdout.replace("\n", " ").replace("  ", " ")
    assert fitted["signal_to_noise"]["ratio"] > 20 and "decides between runs" in done.stdout.replace("\n", " ")
    assert found["from_loss_to_benchmark"]["text loss"]["fit"] is None and "a sigmoid is of shares" in done.stdout
    last = found["runs"][0]["benchmarks"]["choice acc"][-1]
    assert (last["step"], last["tokens"], last["bits_per_byte"]) == (40, 400, pytest.approx(1.3))
    line = next(line for line in done.stdout.splitlines() if line.startswith("run0") and "±" in line)
    assert f"{last['value']:.4g} ± 0.02" in line
    page = (tmp_path / "x.html").read_text()
    assert "<h2>Benchmarks</h2>" in page and f"{last['value']:.4g} ± 0.02" in page and "run0: choice acc" in page


def test_what_is_refused(ladder, tmp_path):
    for arguments, reason in (
        ([*ladder, "--benchmarks=choyce"], "no run was asked 'choyce' (did you mean 'choice'?)"),
        ([write_run(tmp_path / "bare", 1.3, []), "--benchmarks"], "no run has any"),
        ([ladder[0], write_run(tmp_path / "other", 1.3, [0.5], "crc32:2"), "--benchmarks"], ""),
    ):
        done = command(compare_architectures.main, *arguments)
        if reason:
            assert done.returncode == 2 and reason in done.stderr
    one = command(compare_architectures.main, ladder[0], "--benchmarks=choice")
    assert one.returncode == 0 and "1 losses are too few" in one.stdout and "needs two runs" in one.stdout
    (ladder[0] / "evaluations.json").write_text("[]")
    done = command(compare_architectures.main, *ladder)
    assert done.returncode == 2 and "evaluations.json" in done.stderr


def test_of_a_real_run_and_its_checkpoints(data_dir, tmp_path):
    """Logged while it was trained; or found of its checkpoints, which says the same."""
    import evaluate

    keys = ["--keep_last=9", "--eval_benchmarks=choice", "--eval_benchmarks_limit=20"]
    assert training(data_dir, tmp_path / "logged", *keys).returncode == 0
    assert training(data_dir, tmp_path / "later", "--keep_last=9").returncode == 0
    done = command(evaluate.main, tmp_path / "later", "--device=cpu", "--all_checkpoints", "--limit=20")
    assert done.returncode == 0, done.stderr
    done = command(compare_architectures.main, tmp_path / "logged", tmp_path / "later", f"--json={tmp_path / 'x.json'}")
    assert done.returncode == 0, done.stderr
    logged, later = (run["benchmarks"] for run in json.loads((tmp_path / "x.json").read_text())["runs"])
    assert [one["step"] for one in logged["choice right passage"]] == [0, 4, 8, 12]
    assert logged["choice right passage"][1:] == later["choice right passage"]
    assert "text bits per byte" in later and "text bits per byte" not in logged
