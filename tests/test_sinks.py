"""The log's values reach wandb and TensorBoard unchanged."""

import json

import pytest


def iters(run) -> list[dict]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["type"] == "iter"]


def test_tensorboard_has_the_values_of_the_log(train, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = train("--tensorboard_log=True", "--gradient_stats_interval=4")
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    logged = iters(tmp_path / "run")
    for name in ("loss", "grad_norm", "learning_rate", "tokens_per_second"):
        written = {event.step: event.value for event in events.Scalars(f"train/{name}")}
        expected = {record["step"]: record[name] for record in logged if record[name] is not None}
        assert written == pytest.approx(expected, rel=1e-6)  # TensorBoard stores float32
    assert [event.step for event in events.Scalars("val/val_loss")] == [0, 4, 8, 12]
    assert [event.step for event in events.Scalars("train/gradients.blocks.0.norm")] == [4, 8, 12]
    assert "train/mfu.causal" in events.Tags()["scalars"]


def test_wandb_offline_has_the_values_of_the_log(train, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    done = train("--wandb_log=True", "--wandb_run_name=mine")
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    content = file.read_bytes()  # protocol buffers with the values as JSON text in them
    for record in iters(tmp_path / "run"):
        for name in ("loss", "grad_norm", "learning_rate"):
            assert json.dumps(record[name]).encode() in content, (name, record)
