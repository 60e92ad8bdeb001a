"""Logs of the older layout, one JSON object a run, as the records of runs/logs.py.

    {"config": {...}, "startup_info": {...}, "training_iterations": [{"iter": 0, "loss": ..., "mfu": ...}, ...],
     "eval_steps": [...], "checkpoints": [...], "metadata": {...}, "summary": {...}}

What this layout does not say is None. It counts as nanoGPT does: iteration i is the step i + 1, an evaluation at
iteration i comes after i steps, and a step is gradient_accumulation_steps x batch_size x block_size tokens. Its FLOPs
per token and its MFU do not say which attention they count: the former are left out, the latter has the convention
`unstated`.
No torch.
"""

import json
import math
from pathlib import Path
from typing import Any

from common.errors import UserError


def read_older(file: Path) -> dict[str, Any] | None:
    """The fields of a RunLog besides its path; None for a file that is no JSON object with `training_iterations`.
    Raises UserError where that list, or another part that must be there, is not what it should be."""
    try:
        log = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return None
    if not isinstance(log, dict) or "training_iterations" not in log:
        return None
    try:
        return _fields(log)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{file} has training_iterations, but is no log of the older layout: {error!r}") from None


def _fields(log: dict[str, Any]) -> dict[str, Any]:
    config = log.get("config") or {}
    per_step = _tokens_per_step(config)
    iters = {row["iter"]: _iter(row, per_step) for row in log["training_iterations"]}
    evals = {row["iter"]: _eval(row, per_step) for row in log.get("eval_steps") or []}
    fields: dict[str, Any] = {
        "run": _run(log, config, per_step),
        "iters": [iters[number] for number in sorted(iters)],  # a resumed run repeats some: the later row counts
        "evals": [evals[number] for number in sorted(evals)],
        "checkpoints": [
            {"type": "checkpoint", "step": int(row["iter"]), "path": row.get("path")}
            for row in log.get("checkpoints") or []
        ],
    }
    if log.get("summary"):  # written as the process ends
        steps = max((record["step"] for record in fields["iters"] + fields["evals"]), default=0)
        fields["summary"] = {
            "type": "summary",
            "reason": "finished",
            "step": steps,
            "tokens": _times(steps, per_step),
            "tokens_per_second": None,
        }
    return fields


def _run(log: dict[str, Any], config: dict[str, Any], per_step: int | None) -> dict[str, Any]:
    """The `run` record, of what the log says."""
    startup, metadata = log.get("startup_info") or {}, log.get("metadata") or {}
    hardware = startup.get("hardware") or {}
    details = [row["mfu"] for row in log["training_iterations"] if isinstance(row.get("mfu"), dict)]
    total = (startup.get("model") or {}).get("total_params")
    said: dict[str, Any] = {
        "type": "run",
        "name": log.get("run_name"),
        "architecture": next((detail["architecture"] for detail in details if "architecture" in detail), None),
        "config": config,
        "tokens_per_step": per_step,
        "dtype": metadata.get("dtype", config.get("dtype")),
    }
    if total is not None:
        said["parameters"] = {"total": int(total)}
    if "dataset" in config:
        said["dataset"] = {"name": config["dataset"]}
    said["hardware"] = {
        "device": metadata.get("device", config.get("device")),
        "device_name": hardware.get("gpu_name"),
        "ranks": metadata.get("world_size", hardware.get("num_gpus")),
    }
    return {name: value for name, value in said.items() if value is not None}


def _iter(row: dict[str, Any], per_step: int | None) -> dict[str, Any]:
    """An `iter` record. An MFU below 0 is that of a step that was not timed."""
    stated = row.get("mfu")
    detail = stated if isinstance(stated, dict) else {"mfu_percent": stated}
    percent, milliseconds = detail.get("mfu_percent"), row.get("time_ms")
    speed = detail.get("tokens_per_sec")
    if speed is None and per_step is not None and milliseconds:
        speed = 1000 * per_step / milliseconds
    speeds: dict[str, Any] = dict.fromkeys(("step_ms", "tokens_per_second", "mfu"))
    if percent is not None and percent >= 0 and milliseconds is not None and speed is not None:
        speeds = {"step_ms": milliseconds, "tokens_per_second": speed, "mfu": {"unstated": percent / 100}}
    memory = row.get("memory") or {}
    return {
        "type": "iter",
        "step": int(row["iter"]) + 1,
        "tokens": _times(int(row["iter"]) + 1, per_step),
        "loss": _finite(row["loss"]),
        "grad_norm": None,
        "skipped": None,
        **speeds,
        "memory": {
            "allocated": _bytes(memory.get("allocated_gb")),
            "reserved": _bytes(memory.get("reserved_gb")),
            "peak": _bytes(memory.get("max_allocated_gb", memory.get("peak_gb"))),
        },
    }


def _eval(row: dict[str, Any], per_step: int | None) -> dict[str, Any]:
    steps = int(row["iter"])
    return {"type": "eval", "step": steps, "tokens": _times(steps, per_step), "val_loss": _finite(row["val_loss"])}


def _tokens_per_step(config: dict[str, Any]) -> int | None:
    factors = [config.get(key) for key in ("gradient_accumulation_steps", "batch_size", "block_size")]
    whole = [factor for factor in factors if type(factor) is int]
    return math.prod(whole) if len(whole) == len(factors) else None


def _times(steps: int, per_step: int | None) -> int | None:
    return None if per_step is None else steps * per_step


def _bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else round(gigabytes * 1e9)


def _finite(loss: float | None) -> float | None:
    return None if loss is None or not math.isfinite(loss) else float(loss)
