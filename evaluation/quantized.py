"""A model before and after its matrices took few bits: size, speed, and what it says of a text."""

import dataclasses
from collections.abc import Sequence

from common.units import bytes_text
from evaluation.figures import Figure, aligned
from evaluation.held_out import HeldOut, bits_per_byte, read_windows
from evaluation.paired import Difference, differences
from evaluation.speed import Speed, measure
from evaluation.subject import Subject
from inference.quantization import Loss


@dataclasses.dataclass(frozen=True)
class State:
    """What was measured of a model."""

    speed: Speed
    figures: list[Figure]


def state_of(subject: Subject, text: HeldOut, tokens: int | None) -> State:
    """`tokens`: of how many of the text, None: of all. On the device that the model is on."""
    figures = bits_per_byte(subject, read_windows(subject, text, subject.block, tokens))
    return State(measure(subject.model), figures)


def table_of_losses(losses: Sequence[Loss]) -> list[str]:
    """A line for each block: what its matrices lost, in the mean of their squares, and which lost most."""
    rows = [("", "matrices", "lost of them", "of their outputs", "most of", "")]
    places: dict[str, list[Loss]] = {}
    for loss in losses:
        parts = loss.name.split(".")
        places.setdefault(f"block {parts[1]}" if parts[0] == "blocks" else "tables", []).append(loss)
    for place, own in places.items():
        most = max(own, key=lambda loss: loss.of_matrix)
        fitted = [loss.of_outputs for loss in own if loss.of_outputs is not None]
        name = most.name.removesuffix(".weight").removeprefix(place.replace("block ", "blocks.") + ".")
        outputs = f"{_root_mean_square(fitted):.2%}" if fitted else "n/a"
        lost = _root_mean_square([loss.of_matrix for loss in own])
        rows.append((place, f"{len(own)}", f"{lost:.2%}", outputs, f"{most.of_matrix:.2%}", name))
    return aligned(rows, left=(0, 5))


def _root_mean_square(values: Sequence[float]) -> float:
    return (sum(value * value for value in values) / len(values)) ** 0.5


def table_of_states(before: State, after: State, files: tuple[int, int]) -> list[str]:
    """Both beside each other."""
    rows: list[tuple[str, ...]] = [("", "before", "after", "")]
    rows.append(("weights, on the disk", *map(bytes_text, files), f"{files[1] / files[0]:.3f}"))
    sizes = [state.speed.weight_bytes for state in (before, after)]
    rows.append(("weights, in memory", *map(bytes_text, sizes), f"{sizes[1] / sizes[0]:.3f}"))
    for name, of in (
        ("prompt, tokens/s", "prefill_tokens_per_second"),
        ("then, tokens/s", "decode_tokens_per_second"),
    ):
        values = [getattr(state.speed, of) for state in (before, after)]
        rows.append((name, *(f"{value:,.0f}" for value in values), f"{values[1] / values[0]:.2f} times"))
    for old, new in zip(before.figures, after.figures, strict=True):
        rows.append((new.metric, f"{old.value:.4f}", f"{new.value:.4f}", _change(change(old, new), old, new)))
    return aligned(rows, left=(0, 3))


def change(old: Figure, new: Figure) -> Difference | None:
    """Of the figures of one text, sample by sample; None where it has none."""
    return None if new.sums is None else differences([new], {}, {}, [old])[0]


def _change(found: Difference | None, old: Figure, new: Figure) -> str:
    relative = f"{new.value / old.value - 1:+.3%}"
    if found is None:
        return relative
    low, high = (end / old.value for end in found.interval)
    return f"{relative} (95 %: {low:+.3%} to {high:+.3%}; {new.samples} {new.of})"
