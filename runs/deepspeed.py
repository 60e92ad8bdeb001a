"""A DeepSpeed configuration (a JSON file) as keys of a run: each of its keys is one or several of ours, is what this
trainer does anyway, or is refused by name. What "auto" stands for is left to our keys, as in Hugging Face's Trainer.

What divides gradients and weights in DeepSpeed's stages is PyTorch's FSDP2 here. docs/distributed.md has the table.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError, did_you_mean
from common.json_files import read_json

Values = dict[str, Any]
AUTO = "auto"

# Sizes of buffers and the order of exchanges: PyTorch chooses its own, and what is computed stays the same.
SPEED_ONLY = {
    "zero_optimization": {
        "allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "ignore_unused_parameters",
        "overlap_comm", "reduce_bucket_size", "reduce_scatter", "round_robin_gradients", "stage3_max_live_parameters",
        "stage3_max_reuse_distance", "stage3_param_persistence_threshold", "stage3_prefetch_bucket_size",
        "stage3_gather_16bit_weights_on_model_save", "sub_group_size", "use_multi_rank_bucket_allreduce",
    },
    "": {"zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"},
}  # fmt: skip
SCHEDULES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}


def keys_from_deepspeed(path: Path, ranks: int, given: Mapping[str, Any]) -> Values:
    """The keys of a run that a DeepSpeed file says, for so many ranks; `given` are those that the user gives besides,
    of which `tensor_parallel` and `learning_rate` decide what some of them mean. Raises UserError, naming file and
    key."""
    try:
        return _keys(_settled(read_json(path)), ranks, given)
    except UserError as error:
        raise UserError(f"deepspeed_config {path}: {error}") from None


def _settled(values: Any) -> Any:
    """Without what is left to our keys."""
    if not isinstance(values, dict):
        return values
    return {name: _settled(value) for name, value in values.items() if value != AUTO and value is not None}


def _keys(values: Values, ranks: int, given: Mapping[str, Any]) -> Values:
    known = {*_SECTIONS, *_BATCH, *SPEED_ONLY[""]}
    for name in values:
        if name not in known:
            raise UserError(f"{name} has no counterpart here: drop it{did_you_mean(name, known)}")
    found: Values = {}
    for name, read in _SECTIONS.items():
        if name in values:
            found |= read(name, values[name])
    halves = [name for name in ("fp16", "bf16", "bfloat16") if name in values]
    if len(on := [name for name in halves if _is_on(name, values[name])]) > 1:
        raise UserError(f"{' and '.join(on)} are both enabled: a run computes in one of them")
    if halves:
        found.setdefault("dtype", "float32")  # which DeepSpeed computes in where none is on
    sharers = max(1, ranks // found.get("tensor_parallel", given.get("tensor_parallel", 1)))
    found |= _batch({name: _whole(name, values[name]) for name in _BATCH if name in values}, sharers, given)
    if (ratio := found.pop("min_lr_over_lr", None)) is not None:
        rate = found.get("learning_rate", given.get("learning_rate"))
        if rate is None:
            raise UserError("scheduler.params.cos_min_ratio is of a learning rate, which nothing gives")
        found["min_lr"] = ratio * rate
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The batch

_BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def _batch(sizes: dict[str, int], sharers: int, given: Mapping[str, Any]) -> Values:
    """Theirs is of each rank, ours of all: gradient_accumulation_steps x batch_size sequences are a step."""
    whole, micro, each = (sizes.get(name) for name in _BATCH)
    if whole is None and micro is None and each is None:
        return {}
    micro = micro if micro is not None else given.get("batch_size")
    if micro is None and whole is not None:
        each = each or 1
        micro = _divided("train_batch_size", whole, each * sharers, f"{each} x {sharers} ranks")
    if micro is None:
        raise UserError("gradient_accumulation_steps without train_micro_batch_size_per_gpu, or --batch_size")
    if whole is None:
        return {"batch_size": micro, "gradient_accumulation_steps": (each or 1) * sharers}
    steps = _divided("train_batch_size", whole, micro, f"{micro} sequences of a micro-batch")
    if each is not None and each * sharers != steps:
        raise UserError(
            f"train_batch_size={whole} is not train_micro_batch_size_per_gpu x gradient_accumulation_steps x ranks = "
            f"{micro} x {each} x {sharers}"
        )
    return {"batch_size": micro, "gradient_accumulation_steps": steps}


def _divided(name: str, value: int, by: int, words: str) -> int:
    if value % by:
        raise UserError(f"{name}={value} is not divisible by {words}")
    return value // by


# ---------------------------------------------------------------------------------------------------------------------
# Sections: each (its name, its value) -> our keys


def _section(name: str, value: Any, known: Mapping[str, Any] | set[str]) -> Values:
    """A JSON object that has these keys only, and those of SPEED_ONLY. Raises UserError."""
    if not isinstance(value, dict):
        raise UserError(f"{name}={value!r} is no JSON object")
    speed = SPEED_ONLY.get(name, set())
    for key in value:
        if key not in known and key not in speed:
            raise UserError(f"{name}.{key} has no counterpart here: drop it{did_you_mean(key, [*known, *speed])}")
    return {key: found for key, found in value.items() if key in known}


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise UserError(f"{name}={value!r} is not a whole number of 1 or more")
    return value


def _number(name: str, value: Any) -> float:
    if type(value) not in (int, float) or value < 0:
        raise UserError(f"{name}={value!r} is not a number of 0 or more")
    return value


def _is_on(name: str, value: Values) -> bool:
    enabled = value.get("enabled", False)
    if not isinstance(enabled, bool):
        raise UserError(f"{name}.enabled={enabled!r} is neither true nor false")
    return enabled


def _zero(name: str, value: Any) -> Values:
    value = _section(name, value, {"stage", "offload_optimizer", "offload_param"})
    stage = value.get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise UserError(f"{name}.stage={stage!r} is none of 0, 1, 2, 3")
    offloads = [_offloads(f"{name}.{key}", value[key]) for key in value if key != "stage"]
    if any(offloads) and stage < 2:
        raise UserError(f"{name}: what stage {stage} keeps cannot be offloaded here: take stage 2 or 3")
    stages: tuple[Values, ...] = (
        {}, {"use_zero1": True}, {"use_fsdp": True, "fsdp_reshard_after_forward": False}, {"use_fsdp": True},
    )  # fmt: skip
    return stages[stage] | ({"fsdp_cpu_offload": True} if any(offloads) else {})


def _offloads(name: str, value: Any) -> bool:
    tuning = {"pin_memory", "buffer_count", "buffer_size", "fast_init", "pipeline_read", "pipeline_write"}
    device = _section(name, value, {"device", *tuning}).get("device", "none")
    if device not in ("none", "cpu"):
        raise UserError(f"{name}.device={device!r} is neither none nor cpu: main memory is all that is offloaded to")
    return device == "cpu"


def _half(dtype: str) -> Callable[[str, Any], Values]:
    def read(name: str, value: Any) -> Values:
        value = _section(name, value, {"enabled", "loss_scale"})
        if value.get("loss_scale", 0) != 0:
            raise UserError(f"{name}.loss_scale={value['loss_scale']!r}: the loss is scaled dynamically, which 0 is")
        return {"dtype": dtype} if _is_on(name, value) else {}

    return read


def _optimizer(name: str, value: Any) -> Values:
    value = _section(name, value, {"type", "params"})
    kind, params = value.get("type"), value.get("params", {})
    if kind not in ("AdamW", "Adam"):
        raise UserError(f"{name}.type={kind!r} has no counterpart here: take AdamW, or drop it and give --optimizer")
    names = {"lr": "learning_rate", "eps": "adam_eps", "weight_decay": "weight_decay"}
    params = _section(f"{name}.params", params, {*names, "betas", "adam_w_mode", "torch_adam"})
    if kind == "Adam" and not params.get("adam_w_mode", True):
        raise UserError(f"{name}.params.adam_w_mode=false: weight decay is AdamW's here")
    found: Values = {ours: _number(f"{name}.params.{key}", params[key]) for key, ours in names.items() if key in params}
    if "betas" in params:
        if not isinstance(params["betas"], list) or len(params["betas"]) != 2:
            raise UserError(f"{name}.params.betas={params['betas']!r} are not two numbers")
        found["beta1"], found["beta2"] = (_number(f"{name}.params.betas", beta) for beta in params["betas"])
    return found


def _scheduler(name: str, value: Any) -> Values:
    """Ours begin at a step's share of the warm-up, theirs at warmup_min_lr, which must be 0."""
    value = _section(name, value, {"type", "params"})
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in SCHEDULES:
        raise UserError(f"{name}.type={kind!r} has no counterpart here: take {', '.join(SCHEDULES)}, or lr_schedule")
    of_kind = {"WarmupCosineLR": {"warmup_min_ratio", "cos_min_ratio"}}.get(kind, {"warmup_min_lr", "warmup_max_lr"})
    known = {"warmup_num_steps", "warmup_type", *of_kind, *({"total_num_steps"} if kind != "WarmupLR" else ())}
    params = _section(f"{name}.params", value.get("params", {}), known)
    for key in {"warmup_min_lr", "warmup_min_ratio"} & params.keys():
        if params[key]:
            raise UserError(f"{name}.params.{key}={params[key]!r}: the warm-up begins at 0 here")
    if kind != "WarmupCosineLR" and params.get("warmup_type", "log") != "linear":
        raise UserError(f"{name}.params.warmup_type must be 'linear', as warm-ups are here; DeepSpeed's own is 'log'")
    found: Values = {"lr_schedule": SCHEDULES[kind]}
    for key, ours in (("warmup_num_steps", "warmup_iters"), ("total_num_steps", "lr_decay_iters")):
        if key in params:
            found[ours] = _whole(f"{name}.params.{key}", params[key])
    if "warmup_max_lr" in params:
        found["learning_rate"] = _number(f"{name}.params.warmup_max_lr", params["warmup_max_lr"])
    if kind == "WarmupDecayLR":
        found["min_lr"] = 0.0
    if kind == "WarmupCosineLR":
        found["min_lr_over_lr"] = _number(f"{name}.params.cos_min_ratio", params.get("cos_min_ratio", 0.0001))
    return found


def _monitor(ours: Mapping[str, str]) -> Callable[[str, Any], Values]:
    def read(name: str, value: Any) -> Values:
        value = _section(name, value, {"enabled", *ours})
        if not _is_on(name, value):
            return {}
        return {f"{name}_log": True} | {ours[key]: value[key] for key in ours if key in value}

    return read


def _refused_unless(allowed: tuple[Any, ...], why: str) -> Callable[[str, Any], Values]:
    def read(name: str, value: Any) -> Values:
        if value not in allowed:
            raise UserError(f"{name}={value!r} has no counterpart here: {why}")
        return {}

    return read


def _checkpointing(name: str, value: Any) -> Values:
    others = ("partition_activations", "cpu_checkpointing", "contiguous_memory_optimization", "number_checkpoints",
              "synchronize_checkpoint_boundary", "profile")  # fmt: skip
    for key, found in _section(name, value, set(others)).items():
        if found:
            raise UserError(f"{name}.{key}={found!r} has no counterpart here: each block's input is kept, as it is")
    return {"activation_checkpointing": True}


def _reduced_in(name: str, value: Any) -> Values:
    dtypes = {"fp32": "float32", "bf16": "bfloat16", "bfp16": "bfloat16"}
    if not isinstance(value, str) or value not in dtypes:
        raise UserError(f"{name}={value!r} is none of fp32, bf16")
    return {"fsdp_reduce_dtype": dtypes[value]} if dtypes[value] != "float32" else {}


_SECTIONS: dict[str, Callable[[str, Any], Values]] = {
    "zero_optimization": _zero,
    "fp16": _half("float16"),
    "bf16": _half("bfloat16"),
    "bfloat16": _half("bfloat16"),
    "optimizer": _optimizer,
    "scheduler": _scheduler,
    "gradient_clipping": lambda name, value: {"grad_clip": _number(name, value)},
    "communication_data_type": _reduced_in,
    "activation_checkpointing": _checkpointing,
    "tensor_parallel": lambda name, value: {
        "tensor_parallel": _whole(f"{name}.autotp_size", _section(name, value, {"autotp_size"}).get("autotp_size", 1))
    },
    "steps_per_print": lambda name, value: {"log_interval": _whole(name, value)},
    "tensorboard": _monitor({}),
    "wandb": _monitor({"project": "wandb_project"}),
    "wall_clock_breakdown": _refused_unless((False,), "the log has the time of a step and of its update"),
    "dump_state": _refused_unless((False,), "--verbose prints every key"),
    "memory_breakdown": _refused_unless((False,), "the log has the memory of a step"),
    "prescale_gradients": _refused_unless((False,), "gradients are those of the whole batch's mean"),
    "gradient_predivide_factor": _refused_unless((1, 1.0), "gradients are those of the whole batch's mean"),
}
