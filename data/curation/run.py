"""A plan carried out, from what is noted of it to the output.

    <output_dir>/documents/00012.jsonl.zst    what is left of file 12
    <output_dir>/report.html                  what was removed
    <output_dir>/manifest.json                all counts, and what the output follows from; written last
    <output_dir>/.curation/                   what is between, until then

Without a manifest it is not done. Killed at any instant and started again, the same command goes on, and leaves the
same bytes, whatever the number of processes.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import replace_file, sync, writing_to
from common.locks import left_as_it_was, lock
from data.curation.contamination import write_index
from data.curation.execution import On, run_stages
from data.curation.filters import check_languages, read_bad_words
from data.curation.quality import train
from data.curation.records import Step, read_steps
from data.curation.report import UNLISTED, counts, page, replaced, share
from data.curation.stages import INPUT, PERSONAL, WRITTEN, Plan
from data.long_work import begin_or_go_on

DOCUMENTS = "documents"
LIBRARIES = ("datatrove", "py3langid", "xxhash", "zstandard")  # whose versions the output depends on


def curate(plan: Plan, workers: int, say: Callable[[str], None] = print, on: On | None = None) -> None:
    """Raises UserError, also where the folder has another curation. `on`: other machines than this one."""
    check_languages(plan.recipe.languages)
    with writing_to(plan.output_dir), left_as_it_was(plan.output_dir):
        held = lock(plan.output_dir)
        if held is None:
            raise UserError(f"another process is curating into {plan.output_dir}: wait until it has finished")
        with held:
            if _is_done(plan):
                say(f"{plan.output_dir} is done already")
            else:
                _begin(plan)
                prepare_needs(plan, say)
                run_stages(plan, workers, say, on)
                _finish(plan, say)
            shutil.rmtree(plan.folder, ignore_errors=True)


def _description(plan: Plan) -> dict[str, Any]:
    """What the output follows from."""
    return {
        "input": [part.identity for part in plan.parts],
        "recipe": dataclasses.asdict(plan.recipe),
        "files": [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in plan.needs.paths],
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def _is_done(plan: Plan) -> bool:
    """Raises UserError for another curation, or one of which something is missing."""
    path = plan.output_dir / "manifest.json"
    if not path.exists():
        return False
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("made_of") != _plain(_description(plan)):
        raise UserError(f"{path} is of something else than this command: choose another --output_dir")
    for entry in manifest["files"]:
        file = plan.output_dir / DOCUMENTS / entry["file"]
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise UserError(f"{file} is not as {path} says: remove {plan.output_dir} to begin anew")
    return True


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


def _begin(plan: Plan) -> None:
    """The plan is noted, or the same one is there."""
    note = plan.folder / "plan.json"
    if not note.exists() and (plan.output_dir / DOCUMENTS).exists():
        raise UserError(f"{plan.output_dir / DOCUMENTS} is there already: choose another --output_dir")
    begin_or_go_on(
        note,
        json.dumps(_description(plan), indent=1) + "\n",
        f"{plan.output_dir} has a curation of other texts, or with other values, that was not ended: give the same "
        f"command to go on, or remove {plan.folder} to begin anew",
    )


def prepare_needs(plan: Plan, say: Callable[[str], None]) -> None:
    """What steps need of the user's files, which is checked before hours of work."""
    for step, why in plan.left_out.items():
        say(f"left out: {step}, as {why}")
    if plan.needs.bad_words:
        read_bad_words(plan.needs.bad_words)
    if plan.needs.evaluation:
        texts, short = write_index(plan.evaluation, plan.needs.evaluation, plan.recipe.contamination_words)
        say(f"evaluation: {texts:,} texts, of which {short:,} are shorter than {plan.recipe.contamination_words} words")
    if plan.scores:
        model = train(plan.recipe.quality_by, plan.needs.good, plan.needs.bad)
        model.save(plan.model)
        if plan.needs.bad:
            say(f"quality: a good example scores above a bad one with a probability of {model.auc:.3f} (held out)")


def _finish(plan: Plan, say: Callable[[str], None]) -> None:
    """The output, its report and then its manifest."""
    steps = read_steps(plan)
    report = plan.output_dir / "report.html"
    replace_file(report, page(plan, steps).encode(), on_disk=True)
    say(table(steps))
    if not steps[WRITTEN].kept:
        raise UserError(f"nothing is left of {steps[INPUT].kept:,} documents: {report} says why")
    written, documents = plan.folder / plan.passes[-1].name, plan.output_dir / DOCUMENTS
    if written.exists():
        written.rename(documents)
    files = [_file(path) for path in sorted(documents.glob("*.jsonl.zst"))]
    manifest = {"made_of": _description(plan), "steps": counts(steps), "left_out": plan.left_out, "files": files}
    sync(documents)
    replace_file(plan.output_dir / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode(), on_disk=True)
    sync(plan.output_dir)
    say(f"documents: {documents}; report: {report}")


def _file(path: Path) -> dict[str, Any]:
    sync(path)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": found}


def table(steps: dict[str, Step]) -> str:
    """A line for each step, for people."""
    lines = [f"{'step':<16}{'came':>12}{'removed':>12}{'share':>8}"]
    for name, step in steps.items():
        if name not in UNLISTED:
            lines.append(f"{name:<16}{step.seen:>12,}{step.removed:>12,}{share(step.removed, step.seen):>8}")
    if personal := steps.get(PERSONAL):
        lines.append(f"replaced: {replaced(personal)}")
    kept, read = steps[WRITTEN].kept, steps[INPUT].kept
    return "\n".join([*lines, f"left: {kept:,} of {read:,} documents ({share(kept, read)})"])
