"""Curation on a corpus in which everything that is to be found was planted: what each step removes, against what is
counted here without it; the same bytes after any kill; what cannot be curated."""

import dataclasses
import functools
import itertools
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from kills import killed_after

pytest.importorskip("datatrove")

from datatrove.executor.base import PipelineExecutor
from datatrove.io import DataFolder

from common.errors import UserError
from data.curation import files, records, report, run
from data.curation.personal import PersonalData
from data.curation.recipe import RECIPES, Needs, Recipe, read_recipe
from data.curation.stages import INPUT, PERSONAL, WRITTEN, Plan
from data.curation.words import WORDS
from data.documents import Documents
from data.parts import FilePart

CURATE = ROOT / "data/curate.py"
NOUNS = {
    "en": "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water room "
    "mother area money story fact month lot right study book eye job word business issue side kind head house service",
    "de": "Zeit Jahr Mensch Weg Tag Mann Ding Frau Leben Kind Welt Schule Staat Familie Gruppe Land Hand Teil Ort Fall "
    "Woche Firma Frage Arbeit Regierung Zahl Nacht Punkt Haus Wasser Zimmer Mutter Geld Geschichte Monat Recht Buch",
    "fr": "temps année gens chemin jour homme chose femme vie enfant monde école état famille groupe pays main partie "
    "lieu cas semaine question travail gouvernement nombre nuit point maison eau chambre mère argent histoire mois",
}
BETWEEN = {
    "en": [
        "of",
        "and the",
        "to a",
        "with a",
        "that have the",
        "in their",
        "was not the",
        "should be",
        "would like this",
        "must find our",
        "from no",
        "under some",
        "beside your",
        "gives any",
        "takes her",
        "sees that",
        "knows its",
        "will be my",
        "for",
        "had both",
        "near another",
        "keeps every",
        "shows his",
        "without",
    ],
    "de": ["und die", "nicht mit dem", "über eine", "wird durch die", "ist aber kein", "zwischen der"],
    "fr": ["et la", "avec une", "qui est dans le", "mais pas pour la", "ne sont pas des", "sur les"],
}
FIRST = {"en": "The", "de": "Die", "fr": "La"}
WITHOUT = dict.fromkeys(
    ("gopher_repetition", "gopher_quality", "c4_quality", "fineweb_quality", "exact_duplicates", "near_duplicates",
     "replace_personal"), False
)  # fmt: skip
BARE = Recipe(min_characters=1, languages=(), **WITHOUT)  # nothing but lengths


def sentence(rng: random.Random, language: str) -> str:
    nouns = NOUNS[language].split()
    words = [FIRST[language], rng.choice(nouns)]
    for _ in range(rng.randint(3, 6)):
        words += [rng.choice(BETWEEN[language]), rng.choice(nouns)]
    return " ".join(words) + "."


def prose(rng: random.Random, language: str = "en") -> str:
    """A document that nothing is wrong with, but for its language."""
    return "\n".join(" ".join(sentence(rng, language) for _ in range(4)) for _ in range(3))


def plan_of(folder: Path, texts: list[str] | dict[str, str], recipe: Recipe, needs: Needs | None = None) -> Plan:
    """Texts, dealt out to three files."""
    given = list(texts.values()) if isinstance(texts, dict) else texts
    folder.mkdir(exist_ok=True)
    for number in range(3):
        lines = [json.dumps({"text": text}) + "\n" for text in given[number::3]]
        (folder / f"{number}.jsonl").write_text("".join(lines))
    parts = [FilePart(path, "text", "paragraphs") for path in sorted(folder.glob("?.jsonl"))]
    return Plan(folder / "out", tuple(parts), recipe, needs or Needs())


def curate(plan: Plan) -> dict[str, records.Step]:
    """Carries the plan out in this process; returns its steps."""
    kept: list[dict[str, records.Step]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "counts", lambda steps: kept.append(steps) or report.counts(steps))
        run.curate(plan, 1, lambda _: None)
    return kept[0]


def left(plan: Plan) -> list[str]:
    """The texts of the output, in its order."""
    return list(Documents(sorted((plan.output_dir / "documents").iterdir())))


# ---------------------------------------------------------------------------------------------------------------------
# Truth


@dataclasses.dataclass
class Planted:
    """Documents by what was planted, and what the run made of them."""

    texts: dict[str, str]  # by names such as "german 3"
    plan: Plan
    steps: dict[str, records.Step]
    removed: dict[str, set[str]]  # by step, their names

    def of(self, kind: str) -> set[str]:
        return {name for name in self.texts if name.startswith(f"{kind} ")}


def planted_texts(rng: random.Random, exams: list[str]) -> dict[str, str]:
    texts = {f"good {one}": prose(rng) for one in range(90)}
    texts |= {f"german {one}": prose(rng, "de") for one in range(15)}
    texts |= {f"french {one}": prose(rng, "fr") for one in range(15)}
    texts |= {f"short {one}": sentence(rng, "en")[:99] for one in range(5)}
    texts |= {f"long {one}": "word " * 200_000 + "x" * (1 + one) for one in range(2)}
    texts |= {f"repeated {one}": "\n".join([sentence(rng, "en")] * 12) for one in range(6)}
    texts |= {f"hashes {one}": prose(rng).replace(" ", " # ", 30) for one in range(5)}
    texts |= {f"bracket {one}": prose(rng).replace(" the", " the {x}", 1) for one in range(5)}
    texts |= {f"lines {one}": prose(rng).replace(".", "\n").replace("\n ", "\n") for one in range(5)}
    texts |= {f"bad {one}": prose(rng) + " The Frobnicators of the house." for one in range(5)}
    texts |= {f"leaked {one}": f"{prose(rng)} {' '.join(exams[one].split()[2:15])}." for one in range(10)}
    texts |= {f"akin {one}": f"{prose(rng)} {' '.join(exams[one].split()[2:14])}." for one in range(10)}
    texts |= {f"personal {one}": f"{prose(rng)} Mail a{one}@b.org." for one in range(6)}
    texts |= {f"copy {one}": texts[f"good {one}"] for one in range(20)}
    texts |= {f"copy {one}": texts[f"good {one - 20}"] for one in range(20, 30)}
    texts |= {f"near {one}": texts[f"good {one}"] + " The end." for one in range(40, 60)}
    return texts


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("planted"), random.Random(5)
    exams = [
        " ".join(f"{one}{'abcdefghij'[n % 10]}{'klmnopqrst'[n // 10]}" for n in range(20))
        for one in NOUNS["en"].split()
    ]
    texts = planted_texts(rng, exams)
    names = list(texts)
    rng.shuffle(names)
    texts = {name: texts[name] for name in names}
    (folder / "exams.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in exams))
    (folder / "bad.txt").write_text("frobnicators\n\nother word\n")
    needs = Needs(bad_words=folder / "bad.txt", evaluation=(folder / "exams.jsonl",))
    plan = plan_of(folder / "texts", texts, Recipe(), needs)
    removed: dict[str, set[str]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "SAMPLES", len(texts))
        patch.setattr(files, "EXCERPT", 10)
        patch.setattr(
            report, "_samples", lambda plan, step: removed.setdefault(step, all_removed(plan, step, names)) and ""
        )
        steps = curate(plan)
    return Planted(texts, plan, steps, removed)


def all_removed(plan: Plan, step: str, names: list[str]) -> set[str]:
    ids = [sample["id"] for sample in files.read_samples(plan.folder / "samples" / step)]
    found = [re.fullmatch(r".*(\d)\.jsonl, document (\d+)", one).groups() for one in ids]
    return {names[3 * (int(document) - 1) + int(file)] for file, document in found}


STEPS = {
    "length": ["short", "long"], "language": ["german", "french"], "repetition": ["repeated"], "Gopher": ["hashes"],
    "C4": ["bracket"], "FineWeb": ["lines"], "bad words": ["bad"], "contamination": ["leaked"],
}  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_a_step_removes_what_was_planted_for_it_and_nothing_else(planted, step):
    """Recall and precision are both 1."""
    expected = set().union(*(planted.of(kind) for kind in STEPS[step]))
    assert planted.removed[step] == expected
    assert planted.steps[step].removed == len(expected)


def test_of_copies_one_is_left(planted):
    """Of 30 copies of 20 documents 30 go, whichever they are."""
    by_text: dict[str, list[str]] = {}
    for name in planted.texts:
        by_text.setdefault(planted.texts[name], []).append(name)
    copied = [set(names) for names in by_text.values() if len(names) > 1]
    assert len(copied) == 20 and planted.steps["copies"].removed == sum(len(names) - 1 for names in copied) == 30
    for names in copied:
        assert len(names & planted.removed["copies"]) == len(names) - 1


def test_of_near_copies_one_is_left(planted):
    """Every planted pair has a similarity above 0.95, no other pair one above 0.3, all counted by brute force."""
    kinds = ("good", "near", "akin", "personal")
    shingles = {name: shingles_of(planted.texts[name]) for kind in kinds for name in sorted(planted.of(kind))}
    similar = {(a, b): jaccard(shingles[a], shingles[b]) for a, b in itertools.combinations(shingles, 2)}
    pairs = [{f"good {one}", f"near {one}"} for one in range(40, 60)]
    assert all(value > 0.95 if {a, b} in pairs else value < 0.3 for (a, b), value in similar.items())
    assert all(len(pair & planted.removed["near copies"]) == 1 for pair in pairs)
    assert planted.steps["near copies"].removed == len(pairs)


def test_what_is_left_is_what_no_step_removed(planted):
    gone = set().union(*planted.removed.values())
    expected = [PersonalData().format(planted.texts[name]) for name in planted.texts if name not in gone]
    assert sorted(left(planted.plan)) == sorted(expected)
    assert planted.steps[INPUT].kept == len(planted.texts)
    assert planted.steps[WRITTEN].kept == len(expected) == 90 + 10 + 6
    assert planted.steps[PERSONAL].counts == {"emails": 6}
    for before, after in itertools.pairwise(planted.steps.values()):
        assert after.seen == before.kept


def test_the_manifest_is_of_what_is_there(planted):
    manifest = json.loads((planted.plan.output_dir / "manifest.json").read_text())
    for entry in manifest["files"]:
        assert (planted.plan.output_dir / "documents" / entry["file"]).stat().st_size == entry["bytes"]
    assert manifest["steps"]["copies"]["removed"] == 30
    assert manifest["left_out"] == {"quality": "no --good examples were given"}
    assert not planted.plan.folder.exists()


def shingles_of(text: str, words: int = 5) -> set[tuple[str, ...]]:
    found = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(found[start : start + words]) for start in range(len(found) - words + 1)}


def jaccard(one: set, other: set) -> float:
    return len(one & other) / len(one | other)


@pytest.mark.parametrize("replaced, similarity", [(2, 170 / 190), (4, 0.8), (9, 0.6)])
def test_near_copies_are_found_as_often_as_the_closed_form_says(tmp_path, replaced, similarity):
    """Pairs of 184 words, of which the second has some words replaced, more than 5 apart: each takes 5 shingles of 180
    away."""
    rng, pairs, letters = random.Random(replaced), 400, "abcdefghijklmnopqrstuvwxyz"

    def word() -> str:
        return "".join(rng.choice(letters) for _ in range(9))

    texts = []
    for _ in range(pairs):
        words = [word() for _ in range(184)]
        other = list(words)
        for place in range(replaced):
            other[10 + place * 18] = word()
        texts += [" ".join(words), " ".join(other)]
    for one, other in zip(texts[::2], texts[1::2], strict=True):
        assert jaccard(shingles_of(one), shingles_of(other)) == pytest.approx(similarity)
    recipe = dataclasses.replace(BARE, near_duplicates=True)
    found = curate(plan_of(tmp_path / "texts", texts, recipe))["near copies"].removed / pairs
    expected = recipe.found_share(similarity)
    assert abs(found - expected) < 3.5 * (expected * (1 - expected) / pairs) ** 0.5 + 0.5 / pairs, (found, expected)
    assert Recipe().found_share(0.8) == pytest.approx(0.924, abs=5e-4)


def test_documents_that_differ_in_numbers_are_no_copies(tmp_path):
    """datatrove takes any number for 0, and would leave one of them."""
    rng = random.Random(0)
    tables = [
        " ".join(f"row {rng.randrange(10**6)} costs {rng.randrange(10**6)}" for _ in range(40)) for _ in range(60)
    ]
    steps = curate(plan_of(tmp_path / "texts", tables, dataclasses.replace(BARE, near_duplicates=True)))
    assert steps["near copies"].removed == 0


@pytest.mark.parametrize("text, expected", [
    ("Mail jo.hn+x@mail.example.org, or foo@bar.", "Mail email@example.com, or foo@bar."),
    ("<q@r.net> 'x@y.org' mailto:a@b.co", "<email@example.com> 'email@example.com' mailto:email@example.com"),
    ("8.8.8.8 and 10.0.0.1, 256.1.1.1, 1.2.3.4.5", "192.0.2.1 and 10.0.0.1, 256.1.1.1, 1.2.3.4.5"),
    ("2001:4860:4860::8888, fe80::1, std::vector, a::b, 12:30:45", "2001:db8::1, fe80::1, std::vector, a::b, 12:30:45"),
    ("(202) 555-0143, 202-555-0143, 1 202 555 0143.", "202-555-0100, 202-555-0100, 202-555-0100."),
    ("+44 20 7946 0958, +49 (0)30 901820. 1 more", "202-555-0100, 202-555-0100. 1 more"),
    ("978-3-16-148410-0, 2021-11-30, 1234567890, 3.14159, 192-168-0001", None),
])  # fmt: skip
def test_personal_data_gives_way_to_nobodys(text, expected):
    assert PersonalData().format(text) == (expected or text)
    assert PersonalData().format(PersonalData().format(text)) == PersonalData().format(text)


@pytest.mark.parametrize("text", ["a.", "1.", "+1", "a:", "1 ", "a@", "(202) ", "a-", "1"])
def test_personal_data_take_time_linear_in_a_text(text):
    """datatrove's pattern takes 4 times as long for twice the first of them: hours for the longest document."""
    began = os.times().user
    PersonalData().format(text * 100_000)
    assert os.times().user - began < 5


def test_words_and_sentences():
    assert WORDS.word_tokenize("Don't stop (now), 漢字 3.5!") == [
        "Don't",
        "stop",
        "(",
        "now",
        ")",
        ",",
        "漢",
        "字",
        "3",
        ".",
        "5",
        "!",
    ]
    assert WORDS.sent_tokenize('One. "Two?" Three') == ["One.", '"Two?"', "Three"]
    assert WORDS.sent_tokenize(" ") == []


# ---------------------------------------------------------------------------------------------------------------------
# Quality


@pytest.mark.parametrize("by", ["classifier", "perplexity"])
def test_the_lowest_share_goes_and_it_is_the_bad_ones(tmp_path, by):
    """Good and bad documents that no example was: at least 95 of 100 are on their side."""
    rng = random.Random(3)
    kinds = {"good": "en", "bad": "fr"}
    for kind, language in kinds.items():
        lines = [json.dumps({"text": prose(rng, language)}) + "\n" for _ in range(60)]
        (tmp_path / f"{kind}.jsonl").write_text("".join(lines))
    needs = Needs(good=(tmp_path / "good.jsonl",), bad=(tmp_path / "bad.jsonl",))
    texts = [prose(rng) for _ in range(70)] + [prose(rng, "fr") for _ in range(30)]
    rng.shuffle(texts)
    plan = plan_of(tmp_path / "texts", texts, dataclasses.replace(BARE, quality_by=by, quality_removed=0.3), needs)
    step = curate(plan)["quality"]
    assert step.removed == 30
    assert sum(text.startswith("The") for text in left(plan)) >= 0.95 * 70


def test_the_area_under_a_curve():
    from data.curation.quality import area_under_curve

    assert area_under_curve([(3.0, 1), (2.0, 0), (1.0, 1), (1.0, 0)]) == (1 + 1 + 0 + 0.5) / 4
    assert area_under_curve([(1.0, 1)]) != area_under_curve([(1.0, 1)])


# ---------------------------------------------------------------------------------------------------------------------
# Kills


def small_plan(folder: Path) -> Plan:
    rng = random.Random(1)
    texts = [prose(rng) for _ in range(12)]
    texts += [texts[0], texts[1] + " The end.", "short", prose(rng, "de")]
    examples = folder / "examples.jsonl"
    folder.mkdir(exist_ok=True)
    examples.write_text("".join(json.dumps({"text": f"{text} {one}"}) + "\n" for text in texts for one in range(3)))
    return plan_of(folder, texts, Recipe(), Needs(good=(examples,), bad=(examples,)))


def contents(plan: Plan) -> dict[str, bytes]:
    found = [path for path in plan.output_dir.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(plan.output_dir)): path.read_bytes() for path in found}


CHANGING = {
    Path: "replace rename unlink mkdir write_text", os: "unlink rmdir", DataFolder: "open",
    PipelineExecutor: "mark_rank_as_completed",
}  # fmt: skip


def test_killed_at_some_instants_and_started_again_it_leaves_the_same_bytes(tmp_path):
    killed_in_turn(tmp_path, range(1, 2000, 211))


@pytest.mark.slow
def test_killed_at_many_instants_and_started_again_it_leaves_the_same_bytes(tmp_path):
    killed_in_turn(tmp_path, range(2, 2000, 23))


def killed_in_turn(tmp_path: Path, steps: range) -> None:
    plan = small_plan(tmp_path / "texts")
    run.curate(plan, 1, lambda _: None)
    expected = contents(plan)
    assert {"manifest.json", "report.html", "documents/00000.jsonl.zst"} <= expected.keys()
    for step in steps:
        again = dataclasses.replace(plan, output_dir=tmp_path / f"killed_{step}")
        work = functools.partial(run.curate, again, 1, lambda _: None)
        was_killed = killed_after(step, work, CHANGING)
        if was_killed and killed_after(step % 40 + 1, work, CHANGING):
            work()
        assert contents(again) == expected, step
        if not was_killed:
            break
    assert not was_killed and step > 200


def curate_command(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, CURATE, *arguments], cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_several_processes_leave_the_same_bytes_also_after_a_kill(tmp_path):
    plan = small_plan(tmp_path / "texts")
    given = ["--config=quick", "--input=texts", "--good=texts/examples.jsonl", "--bad=texts/examples.jsonl"]
    assert curate_command(tmp_path, *given, "--output_dir=one", "--workers=1").returncode == 0
    command = [sys.executable, "-u", CURATE, *given, "--output_dir=two", "--workers=2"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert any("copies" in line for line in running.stdout)
        running.kill()
        running.communicate(timeout=60)  # nothing keeps the pipe open: all of it has ended
    done = curate_command(tmp_path, *given, "--output_dir=two", "--workers=2")
    assert done.returncode == 0 and not done.stderr, done.stderr
    one, two = (contents(dataclasses.replace(plan, output_dir=tmp_path / name)) for name in ("one", "two"))
    assert one == two


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be curated, and what is said


def test_what_is_done_is_not_done_again_and_not_taken_for_another(tmp_path):
    plan = small_plan(tmp_path / "texts")
    said: list[str] = []
    run.curate(plan, 1, said.append)
    assert "replaced: nothing" in said[-2] and "left: " in said[-2]
    run.curate(plan, 1, said.append)
    assert said[-1] == f"{plan.output_dir} is done already"
    other = dataclasses.replace(plan, recipe=RECIPES["quick"])
    with pytest.raises(
        UserError, match=r"manifest\.json is of something else than this command: choose another --output_dir"
    ):
        run.curate(other, 1, said.append)
    (plan.output_dir / "documents/00001.jsonl.zst").unlink()
    with pytest.raises(UserError, match=r"00001\.jsonl\.zst is not as .*manifest\.json says: remove"):
        run.curate(plan, 1, said.append)


def test_another_curation_does_not_go_on_with_this_one(tmp_path):
    plan = small_plan(tmp_path / "texts")
    assert killed_after(60, functools.partial(run.curate, plan, 1, lambda _: None), CHANGING)
    with pytest.raises(UserError, match=r"that was not ended: give the same command to go on, or remove .*\.curation"):
        run.curate(dataclasses.replace(plan, recipe=RECIPES["quick"]), 1, lambda _: None)


def test_documents_that_were_changed_in_between_are_found(tmp_path, monkeypatch):
    """datatrove leaves out a line that it cannot read; the counts tell."""
    plan = small_plan(tmp_path / "texts")
    write = files.WriteDocuments._write

    def spoilt(self, document, handler, name):
        write(self, document, handler, name)
        handler.write(b"{spoilt\n" if "originals" in str(self.output_folder.path) else b"")

    monkeypatch.setattr(files.WriteDocuments, "_write", spoilt)
    run.curate(plan, 1, lambda _: None)  # a line more changes no document
    monkeypatch.setattr(files.WriteDocuments, "_write", lambda self, *given: write(self, *given))
    monkeypatch.setattr(files.ReadDocuments, "read_file", lambda self, path: iter(list(READ(self, path))[1:]))
    with pytest.raises(UserError, match="were left before it: files were changed; remove"):
        run.curate(dataclasses.replace(plan, output_dir=tmp_path / "other"), 1, lambda _: None)
    assert not (tmp_path / "other/manifest.json").exists()


READ = files.ReadDocuments.read_file


@pytest.mark.parametrize("given, message", [
    ({"languages": ("english",)}, "py3langid knows no 'english'"),
    ({"min_characters": 5000}, "nothing is left of 16 documents: .*report.html says why"),
])  # fmt: skip
def test_a_recipe_that_cannot_be(tmp_path, given, message):
    plan = small_plan(tmp_path / "texts")
    with pytest.raises(UserError, match=message):
        run.curate(dataclasses.replace(plan, recipe=dataclasses.replace(Recipe(), **given)), 1, lambda _: None)
    assert not (plan.output_dir / "manifest.json").exists()


@pytest.mark.parametrize("content, message", [
    ("min_chars = 3", r"there is no key min_chars \(did you mean 'min_characters'\?\)"),
    ("min_characters = -1", "min_characters=-1 must be a whole number of 0 or more"),
    ("minhash_rows = true", "minhash_rows=True must be a whole number of 1 or more"),
    ("quality_removed = 1.0", "quality_removed=1.0 must be 0 to below 1"),
    ('quality_by = "taste"', "quality_by='taste' must be one of classifier, perplexity"),
    ("c4_quality = 1", "c4_quality=1 must be true or false"),
    ('languages = "en"', "languages is a list of names"),
    ("languages", "is no TOML"),
])  # fmt: skip
def test_a_config_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "own.toml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_recipe(str(path))


def test_a_config_of_ones_own(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text('languages = ["de", "fr"]\nquality_removed = 0.5\n')
    assert read_recipe(str(path)) == dataclasses.replace(Recipe(), languages=("de", "fr"), quality_removed=0.5)
    with pytest.raises(UserError, match=r"it is production or quick \(did you mean 'production'\?\), or a .toml file"):
        read_recipe("productoin")


def test_a_line_that_is_no_json_is_an_error_and_no_document_less(tmp_path):
    plan = small_plan(tmp_path / "texts")
    with plan.parts[1].path.open("a") as file:
        file.write('{"text": \n')
    with pytest.raises(UserError, match=r"1\.jsonl, line 6 is not JSON"):
        run.curate(plan, 1, lambda _: None)
    assert not (plan.output_dir / "manifest.json").exists()


def test_a_samples_text_is_no_html(tmp_path):
    script = f"<script>alert(1)</script> {'word ' * 10}\x1b[31m"
    plan = plan_of(tmp_path / "texts", [script, script + "a", "b" * 200], dataclasses.replace(BARE, min_characters=100))
    curate(plan)
    page = (plan.output_dir / "report.html").read_text()
    assert "&lt;script&gt;" in page and "<script" not in page and "\x1b" not in page


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_the_command_and_what_prepares_its_output(tmp_path):
    plan = small_plan(tmp_path / "texts")
    done = curate_command(tmp_path, "--config=quick", "--input=texts", "--output_dir=curated", "--workers=1")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "left out: contamination, as no --evaluation sets were given" in done.stdout
    prepared = subprocess.run(
        [sys.executable, ROOT / "data/c4/prepare.py", "--input=curated/documents", "--tokenizer=byte", "--out_dir=mine",
         "--val_fraction=0.3", "--num_proc=1"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert prepared.returncode == 0, prepared.stderr
    assert plan.parts


@pytest.mark.parametrize("given, message", [
    (["--bad=texts"], "--bad: a score needs --good examples, too"),
    (["--good=texts", "--config=own.toml"], "--good: a classifier needs --bad examples, too"),
    (["--bad_words=none.txt"], "--bad_words: there is no file none.txt"),
    (["--config=none.toml"], "--config: cannot read none.toml"),
    (["--workers=0"], "is not a whole number of 1 or more"),
])  # fmt: skip
def test_arguments_that_cannot_be(tmp_path, given, message):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("text")
    (tmp_path / "own.toml").write_text('quality_by = "classifier"')
    done = curate_command(tmp_path, "--input=texts", "--output_dir=out", *given)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out").exists()


def test_a_hash_that_datatrove_cannot_call_is_refused(tmp_path):
    (tmp_path / "xxhash.py").write_text('VERSION = "4.1.0"\n')
    (tmp_path / "texts.txt").write_text("text")
    done = subprocess.run(
        [sys.executable, CURATE, "--input=texts.txt", "--output_dir=out"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: xxhash 4.1.0 hashes no text"), done.stderr


@pytest.mark.slow
def test_the_pages_commands(tmp_path):
    """As they stand, but for fewer processes; and its file of values."""
    small_plan(tmp_path / "texts")
    (tmp_path / "texts/examples.jsonl").rename(tmp_path / "examples.jsonl")
    for name in ("exams", "best", "worst"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").symlink_to(tmp_path / "examples.jsonl")
    (tmp_path / "exams/a.jsonl").unlink()
    (tmp_path / "exams/a.txt").write_text(" ".join("abcdefghijklmnop"))
    (tmp_path / "words.txt").write_text("frobnicators\n")
    page = (ROOT / "docs/using/curation.md").read_text()
    commands = [line for line in page.splitlines() if line.startswith("python ")]
    assert len(commands) == 6
    elsewhere = ("--estimate", "--executor")  # of more than these 16 documents; test_clusters.py
    commands = [command for command in commands if not any(option in command for option in elsewhere)]
    own = "python data/curate.py --config own.toml --input texts/ --output_dir own"
    (tmp_path / "own.toml").write_text(re.search(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[1])
    (tmp_path / "data").mkdir()
    for command in (*commands, own):
        given = command.replace("--workers 32", "--workers 1").replace("python data/", f"{sys.executable} {ROOT}/data/")
        given += " --val_fraction 0.3" if "prepare.py" in command else ""
        done = subprocess.run(given.split(), cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)
    assert "left: 1 of 16 documents" in done.stdout
