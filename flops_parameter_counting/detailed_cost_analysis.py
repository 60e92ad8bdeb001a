"""What a compute budget buys: the architecture and the tokens, and a config file that train.py runs unchanged.

  python flops_parameter_counting/detailed_cost_analysis.py --grid_search 1e13 --emit config/mine.py
  python flops_parameter_counting/detailed_cost_analysis.py --grid_search 1.36e21 --law hoffmann --enforce_chinchilla
  python flops_parameter_counting/detailed_cost_analysis.py --grid_search --device H100-SXM --days 10 --mfu 0.45

Sizes are given as 64,128 or as first:end:step, without the end. What is not given follows from the budget.
"""

import argparse
import dataclasses
import json
import math
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository runs without being installed

from errors import ArgumentParser, UserError, did_you_mean, exit_cleanly
from flops_parameter_counting.devices import DEVICES
from flops_parameter_counting.emit_config import check_target, choose_dataset, config_text, write_config
from flops_parameter_counting.grid_search import (
    FLOPS_FORMULAS,
    KEPT,
    Search,
    SearchSpace,
    default_aspect_ratio,
    default_space,
    grid_search,
    uncertainty,
)
from flops_parameter_counting.published_formula import LAW as PUBLISHED_LAW
from flops_parameter_counting.scaling_laws import LAWS, find_law
from flops_parameter_counting.search_report import Report, as_json, as_text, report

FROM_HARDWARE = "from the hardware"
DEFAULT_LAW = "besiroglu"  # the published fit of Hoffmann et al.'s data that agrees with their two other approaches


@exit_cleanly
def main() -> int:
    arguments = parser().parse_args()
    if arguments.grid_search is None:
        raise UserError("nothing to do: give --grid_search with a budget in FLOPs, for instance --grid_search 1e13")
    return search_command(arguments, sys.argv[1:])


def parser() -> ArgumentParser:
    built = ArgumentParser(__doc__)
    add_search_arguments(built)
    return built


# ---------------------------------------------------------------------------------------------------------------------
# --grid_search


def add_search_arguments(built: ArgumentParser) -> None:
    group = built.add_argument_group("what a budget buys")
    add = group.add_argument
    add(
        "--grid_search",
        metavar="FLOPS",
        nargs="?",
        const=FROM_HARDWARE,
        help="the budget; without a number, --device's",
    )
    add(
        "--law",
        help=f"{', '.join(LAWS)}, or a fitted law's JSON file (default: {DEFAULT_LAW}; published: {PUBLISHED_LAW})",
    )
    add(
        "--flops_formula",
        default="exact",
        help=f"{' or '.join(FLOPS_FORMULAS)} (which reproduces the published tables)",
    )
    add("--enforce_chinchilla", action="store_true", help="only 0.5 <= D / (20 N) <= 1.5")
    add("--unique_tokens", type=positive, help="tokens of the dataset: beyond them training repeats")
    add("--inference_tokens", type=positive, help="the budget also pays for so many tokens of inference")
    add("--tokens_min", type=positive)
    add("--tokens_max", type=positive)
    add("--max_params", type=positive)
    add("--top_k", type=whole, default=10, help="candidates to print (default: 10)")
    add("--json", type=Path, metavar="FILE", help="write everything as data")

    group = built.add_argument_group("the space of architectures")
    add = group.add_argument
    add("--arch", default="llama3", help="llama3 or gpt2")
    add("--vocab_size", type=whole)
    add("--sequence_length", type=whole)
    add("--hidden_sizes", type=sizes, metavar="SIZES", help="1024:8192:256, for instance")
    add("--layers", type=sizes, metavar="SIZES")
    add("--head_dims", type=sizes, metavar="SIZES")
    add("--kv_heads", type=sizes, metavar="SIZES", help="key and value heads")
    add("--no_gqa", action="store_true", help="as many key and value heads as heads")
    add("--ffn_expansion_ratio", type=positive, help="d_ff over n_embd")
    add("--weight_tying", type=boolean, metavar="BOOL", nargs="?", const=True)
    add("--aspect_ratio", type=interval, metavar="LOW:HIGH", help="n_embd / n_layer; 0:inf bounds nothing")

    group = built.add_argument_group("the budget from hardware")
    add = group.add_argument
    add("--device", metavar="NAME", help=", ".join(device.name.replace(" ", "-") for device in DEVICES))
    add("--devices", type=whole, help="how many (default: 1)")
    add("--days", type=positive)
    add("--mfu", type=positive, help="model FLOPs utilisation, full attention, above 0 and at most 1")
    add("--dtype", help="compute dtype: bfloat16 (default), float16, tf32, float32")

    group = built.add_argument_group("the config file")
    add = group.add_argument
    add("--emit", type=Path, metavar="FILE.py", help="write the best candidate as a config file")
    add("--dataset", help="its dataset (default: python_stdlib for bytes, openwebtext for GPT-2's vocabulary)")
    add("--force", action="store_true", help="overwrite it")


def search_command(arguments: argparse.Namespace, argv: list[str]) -> int:
    """Search, print, and write what was asked for; nothing is written when anything is wrong."""
    check_outputs(arguments)
    search, notes = search_from(arguments)
    emits = arguments.emit is not None
    dataset = arguments.dataset or (choose_dataset(search.space.vocab_size) if emits else "")
    result = grid_search(search, keep=max(arguments.top_k, KEPT))
    found = report(result, uncertainty(result), arguments.top_k, notes)
    text = config_text(found.best, search, found.rules, dataset, command(argv)) if emits else None
    print(as_text(found))
    if arguments.json is not None:
        write_json(arguments.json, found)
    if text is not None:
        write_config(arguments.emit, text)
        print(f"\nwrote {arguments.emit}: python train.py {arguments.emit} --dry_run shows what it will do")
    return 0


def check_outputs(arguments: argparse.Namespace) -> None:
    """Raises UserError for a file that cannot be written, before anything is computed."""
    if arguments.emit is None:
        for option in ("dataset", "force"):
            if getattr(arguments, option):
                raise UserError(f"--{option} is for the config file: give --emit too")
    else:
        check_target(arguments.emit, arguments.force)
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise UserError(f"--json={arguments.json}: there is no folder {arguments.json.parent}")


def search_from(arguments: argparse.Namespace) -> tuple[Search, list[str]]:
    """The search that the arguments describe, and what must be said about its budget."""
    budget, notes = budget_from(arguments)
    published = arguments.flops_formula == "published"
    aspect_ratio = arguments.aspect_ratio
    if aspect_ratio is None and not published:
        aspect_ratio = default_aspect_ratio(budget)
    search = Search(
        budget=budget,
        law=find_law(arguments.law or (PUBLISHED_LAW if published else DEFAULT_LAW)),
        space=space_from(arguments, default_space(budget, arguments.arch)),
        flops_formula=arguments.flops_formula,
        tokens_min=arguments.tokens_min,
        tokens_max=arguments.tokens_max,
        aspect_ratio=aspect_ratio,
        enforce_chinchilla=arguments.enforce_chinchilla,
        max_params=arguments.max_params,
        unique_tokens=arguments.unique_tokens,
        inference_tokens=int(arguments.inference_tokens or 0),
    )
    return search, notes


def space_from(arguments: argparse.Namespace, default: SearchSpace) -> SearchSpace:
    """The default space with what the user gave in its place."""
    names = [field.name for field in dataclasses.fields(SearchSpace) if field.name != "arch"]
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.no_gqa:
        if arguments.kv_heads is not None:
            raise UserError("--no_gqa and --kv_heads contradict each other: give one of them")
        given["kv_heads"] = None
    return dataclasses.replace(default, **given)


def budget_from(arguments: argparse.Namespace) -> tuple[float, list[str]]:
    """FLOPs, given or from the hardware, and notes. Raises UserError where both or neither say it."""
    hardware = {name: getattr(arguments, name) for name in ("device", "devices", "days", "mfu", "dtype")}
    if arguments.grid_search != FROM_HARDWARE:
        if given := [name for name, value in hardware.items() if value is not None]:
            raise UserError(f"the budget is given twice: drop --{given[0]} or the number after --grid_search")
        return budget(arguments.grid_search), []
    if missing := [name for name in ("device", "days", "mfu") if hardware[name] is None]:
        raise UserError(f"--grid_search without a number takes the budget from the hardware: --{missing[0]} is missing")
    if arguments.mfu > 1:
        raise UserError(f"--mfu={arguments.mfu:g} is more than the device can do: give a fraction, such as 0.45")
    peak, dtype = device_peak(arguments.device, arguments.dtype or "bfloat16"), arguments.dtype or "bfloat16"
    devices = arguments.devices or 1
    flops = devices * peak * arguments.mfu * arguments.days * 86_400
    note = (
        f"budget = {devices} x {peak:.4g} FLOP/s ({arguments.device}, {dtype}, dense) x MFU {arguments.mfu:g} "
        f"x {arguments.days:g} days = {flops:.4g}; whether a candidate fits the memory is not checked"
    )
    return flops, [note]


def device_peak(name: str, dtype: str) -> float:
    """Dense FLOP/s of a device of the table by its name, written with spaces, - or _. Raises UserError."""
    by_name = {plain(device.name): device for device in DEVICES}
    device = by_name.get(plain(name))
    if device is None:
        listed = [known.name.replace(" ", "-") for known in DEVICES]
        raise UserError(f"device {name!r} is none of: {', '.join(listed)}{did_you_mean(name, listed)}")
    if dtype not in device.peak_flops:
        raise UserError(f"{device.name} does not compute in {dtype!r}; it has {', '.join(device.peak_flops)}: --dtype")
    return device.peak_flops[dtype]


def plain(name: str) -> str:
    return re.sub(r"[-_ ]+", " ", name).strip().lower()


def command(argv: list[str]) -> str:
    return shlex.join(["python", "flops_parameter_counting/detailed_cost_analysis.py", *argv])


def write_json(path: Path, found: Report) -> None:
    try:
        path.write_text(json.dumps(as_json(found), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


# ---------------------------------------------------------------------------------------------------------------------
# Values on the command line


def converter(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """Gives argparse the message of a ValueError instead of its own."""

    def converted(text: str) -> Any:
        try:
            return convert(text)
        except (ValueError, OverflowError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converted


def number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {what}") from None
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is not {what}")
    return value


@converter
def positive(text: str) -> float:
    return number(text, "a number above 0")


def budget(text: str) -> float:
    try:
        return number(text, "a number of FLOPs above 0")
    except ValueError as error:
        raise UserError(f"--grid_search: {error}") from None


@converter
def whole(text: str) -> int:
    value = number(text, "a whole number above 0")
    if value != int(value):
        raise ValueError(f"{text!r} is not a whole number above 0")
    return int(value)


@converter
def sizes(text: str) -> tuple[int, ...] | range:
    """`64,128`, `1024:8192:256` (as Python's range, without the end), or both: `64,128:512:128`."""
    parts = [size_range(part) for part in text.split(",")]
    return parts[0] if len(parts) == 1 else tuple(size for part in parts for size in part)


def size_range(text: str) -> range:
    bounds = text.split(":")
    if not all(bound.strip().isdecimal() for bound in bounds) or len(bounds) > 3:
        raise ValueError(f"{text!r} is neither a size nor first:end:step")
    first, *rest = map(int, bounds)
    if rest[1:] == [0]:
        raise ValueError(f"{text!r} has a step of 0")
    found = range(first, *rest) if rest else range(first, first + 1)
    if first < 1 or not found:
        raise ValueError(f"{text!r} holds no size of 1 or more")
    return found


@converter
def interval(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise ValueError(f"{text!r} is not low:high") from None
    if not 0 <= low <= high:
        raise ValueError(f"{text!r} is not low:high, with 0 <= low <= high")
    return low, high


@converter
def boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither True nor False")
    return text.lower() == "true"


if __name__ == "__main__":
    main()
