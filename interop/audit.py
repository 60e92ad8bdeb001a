"""The counts of this repository beside those of transformers' class, part by part (interop/tracing.py)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from common.errors import UserError
from flops_parameter_counting.costs.model_cost import model_cost, with_backward
from flops_parameter_counting.costs.report import row
from interop.model_files import model_from_values
from interop.tracing import Traced, trace
from model_config import ModelArchitectureConfig

# Tokens of an audit, unless somebody says otherwise: counts are whole numbers and compared to the last one, so that a
# wrong formula shows at this length as at any; and transformers' Mamba takes a step for each.
LENGTH = 32


@dataclasses.dataclass(frozen=True)
class Audit:
    """For each part what is counted here and what was traced: parameters, those that a token meets, and forward FLOPs
    of a whole sequence. `not_compared`: FLOPs that only look alike, and why."""

    name: str
    model_class: str
    sequence_length: int
    parameters: dict[str, tuple[int, int]]
    active: dict[str, tuple[int, int]]
    flops: dict[str, tuple[int, int]]
    not_compared: dict[str, str]
    notes: tuple[str, ...]

    @property
    def tables(self) -> dict[str, dict[str, tuple[int, int]]]:
        return {"parameters": self.parameters, "active parameters": self.active, "FLOPs": self.flops}

    def differences(self) -> list[str]:
        """Each names its part."""
        return [
            f"{what} of {part}: {ours:,} here, {theirs:,} by {self.model_class}"
            for what, found in self.tables.items()
            for part, (ours, theirs) in found.items()
            if ours != theirs and (what != "FLOPs" or part not in self.not_compared)
        ]

    def check(self) -> None:
        """Raises UserError for what differs."""
        if found := self.differences():
            raise UserError(f"{self.name}: the audit differs in {'; '.join(found)}")

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        found = {
            what.replace(" ", "_"): {part: {"ours": ours, "traced": theirs} for part, (ours, theirs) in parts.items()}
            for what, parts in self.tables.items()
        }
        return {
            "class": self.model_class,
            "sequence_length": self.sequence_length,
            "parameters": found["parameters"],
            "active_parameters": found["active_parameters"],
            "flops_of_sequence": found["FLOPs"],
            "not_compared": self.not_compared,
            "differences": self.differences(),
            "notes": list(self.notes),
        }

    def as_text(self) -> str:
        lines = [f"AUDIT beside {self.model_class} of transformers"]
        what_of = {"FLOPs": f"forward FLOPs of {self.sequence_length:,} tokens, full"}
        for what, parts in self.tables.items():
            if what != "active parameters" or self.active != self.parameters:
                lines.append(f"  {what_of.get(what, what):<38}{'here':>22}{'traced':>22}")
                lines += [self._row(what, part, *counts) for part, counts in parts.items()]
        lines += [f"  {part} is not compared: {why}" for part, why in self.not_compared.items()]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def _row(self, what: str, part: str, ours: int, theirs: int) -> str:
        verdict = "not compared" if what == "FLOPs" and part in self.not_compared else ""
        if not verdict and ours != theirs:
            verdict = "DIFFERS"
        return f"    {part:<36}{ours:>22,}{theirs:>22,}  {verdict}".rstrip()


def audit(values: Mapping[str, Any], name: str, sequence_length: int | None = None) -> Audit:
    """The content of a config.json of a family that has a room here -> both counts. The sequences are no longer than a
    window, beyond which the class computes what its mask then hides. Raises UserError for a model that either cannot
    count."""
    config = model_from_values(values, name).architecture
    length, notes = _length(config, sequence_length)
    cost, traced = model_cost(config, length), trace(values, length)
    return Audit(
        name=name,
        model_class=traced.model_class,
        sequence_length=length,
        parameters=_beside(cost.parameters, traced.parameters),
        active=_beside(cost.active, traced.active),
        flops=_beside({part: count * length for part, count in cost.flops.items()}, traced.flops),
        not_compared=dict.fromkeys(traced.unlike, _OTHER_FORM),
        notes=(*notes, *traced.notes),
    )


_OTHER_FORM = "the class computes it in another form, partly elementwise and in whole chunks"


def _length(config: ModelArchitectureConfig, asked: int | None) -> tuple[int, list[str]]:
    """Tokens of a sequence, and what there is to say of that."""
    length = asked or min(LENGTH, config.block_size)
    windows = [
        layer.mixer_spec.window(config.of(layer), length)
        for layer in config.layer_counts
        if getattr(layer.mixer_spec, "has_window", False)
    ]
    if (within := min([length, *windows])) == length:
        return length, []
    return within, [f"audited at {within:,} tokens, the window: a longer text is computed in full by the class"]


def _beside(ours: Mapping[str, int], theirs: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    parts = {part: (ours.get(part, 0), theirs.get(part, 0)) for part in (*ours, *theirs)}
    return {part: counts for part, counts in sorted(parts.items(), key=lambda one: one[0] == "lm_head") if any(counts)}


# ---------------------------------------------------------------------------------------------------------------------
# A model without a room


def describe_traced(traced: Traced, name: str, model_type: str, convention: str) -> dict[str, Any]:
    """What costs/report.py's `describe` says of a model, as far as a trace tells it: parameters, and FLOPs in the full
    convention."""
    length = traced.sequence_length
    by_part = {part: _per_token(count, length) for part, count in _head_last(traced.flops).items() if count}
    forward = _per_token(sum(traced.flops.values()), length)
    return {
        "name": name,
        "family": model_type,
        "traced": traced.model_class,
        "sequence_length": length,
        "convention": convention,
        "parameters": {
            "total": sum(traced.parameters.values()),
            "active": sum(traced.active.values()),
            "by_part": _head_last(traced.parameters),
            "active_by_part": _head_last(traced.active),
        },
        "flops_per_token": {"forward": forward, "training": with_backward(forward), "by_part": by_part},
        "not_seen": [f"{part}: {_OTHER_FORM}" for part in traced.unlike],
        "notes": [*traced.notes, "memory, cache, decoding and the causal convention are not counted of a traced model"],
    }


def _per_token(flops: int, length: int) -> int | float:
    return flops // length if flops % length == 0 else flops / length


def _head_last(parts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(parts.items(), key=lambda one: one[0] == "lm_head"))


def traced_as_text(found: dict[str, Any]) -> str:
    """What `describe_traced` found, in several paragraphs."""
    parameters, flops = found["parameters"], found["flops_per_token"]
    total, active, forward = parameters["total"], parameters["active"], flops["forward"]
    paragraphs = [
        f"{found['name']} ({found['family']}, traced), sequences of {found['sequence_length']:,} tokens\n"
        f"{found['convention']}",
        f"PARAMETERS {total:,}" + (f", of which a token meets {active:,}" if active != total else ""),
        "FLOPs PER TOKEN\n"
        f"  forward                   {forward:>22,}  full\n"
        f"  training                  {flops['training']:>22,}  full\n"
        "  of the forward pass, full:",
    ]
    paragraphs[1] += "".join(f"\n{row(part, count, total)}" for part, count in parameters["by_part"].items())
    paragraphs[2] += "".join(f"\n{row(part, count, forward)}" for part, count in flops["by_part"].items())
    seen = [f"not seen whole: {one}" for one in found["not_seen"]]
    return "\n\n".join([*paragraphs, "\n".join([*seen, *(f"note: {note}" for note in found["notes"])])])
