"""The log's values reach wandb and TensorBoard unchanged."""

import json
import sys
import types

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


@pytest.mark.slow
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


class FakeWandb(types.ModuleType):
    """What of wandb a run uses, with what it was told. `fails`: what logging raises."""

    def __init__(self, fails: Exception | None = None):
        super().__init__("wandb")
        self.inits: list[dict] = []
        self.logged: dict[str, list[int]] = {}  # the steps by the run's id
        self.fails = fails

    def init(self, **told):
        self.inits.append(told)
        name = told.get("id") or f"id{len(self.inits)}"
        steps = self.logged.setdefault(name, [])

        def log(values, step):
            if self.fails is not None:
                raise self.fails
            steps.append(step)

        return types.SimpleNamespace(id=name, log=log, finish=lambda: None)


def test_a_resumed_run_continues_its_wandb_run(train, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    keys = ["--wandb_log=True", "--eval_interval=100"]
    assert train(*keys, "--max_iters=4").returncode == 0
    for steps in (6, 8):
        assert train(*keys, f"--max_iters={steps}", "--init_from=auto").returncode == 0
    assert [told["id"] for told in wandb.inits] == [None, "id1", "id1"]
    assert all(told["resume"] == "allow" for told in wandb.inits)
    assert sorted(set(wandb.logged["id1"])) == list(range(9)) and list(wandb.logged) == ["id1"]
    assert train(*keys, "--out_dir=other").returncode == 0
    assert wandb.inits[-1]["id"] is None, "another run is another"


def test_an_evaluation_of_a_run_is_no_wandb_run(train, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", wandb := FakeWandb())
    assert train("--max_iters=1", "--warmup_iters=0").returncode == 0
    assert train("--wandb_log=True", "--eval_only=True", "--init_from=auto").returncode == 0
    assert wandb.inits == []


def test_a_sink_that_fails_is_given_up_and_the_run_goes_on(train, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(OSError("the network\nis gone")))
    done = train("--wandb_log=True")
    assert done.returncode == 0
    assert done.stdout.count("warning: wandb gets nothing more of this run: the network is gone") == 1
    assert len(iters(tmp_path / "run")) == 12


def test_a_sink_that_does_not_start_is_one_line_and_leaves_no_run(train, tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(wandb, "init", lambda **told: 1 / 0)
    done = train("--wandb_log=True")
    assert (
        done.returncode == 2 and done.stderr.startswith("error: wandb does not start") and done.stderr.count("\n") == 1
    )
    assert not list((tmp_path / "run").glob("[!.]*"))
