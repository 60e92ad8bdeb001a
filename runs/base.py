"""The base of a run that trains adapters: the checkpoint of step 0, which has the weights that they stand beside, and
what they begin with where that is not nothing. Every later checkpoint has adapters alone, and the checksums of the
base. No torch."""

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


def identity_of_base(folder: RunFolder) -> dict[str, str]:
    """The checksums of its files, which a checkpoint of adapters keeps. Raises UserError where there is none."""
    return read_state(_existing(folder))["files"]


def base_of(checkpoint: Path, state: dict[str, Any]) -> Path | None:
    """The checkpoint that this one has adapters of, which may be itself; None for one of a whole model. `state` is what
    `read_state` says of it. Raises UserError where the base is missing or another one."""
    if adapters_of(state["config"]) is None:
        return None
    if "base" not in state:
        return checkpoint
    base = _existing(RunFolder(checkpoint.parent.parent))
    if (found := read_state(base)["files"]) != state["base"]:
        sums = [", ".join(map(str, files.values())) for files in (state["base"], found)]
        raise UserError(f"{checkpoint} has adapters of another base than {base}: of one with {sums[0]}, not {sums[1]}")
    return base


def _existing(folder: RunFolder) -> Path:
    if (base := folder.checkpoint_of(BASE_STEP)) is None:
        raise UserError(
            f"{folder.path} has adapters, but not their base, the checkpoint of step {BASE_STEP}: bring it back"
        )
    return base
