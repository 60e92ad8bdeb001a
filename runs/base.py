"""The checkpoint of step 0 of a run that needs it as long as it goes on. Of one that trains adapters it is their base:
it has the weights that they stand beside, and what they begin with where that is not nothing; every later checkpoint
has adapters alone. Of one that holds what it trains against its beginning (kl_beta) it is the reference. Later
checkpoints have its checksums. No torch."""

from pathlib import Path
from typing import Any

from common.errors import UserError
from common.keys import check_value, keys_of
from components.lora.spec import Adapters
from runs.config import OF_ADAPTERS, RunConfig
from runs.folder import RunFolder, read_state

BASE_STEP = 0


def adapters_of(config: dict[str, Any]) -> Adapters | None:
    """Those of a run with these saved keys; a run of an earlier version had none. Raises UserError for impossible ones,
    since they may be a stranger's."""
    known = keys_of(RunConfig)
    given = {name: check_value(known[name], config[name]) for name in ("use_lora", *OF_ADAPTERS) if name in config}
    return RunConfig(**given).adapters


def keeps_start(config: dict[str, Any]) -> bool:
    """Whether a run with these saved keys needs its checkpoint of step 0. Raises UserError for impossible adapters."""
    return adapters_of(config) is not None or bool(config.get("reinforce") and config.get("kl_beta"))


def identity_of_base(folder: RunFolder, config: dict[str, Any]) -> dict[str, str]:
    """The checksums of its files, which later checkpoints keep. Raises UserError where there is none."""
    return read_state(_existing(folder, config))["files"]


def base_of(checkpoint: Path, state: dict[str, Any]) -> Path | None:
    """The checkpoint that this one has adapters of, which may be itself; None for one of a whole model. `state` is what
    `read_state` says of it. Raises UserError where the base is missing or another one."""
    return None if adapters_of(state["config"]) is None else start_of(checkpoint, state)


def start_of(checkpoint: Path, state: dict[str, Any]) -> Path | None:
    """The checkpoint of step 0 of this one's run, which may be itself; None where that does not need it. Raises
    UserError as `base_of`."""
    if not keeps_start(state["config"]):
        return None
    if "base" not in state:
        return checkpoint
    base = _existing(RunFolder(checkpoint.parent.parent), state["config"])
    if (found := read_state(base)["files"]) != state["base"]:
        sums = [", ".join(map(str, files.values())) for files in (state["base"], found)]
        what = "has adapters of another base" if adapters_of(state["config"]) is not None else "has another reference"
        raise UserError(f"{checkpoint} {what} than {base}: of one with {sums[0]}, not {sums[1]}")
    return base


def _existing(folder: RunFolder, config: dict[str, Any]) -> Path:
    if (base := folder.checkpoint_of(BASE_STEP)) is None:
        which = "has adapters, but not their base" if adapters_of(config) is not None else "lost its reference"
        raise UserError(f"{folder.path} {which}, the checkpoint of step {BASE_STEP}: bring it back")
    return base
