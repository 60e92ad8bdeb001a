"""What a run does, seen from outside: its end, its batch, its faults, its log."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from checkpoints import weights
from conftest import ROOT, environment
from ranks import on_ranks
from torch.nn.parallel import DistributedDataParallel

from configurator import load
from data.dataset import open_dataset
from data.loader import Batch, WindowLoader
from model_builder import build_model
from parallel.compute import Compute
from parallel.device import Peak, measure_matmul
from parallel.ranks import ALONE
from runs.checkpoint import Training
from runs.folder import Progress
from training.optimizer import build_optimizer
from training.plan import plan_run
from training.step import take_step
from training.trainer import decide_compile
from training.validation import Means, evaluate

CPU = torch.device("cpu")


def records(run: Path, kind: str) -> list[dict]:
    every = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record for record in every if record["type"] == kind]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_no_less_than_what_products_of_a_layer_reach(dtype):
    """Forward and backward multiply by a matrix and by its transpose, for which a processor may have other kernels, and
    small products may be faster than large ones. The clock of a shared machine drifts, hence the factor."""
    peak, best = measure_matmul(torch.device("cpu"), dtype), 0.0
    for size in (128, 384):
        x, weight = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        for product in (lambda x=x, w=weight: x @ w, lambda x=x, w=weight: torch.nn.functional.linear(x, w)):
            product()
            start = time.perf_counter()
            product()
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    assert peak > 0.6 * best


def test_the_model_learns(train, tmp_path):
    done = train("--max_iters=100", "--eval_interval=50", "--log_interval=10")
    assert done.returncode == 0, done.stderr
    first, *_, last = [record["val_loss"] for record in records(tmp_path / "run", "eval")]
    assert first == pytest.approx(math.log(256), rel=0.1) and last < 2.3


@pytest.mark.slow
@pytest.mark.parametrize("keys", [["--dtype=bfloat16"], ["--dtype=float16"], ["--compile=True"]], ids=str)
def test_every_precision_and_compiled_blocks_train_alike(train, tmp_path, keys):
    """On this small model the loss curves of 30 steps stay within 2 % of the float32 one; the weights stay float32."""
    assert train("--max_iters=30", "--out_dir=plain").returncode == 0
    done = train("--max_iters=30", *keys)
    assert done.returncode == 0, done.stderr
    plain, other = ([r["loss"] for r in records(tmp_path / name, "iter")] for name in ("plain", "run"))
    (run,) = records(tmp_path / "run", "run")
    assert run["compile"] if "compile" in keys[0] else f"--dtype={run['dtype']}" == keys[0], "the key reached the run"
    assert other == pytest.approx(plain, rel=1e-4 if "compile" in keys[0] else 0.02)
    saved = weights(tmp_path / "run/checkpoints/step_00000030")
    assert {value.dtype for value in saved.values()} == {torch.float32}


def test_the_batch_is_what_counts_not_how_it_is_cut(train, tmp_path):
    cuts = {"one": (1, 8), "two": (2, 4), "eight": (8, 1)}
    for name, (accumulation, batch) in cuts.items():
        keys = [f"--gradient_accumulation_steps={accumulation}", f"--batch_size={batch}", f"--out_dir={name}"]
        assert train(*keys, "--eval_interval=100").returncode == 0
    one, two, eight = ([r["loss"] for r in records(tmp_path / name, "iter")] for name in cuts)
    assert two == pytest.approx(one, rel=1e-4) and eight == pytest.approx(one, rel=1e-4)


def test_compile_auto_goes_by_the_length_of_the_run():
    device, peak = torch.device("cpu"), Peak(1e12, "measured")
    for steps, expected in ((1, False), (10_000_000, True)):
        configuration = load(f"--n_layer=2 --n_head=2 --n_embd=128 --vocab_size=256 --max_iters={steps}".split())
        plan = plan_run(configuration, None)
        compiles, why = decide_compile(configuration.run, plan, ALONE, device, peak)
        assert compiles == (expected and shutil.which("g++") is not None) and why.startswith("auto: ")
    as_told = dataclasses.replace(configuration.run, compile=False)
    assert decide_compile(as_told, plan, ALONE, device, peak) == (False, "as configured")


def test_the_config_that_a_run_leaves_reproduces_it(train, tmp_path):
    assert train("--arch_preset=llama3", "--num_key_value_heads=1", "--seed=5", "--dropout=0.1").returncode == 0
    command = [sys.executable, str(ROOT / "train.py"), "run/config.py", "--out_dir=again"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, again = ([r["loss"] for r in records(tmp_path / name, "iter")] for name in ("run", "again"))
    assert again == first
    saved = json.loads((tmp_path / "again/config.json").read_text())
    assert saved == json.loads((tmp_path / "run/config.json").read_text()) | {"out_dir": "again"}


def test_matrices_decay_and_vectors_do_not():
    training, _ = small_training()
    decayed, free = training.optimizer.param_groups
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0.0
    names = {id(parameter): name for name, parameter in training.model.named_parameters()}
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    assert all(parameter.dim() >= 2 for parameter in decayed["params"])
    assert all("norm" in names[id(parameter)] for parameter in free["params"])


def test_gradients_are_clipped_to_the_global_norm():
    """The first AdamW step does not depend on the gradient's scale, so look at the running mean it leaves."""
    tokens = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))
    means = {}
    for clip in (0.0, 0.01):
        training, configuration = small_training(accumulation=1)
        run = dataclasses.replace(configuration.run, grad_clip=clip)
        result = take_step(training, iter([Batch(tokens, tokens)]), run, 1e-3, Compute(CPU, "float32"))
        state = [training.optimizer.state[p]["exp_avg"] for p in training.model.parameters()]
        means[clip] = math.sqrt(sum(float(value.square().sum()) for value in state)) / (1 - run.beta1)
    assert means[0.0] == pytest.approx(result.grad_norm, rel=1e-4)
    assert means[0.01] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("key", "steps"),
    # 256 tokens a step
    [("--max_iters=3", 3), ("--max_tokens=1000", 4), ("--max_tokens=1024", 4), ("--max_tokens=1025", 5)],
)
def test_a_run_ends_at_the_first_limit(train, tmp_path, key, steps):
    assert train(key).returncode == 0
    (summary,) = records(tmp_path / "run", "summary")
    assert summary["step"] == steps and summary["tokens"] == 256 * steps


def test_a_run_ends_at_max_flops(train, tmp_path):
    assert train("--max_iters=2").returncode == 0
    per_step = records(tmp_path / "run", "summary")[0]["flops"]["full"] / 2
    assert train(f"--max_flops={2.5 * per_step}", "--out_dir=other").returncode == 0
    assert records(tmp_path / "other", "summary")[0]["flops"]["full"] == 3 * per_step


NAN_FROM_THE_FIFTH_CALL = '''
import torch
from components.spec import Activation
from model_components import register, register_spec

@register_spec
class BreaksSpec(Activation):
    name = "breaks"

@register("activation", "breaks")
class Breaks(torch.nn.Module):
    """GELU that gives NaN for a while in training."""

    def __init__(self, config):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        broken = self.training and {first} <= self.calls < {last}
        return x * float("nan") if broken else torch.nn.functional.gelu(x)

activation = "breaks"
'''


def test_a_step_without_finite_gradients_never_reaches_the_weights(train, tmp_path):
    config = tmp_path / "breaks.py"
    config.write_text(NAN_FROM_THE_FIFTH_CALL.format(first=9, last=13))  # steps 5 and 6, of two micro-batches
    done = train(str(config), "--checkpoint_interval=1", "--keep_last=20")
    assert done.returncode == 0, done.stderr
    assert [r["step"] for r in records(tmp_path / "run", "iter") if r["skipped"]] == [5, 6]
    (summary,) = records(tmp_path / "run", "summary")
    assert summary["skipped_steps"] == 2 and summary["step"] == 12
    before, after, next_ = [weights(tmp_path / f"run/checkpoints/step_{step:08d}") for step in (4, 6, 7)]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not all(torch.equal(before[name], next_[name]) for name in before)
    assert all(value.isfinite().all() for value in next_.values())


def test_too_many_skipped_steps_stop_the_run_with_a_whole_checkpoint(train, tmp_path):
    config = tmp_path / "breaks.py"
    config.write_text(NAN_FROM_THE_FIFTH_CALL.format(first=9, last=1000))
    done = train(str(config), "--max_skipped_steps=3", "--max_iters=50")
    assert done.returncode == 1 and "3 steps in a row had no finite gradient" in done.stdout
    saved = weights(tmp_path / "run/checkpoints/step_00000007")
    assert all(value.isfinite().all() for value in saved.values())


def test_a_run_that_stopped_for_skipped_steps_can_be_resumed(train, tmp_path):
    config = tmp_path / "breaks.py"
    config.write_text(NAN_FROM_THE_FIFTH_CALL.format(first=9, last=1000))
    assert train(str(config), "--max_skipped_steps=3", "--max_iters=12").returncode == 1
    config.write_text(NAN_FROM_THE_FIFTH_CALL.format(first=9, last=9))  # mended
    done = train(str(config), "--max_skipped_steps=3", "--max_iters=12", "--init_from=resume")
    assert done.returncode == 0, done.stderr
    assert records(tmp_path / "run", "summary")[-1]["step"] == 12
    assert not any(record["skipped"] for record in records(tmp_path / "run", "iter") if record["step"] > 7)


def test_a_full_disk_costs_a_checkpoint_but_not_the_run(train, tmp_path):
    script = tmp_path / "full_disk.py"
    script.write_text(
        "import errno\n"
        "import train, runs.checkpoint as checkpoint\n"
        "original, calls = checkpoint._Writer.write_data, 0\n"
        "def write_data(*arguments):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    written = original(*arguments)\n"
        "    if calls == 2: raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "    return written\n"
        "checkpoint._Writer.write_data = write_data\n"
        "train.main()\n"
    )
    done = train("--max_iters=10", script=script)
    assert done.returncode == 0 and "no disk space for a checkpoint" in done.stdout
    assert [event["step"] for event in records(tmp_path / "run", "event")] == [8]
    assert [event["step"] for event in records(tmp_path / "run", "checkpoint")] == [4, 10]


def test_best_last_and_every_nth_checkpoint_are_kept(train, tmp_path):
    keys = ["--max_iters=20", "--eval_interval=2", "--keep_every=8", "--keep_last=2", "--learning_rate=0.1"]
    assert train(*keys).returncode == 0
    steps = {int(folder.name[5:]) for folder in (tmp_path / "run/checkpoints").iterdir()}
    best = records(tmp_path / "run", "summary")[0]["best_step"]
    assert steps == {8, 16, 18, 20, best}


def test_only_improvements_are_saved_if_asked(train, tmp_path):
    assert (
        train("--max_iters=30", "--eval_interval=3", "--always_save_checkpoint=False", "--learning_rate=0.3").returncode
        == 0
    )
    evals = records(tmp_path / "run", "eval")
    improved = [record["step"] for record in evals if record["best"] and record["step"]]
    saved = [record["step"] for record in records(tmp_path / "run", "checkpoint")]
    assert len(improved) < len(evals) - 1, "a learning rate this high should have made some evaluation worse"
    assert saved == sorted({*improved, 30})


def test_a_skipped_step_with_gradient_statistics_is_logged_with_nulls(train, tmp_path):
    config = tmp_path / "breaks.py"
    config.write_text(NAN_FROM_THE_FIFTH_CALL.format(first=9, last=13))
    assert train(str(config), "--gradient_stats_interval=5").returncode == 0
    (record,) = [r for r in records(tmp_path / "run", "iter") if r["step"] == 5]
    assert record["skipped"] and record["loss"] is None and record["gradients"]["blocks.0"]["norm"] is None


def test_gradient_statistics_by_layer(train, tmp_path):
    assert train("--gradient_stats_interval=4", "--log_interval=3").returncode == 0
    with_stats = {r["step"]: r for r in records(tmp_path / "run", "iter") if "gradients" in r}
    assert set(with_stats) == {4, 8, 12}
    for record in with_stats.values():
        layers = record["gradients"]
        assert set(layers) == {"embedding", "position", "blocks.0", "blocks.1", "final_norm"}
        whole = math.sqrt(sum(layer["norm"] ** 2 for layer in layers.values()))
        assert whole == pytest.approx(record["grad_norm"], rel=1e-5)


def test_the_log_states_true_sums(train, tmp_path):
    """Tokens, FLOPs, MFU and bits per byte follow from the run's own numbers by other routes."""
    assert train("--log_interval=1").returncode == 0
    (run,) = records(tmp_path / "run", "run")
    bytes_per_token = {name: s["bytes"] / s["tokens"] for name, s in run["dataset"]["splits"].items()}
    # 6 FLOPs for each weight of a matrix product, and 12 S D for the scores of each layer (PaLM, appendix B)
    matrices = sum(
        count for part, count in run["parameters"]["by_part"].items() if part in ("attention", "ffn", "embedding")
    )
    per_token = 6 * matrices + 12 * 2 * 32 * 32
    assert run["flops_per_token"]["full"] == per_token
    assert run["flops_per_token"]["causal"] == per_token - 6 * 2 * 32 * 32
    for record in records(tmp_path / "run", "iter"):
        assert record["tokens"] == 256 * record["step"]
        assert record["flops"]["full"] == record["tokens"] * per_token
        assert record["bits_per_byte"] == pytest.approx(record["loss"] / math.log(2) / bytes_per_token["train"])
        if record["mfu"] is not None:
            assert record["tokens_per_second"] == pytest.approx(256 / (record["step_ms"] / 1000))
            peak = run["hardware"]["peak_flops_per_second_per_device"]
            assert record["mfu"]["full"] == pytest.approx(per_token * record["tokens_per_second"] / peak)
    assert records(tmp_path / "run", "iter")[0]["mfu"] is None, "the first step loads kernels"


def small_training(seed: int = 0, accumulation: int = 4) -> tuple[Training, object]:
    configuration = load(
        "--n_layer=2 --n_head=2 --n_embd=32 --block_size=16 --vocab_size=256 --batch_size=2 "
        f"--gradient_accumulation_steps={accumulation}".split()
    )
    model = build_model(configuration.model, seed=seed)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return Training(model, build_optimizer(model, configuration.run), scaler, Progress()), configuration


def _evaluated(ranks, folder: Path) -> Means | None:
    training, _ = small_training()
    loader = WindowLoader(open_dataset(folder), "val", 16, seed=0)
    return evaluate(training.model, loader, 7, 3, Compute(CPU, "float32", ranks), lambda: False)


def test_the_evaluation_is_the_same_for_any_number_of_ranks(data_dir):
    (alone,) = on_ranks(1, _evaluated, data_dir / "tiny")
    for size in (2, 4):
        assert on_ranks(size, _evaluated, data_dir / "tiny") == [alone] * size


def _buckets_of_a_step(ranks) -> list[int]:
    """The gradient buckets that travel in one step of two micro-batches a rank."""
    training, configuration = small_training()
    training.wrapper = model = DistributedDataParallel(training.model)
    travelled = []

    def count(state, bucket):
        travelled.append(bucket.index())
        return (
            torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda f: f.value()[0] / 2)
        )

    model.register_comm_hook(None, count)
    tokens = torch.randint(0, 256, (2, 16))
    batches, run = iter([Batch(tokens, tokens)] * 2), configuration.run
    take_step(training, batches, run, 1e-3, Compute(CPU, "float32", ranks))
    return travelled


def test_gradients_travel_once_a_step_however_many_micro_batches():
    assert on_ranks(2, _buckets_of_a_step) == [[0], [0]]  # so small a model has one bucket
