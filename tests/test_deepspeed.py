"""A DeepSpeed configuration as keys of a run: what each of its keys becomes, and what is refused by name."""

import json

import pytest
from commands import command

import train as train_command
from common.errors import UserError
from configurator import as_dict, load
from runs.deepspeed import keys_from_deepspeed
from runs.logs import read_run

FULL = {
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 0.5,
    "steps_per_print": 7,
    "wall_clock_breakdown": False,
    "zero_allow_untested_optimizer": True,
    "bf16": {"enabled": True},
    "fp16": {"enabled": False},
    "zero_optimization": {
        "stage": 3, "overlap_comm": True, "reduce_bucket_size": 5e8, "stage3_prefetch_bucket_size": "auto",
        "offload_optimizer": {"device": "cpu", "pin_memory": True}, "offload_param": {"device": "none"},
    },
    "optimizer": {"type": "AdamW", "params": {"lr": 3e-4, "betas": [0.9, 0.99], "eps": 1e-6, "weight_decay": 0.2}},
    "scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 90, "warmup_num_steps": 9,
                                                       "cos_min_ratio": 0.1}},
    "wandb": {"enabled": True, "project": "mine"},
    "communication_data_type": "bf16",
}  # fmt: skip
OF_FULL = {
    "batch_size": 4, "gradient_accumulation_steps": 16, "grad_clip": 0.5, "log_interval": 7, "dtype": "bfloat16",
    "use_fsdp": True, "fsdp_cpu_offload": True, "learning_rate": 3e-4, "beta1": 0.9, "beta2": 0.99, "adam_eps": 1e-6,
    "weight_decay": 0.2, "lr_schedule": "cosine", "warmup_iters": 9, "lr_decay_iters": 90, "wandb_log": True,
    "wandb_project": "mine", "fsdp_reduce_dtype": "bfloat16", "min_lr": 3e-5,
}  # fmt: skip


@pytest.fixture
def read(tmp_path):
    """`read(values, ranks=1, **given)`: the keys that a file of these values says."""

    def keys(values, ranks=1, **given):
        path = tmp_path / "ds.json"
        path.write_text(json.dumps(values))
        return keys_from_deepspeed(path, ranks, given)

    return keys


def test_every_section_becomes_keys(read):
    assert read(FULL, ranks=8) == pytest.approx(OF_FULL)


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"zero_optimization": {"stage": 0}}, {}),
        ({"zero_optimization": {"stage": 1}}, {"use_zero1": True}),
        ({"zero_optimization": {"stage": 2}}, {"use_fsdp": True, "fsdp_reshard_after_forward": False}),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "none"}}}, {"use_fsdp": True}),
        ({"fp16": {"enabled": True, "loss_scale": 0}}, {"dtype": "float16"}),
        ({"fp16": {"enabled": False}, "bf16": {"enabled": False}}, {"dtype": "float32"}),
        ({"optimizer": {"type": "Adam", "params": {"lr": "auto", "betas": "auto"}}}, {}),
        ({"gradient_clipping": "auto", "train_batch_size": "auto"}, {}),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_type": "linear", "warmup_max_lr": 1e-3,
                                                       "warmup_min_lr": 0, "warmup_num_steps": 5}}},
         {"lr_schedule": "constant", "learning_rate": 1e-3, "warmup_iters": 5}),
        ({"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_type": "linear", "total_num_steps": 50}}},
         {"lr_schedule": "linear", "lr_decay_iters": 50, "min_lr": 0.0}),
        ({"activation_checkpointing": {"partition_activations": False}}, {"activation_checkpointing": True}),
        ({"tensorboard": {"enabled": False}}, {}),
    ],
)  # fmt: skip
def test_what_a_section_becomes(read, values, keys):
    assert read(values) == keys


@pytest.mark.parametrize(
    ("sizes", "ranks", "given", "batch_size", "steps"),
    [
        ({"train_batch_size": 64}, 4, {}, 16, 4),
        ({"train_batch_size": 64, "gradient_accumulation_steps": 2}, 4, {}, 8, 8),
        ({"train_batch_size": 64}, 4, {"batch_size": 8}, 8, 8),
        ({"train_micro_batch_size_per_gpu": 3}, 4, {}, 3, 4),
        ({"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 5}, 4, {}, 3, 20),
        ({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4}, 4, {}, 4, 16),
        ({"train_batch_size": 64, "tensor_parallel": {"autotp_size": 2}}, 8, {"batch_size": 4}, 4, 16),
        ({"train_micro_batch_size_per_gpu": 3}, 4, {"tensor_parallel": 2}, 3, 2),
    ],
)  # fmt: skip
def test_a_step_has_the_sequences_that_deepspeed_counts(read, sizes, ranks, given, batch_size, steps):
    """train_batch_size = micro-batch x accumulation of each rank x ranks that see other data."""
    found = read(sizes, ranks, **given)
    assert (found["batch_size"], found["gradient_accumulation_steps"]) == (batch_size, steps)
    if "train_batch_size" in sizes:
        assert batch_size * steps == sizes["train_batch_size"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparse_attention": {}}, "sparse_attention has no counterpart here: drop it"),
        ({"gradient_cliping": 1}, "drop it .did you mean 'gradient_clipping'"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage=4 is none of 0, 1, 2, 3"),
        ({"zero_optimization": {"stage": True}}, "stage=True is none"),
        ({"zero_optimization": 3}, "zero_optimization=3 is no JSON object"),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}}, "partition_size has no counterpart"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "'nvme' is neither none nor cpu"),
        ({"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}, "take stage 2 or 3"),
        ({"optimizer": {"type": "Lamb"}}, "optimizer.type='Lamb' has no counterpart here: take AdamW"),
        ({"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}}, "weight decay is AdamW's here"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": "fast"}}}, "params.lr='fast' is not a number of 0 or more"),
        ({"optimizer": {"type": "AdamW", "params": {"betas": 0.9}}}, "betas=0.9 are not two numbers"),
        ({"scheduler": {"type": ["OneCycle"]}}, "take WarmupLR, WarmupDecayLR, WarmupCosineLR"),
        ({"scheduler": {"type": "WarmupLR", "params": {}}}, "warmup_type must be 'linear'"),
        ({"scheduler": {"type": "WarmupCosineLR", "params": {}}}, "of a learning rate, which nothing gives"),
        ({"fp16": {"enabled": True, "loss_scale": 128}}, "the loss is scaled dynamically"),
        ({"fp16": {"enabled": 1}}, "fp16.enabled=1 is neither true nor false"),
        ({"train_batch_size": 10}, "train_batch_size=10 is not divisible by 1 x 4 ranks"),
        ({"train_batch_size": 32, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2},
         "train_batch_size=32 is not train_micro_batch_size_per_gpu x gradient_accumulation_steps x ranks = 2 x 2 x 4"),
        ({"gradient_accumulation_steps": 2}, "without train_micro_batch_size_per_gpu, or --batch_size"),
        ({"train_batch_size": 1.5}, "train_batch_size=1.5 is not a whole number"),
        ({"communication_data_type": ["fp8"]}, "is none of fp32, bf16"),
        ({"wall_clock_breakdown": True}, "wall_clock_breakdown=True has no counterpart"),
        ({"activation_checkpointing": {"cpu_checkpointing": True}}, "each block's input is kept, as it is"),
        ({"activation_checkpointing": {"number_checkpoints": 4}}, "number_checkpoints=4 has no counterpart here"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "fp16 and bf16 are both enabled"),
        ({"dump_state": True}, "dump_state=True has no counterpart here: --verbose prints every key"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(read, values, message):
    with pytest.raises(UserError, match=message) as refusal:
        read(values, ranks=4)
    assert "deepspeed_config" in str(refusal.value) and len(str(refusal.value).splitlines()) == 1


def test_it_wins_over_the_config_file_and_the_command_line_over_it(tmp_path):
    """What a run saves are the keys that it became: nothing points at the file any more."""
    config, deepspeed = tmp_path / "a.py", tmp_path / "ds.json"
    config.write_text("batch_size = 3\ngrad_clip = 2.0\nn_layer = 2\nvocab_size = 9\n")
    deepspeed.write_text(json.dumps({"gradient_clipping": 0.5, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}))
    run = load([str(config), f"--deepspeed_config={deepspeed}", "--learning_rate=2e-3"]).run
    assert (run.batch_size, run.grad_clip, run.learning_rate) == (3, 0.5, 2e-3)
    assert as_dict(load([str(config), f"--deepspeed_config={deepspeed}"]))["deepspeed_config"] is None


def test_ranks_are_those_of_the_launcher_or_of_the_dry_run(tmp_path, monkeypatch):
    path = tmp_path / "ds.json"
    path.write_text('{"train_micro_batch_size_per_gpu": 2}')
    arguments = [f"--deepspeed_config={path}", "--vocab_size=9"]
    assert load([*arguments, "--dry_run", "--world_size=8"]).run.gradient_accumulation_steps == 8
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert load(arguments).run.gradient_accumulation_steps == 4


def test_a_run_trains_by_it(train, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"train_batch_size": 8, "train_micro_batch_size_per_gpu": 4, "gradient_clipping": 0.1,
                                "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}}}))  # fmt: skip
    mine, theirs = ["--out_dir=mine", "--batch_size=4", "--grad_clip=0.1"], ["--out_dir=theirs"]
    assert train(*mine).returncode == 0
    done = train(*theirs, "--deepspeed_config", str(path))
    assert done.returncode == 0, done.stderr
    logs = (read_run(tmp_path / name) for name in ("mine", "theirs"))
    mine_losses, their_losses = ([record["loss"] for record in log.iters] for log in logs)
    assert mine_losses == their_losses and len(mine_losses) == 12


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["--tensor_parallel=0"], "tensor_parallel=0 must be at least 1"),
        (["--tensor_parallel=4"], "1 ranks are no multiple of tensor_parallel"),
        (["config.py"], "config.py:1: batch_size='four': expected int, not str"),
    ],
)
def test_keys_beside_it_are_checked_first(data_dir, tmp_path, monkeypatch, keys, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds.json").write_text(json.dumps({"train_batch_size": 8}))
    (tmp_path / "config.py").write_text("batch_size = 'four'\n")
    given = [*keys, "--deepspeed_config=ds.json"]
    done = command(train_command.main, "--dry_run", "--dataset=tiny", f"--data_dir={data_dir}", *given)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("text", ["", "[]", "{", '{"bf16": {"enabled": tru}}'])
def test_a_file_that_is_none_is_one_line(train, tmp_path, text):
    (tmp_path / "ds.json").write_text(text)
    for path in ("ds.json", "nowhere.json"):
        done = train(f"--deepspeed_config={path}")
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and path in done.stderr
