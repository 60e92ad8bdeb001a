"""Runs, losses, costs and choices are those of the version that stood before the modules were put in order.
written_before/record.py says how they were recorded, and makes the same of this checkout."""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

WRITTEN = Path(__file__).parent / "written_before"

# Where the arithmetic is another than where the file was recorded: relative, or below 1e-6. A gradient is a difference
# of nearly equal numbers.
TOLERANCES = {"runs": 1e-5, "continued": 1e-5, "small_losses": 1e-5, "losses": 1e-5, "search": 1e-9}
OF_GRADIENTS = 1e-3
REFUSED = 2  # in place of a plan


@pytest.mark.slow
@pytest.mark.parametrize("part", ["runs", "continued", "small_losses", pytest.param("losses", marks=pytest.mark.soak)])
def test_training_is_as_it_was(part, tmp_path):
    """From scratch, and continued from checkpoints of that version: every record of the log, bit for bit where the
    arithmetic is that of the record."""
    unchanged(part, tmp_path)


@pytest.mark.parametrize("part", ["costs", "search"])
def test_plans_are_as_they_were(part, tmp_path):
    unchanged(part, tmp_path)


def unchanged(part: str, folder: Path) -> None:
    """Compares what was recorded with what is computed now, and says how."""
    record = [sys.executable, str(WRITTEN / "record.py"), str(ROOT), "--only", part, "--into", str(folder)]
    done = subprocess.run(record, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    before, now = (json.loads((of / f"{part}.json").read_text()) for of in (WRITTEN, folder))
    there, here = (found.pop("arithmetic", "Python's numbers") for found in (before, now))
    if there == here:
        tolerance = 0.0
        print(f"{part}: compared bit for bit ({here})")
    else:
        tolerance = TOLERANCES[part]
        before = {key: value for key, value in before.items() if "sampled" not in key}
        warnings.warn(f"{part}: compared to {tolerance:g} only: {here} here, {there} in the record", stacklevel=1)
    found = list(differences(before, now, tolerance))
    assert not found, f"{len(found)} differences:\n" + "\n".join(found[:50])


def differences(before: Any, now: Any, tolerance: float, place: str = "") -> Iterator[str]:
    """Every number, text and list that is another now; what is said besides is none, nor is why something was not
    known."""
    if place.endswith("> not_known") or (before == REFUSED and isinstance(now, dict | list)):
        return
    if _was_in_part(before) and not _was_in_part(now):  # what was known of it stands
        before = {key: value for key, value in before.items() if key not in ("total", "fits")}
    if isinstance(before, dict) and isinstance(now, dict):
        for key, value in before.items():
            inner = f"{place} > {key}" if place else key
            if key in now:
                yield from differences(value, now[key], tolerance, inner)
            else:
                yield f"{inner}: was {shortened(value)}, is missing"
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, pair in enumerate(zip(before, now, strict=True)):
            yield from differences(*pair, tolerance, f"{place}[{index}]")
    elif type(before) is not type(now) or (before != now and not close(before, now, tolerance, place)):
        yield f"{place}: was {shortened(before)}, is {shortened(now)}"


def _was_in_part(found: Any) -> bool:
    """Whether it is the memory of something of which activations were not known."""
    return isinstance(found, dict) and "activations" not in found.get("by_part", {"activations": 0})


def close(before: Any, now: Any, tolerance: float, place: str) -> bool:
    if not tolerance or isinstance(before, str | bool) or not isinstance(before, int | float):
        return False
    relative = OF_GRADIENTS if "grad" in place else tolerance
    return abs(before - now) <= max(relative * abs(before), min(1e-6, tolerance))


def shortened(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def test_a_difference_is_found_where_it_is():
    before = {"a": [1, {"loss": 2.0, "grad_norm": 3.0}], "b": "x", "c": 1}
    now = {"a": [1, {"loss": 2.0000001, "grad_norm": 3.0001}], "b": "x", "c": 1.0, "more": 4}
    assert list(differences(before, before, 0)) == []
    assert list(differences(before, now, 0)) == [
        "a[1] > loss: was 2.0, is 2.0000001", "a[1] > grad_norm: was 3.0, is 3.0001", "c: was 1, is 1.0"
    ]  # fmt: skip
    assert list(differences(before, now, 1e-5)) == ["c: was 1, is 1.0"]
    assert list(differences(before, {"a": [1], "b": "y", "c": 1}, 1e-5)) == [
        'a: was [1, {"loss": 2.0, "grad_norm": 3.0}], is [1]', 'b: was "x", is "y"'
    ]  # fmt: skip
    assert list(differences(before, {"a": before["a"], "c": 1}, 0)) == ['b: was "x", is missing']


def test_a_config_file_with_a_cost_function_says_what_took_its_place(tmp_path):
    """As the README showed it before the rooms."""
    (tmp_path / "sine.py").write_text(
        "import torch\n"
        "from flops_parameter_counting.component_costs import ComponentCost\n"
        "from model_components import register\n"
        "@register('activation', 'sine', cost=lambda config, sequence_length: ComponentCost())\n"
        "class Sine(torch.nn.Module):\n"
        "    pass\n"
        "activation = 'sine'\n"
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), str(tmp_path / "sine.py")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: \S*sine.py:2: .*docs/extending.md, 'From a cost function to a spec', .*\n", done.stderr
    )
    assert "## From a cost function to a spec" in (ROOT / "docs/extending.md").read_text()
