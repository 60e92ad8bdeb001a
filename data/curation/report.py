"""The page that says what was kept and removed, with samples, for people; and the same counts as JSON."""

import dataclasses
import html
from typing import Any

from common.texts import harmless
from data.curation.files import read_samples
from data.curation.records import Step
from data.curation.stages import INPUT, PERSONAL, SCORE, WRITTEN, Plan

NEAR = 0.8  # of which the page says how often it is found
UNLISTED = (INPUT, SCORE, PERSONAL, WRITTEN)  # steps that remove nothing

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100% }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid #ddd }
th:first-child, td:first-child, .why { text-align: left }
pre { white-space: pre-wrap; background: #f6f6f6; padding: .6rem }
small { color: #666 } summary { cursor: pointer; font-weight: 600; margin-top: 1rem }
"""


def page(plan: Plan, steps: dict[str, Step]) -> str:
    """The whole page, which needs nothing but itself."""
    read, written = steps[INPUT], steps[WRITTEN]
    parts = [
        f"<h1>Curation of {read.kept:,} documents</h1>",
        f"<p>{written.kept:,} are left: {share(written.kept, read.kept)} of the documents, "
        f"{share(characters(written), characters(read))} of the characters.</p>",
        *_notes(plan, steps),
        "<table><tr><th>step</th><th>came</th><th>removed</th><th>share</th><th>left</th><th class=why>why</th></tr>",
        *(_row(name, step) for name, step in steps.items() if name not in UNLISTED),
        "</table><h2>Samples of what was removed</h2>",
        *(_samples(plan, name) for name, step in steps.items() if step.removed),
        "<h2>Values</h2><pre>",
        *(f"{name} = {value!r}\n" for name, value in dataclasses.asdict(plan.recipe).items()),
        "</pre>",
    ]
    head = f"<meta charset=utf-8><title>Curation</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def characters(step: Step) -> int:
    return step.counts.get("characters", 0)  # datatrove has no count of what never came


def share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "n/a"


def replaced(step: Step) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in step.counts.items()) or "nothing"


def _notes(plan: Plan, steps: dict[str, Step]) -> list[str]:
    notes = [f"left out: {step}, as {why}" for step, why in plan.left_out.items()]
    if empty := steps[INPUT].counts.get("empty"):
        notes.append(f"{empty:,} documents without text were not counted")
    if personal := steps.get(PERSONAL):
        notes.append(f"replaced: {replaced(personal)}")
    if "C4" in steps:
        lines = sum(count for name, count in steps["C4"].counts.items() if name.startswith("line-filter"))
        notes.append(f"C4: {lines:,} lines removed from documents, of those that it removed too")
    if "near copies" in steps:
        found = plan.recipe.found_share(NEAR)
        notes.append(f"near copies: two of Jaccard similarity {NEAR} are found with a probability of {found:.3f}")
    return [f"<p>{html.escape(note)}.</p>" for note in notes]


def _row(name: str, step: Step) -> str:
    why = ", ".join(f"{reason} {count:,}" for reason, count in sorted(step.reasons.items(), key=lambda one: -one[1]))
    cells = [f"{step.seen:,}", f"{step.removed:,}", share(step.removed, step.seen), f"{step.kept:,}"]
    numbers = "".join(f"<td>{cell}</td>" for cell in cells)
    return f"<tr><td>{html.escape(name)}</td>{numbers}<td class=why>{html.escape(why)}</td></tr>"


def _samples(plan: Plan, name: str) -> str:
    shown = []
    for sample in read_samples(plan.folder / "samples" / name):
        about = " · ".join(harmless(sample[key]) for key in ("id", "reason", "detail") if sample[key])
        text = "\n".join(harmless(line) for line in sample["text"].splitlines())
        shown.append(f"<p><small>{html.escape(about)}</small></p><pre>{html.escape(text)}</pre>")
    return f"<details><summary>{html.escape(name)}</summary>{''.join(shown)}</details>"


def counts(steps: dict[str, Step]) -> dict[str, Any]:
    """The same for a manifest."""
    return {name: dataclasses.asdict(step) | {"removed": step.removed} for name, step in steps.items()}
