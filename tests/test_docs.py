"""Every figure of the documents comes from a command that runs here, or from arithmetic that is evaluated here.

- A block fenced as `console` is `$ ` and a command, and below it what the command prints; a line `...` stands for lines
  that are left out. In a plain text file such a block is indented by four spaces instead.
- A block fenced as `arithmetic` is lines `<products and sums> = <number>`, whose results the commands print too.
- A block fenced as `json FILE` is a file that the reader saves under this name for the commands.

What SYSTEM_OVERVIEW.md and TESTING.md name is there, and all that they should name.
"""

import ast
import functools
import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import ROOT, environment

TEXTS = [
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/reference").glob("*.md")),
    *sorted(ROOT.glob("*.md")),
    ROOT / "OPTIMAL_CONFIGS_SUMMARY.txt",
]
OF_FIGURES = """
18_optimal_configs_comparison_1.36e21_flops.md OPTIMAL_CONFIGS_SUMMARY.txt parameters.md flops.md
published_architectures.md memory.md decoding.md time_and_mfu.md
""".split()


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def indented(text: str) -> list[str]:
    """Blocks of a plain text file: each begins at its `$`."""
    blocks = re.findall(r"^    \$ .*\n(?:    (?!\$ ).*\n|\n(?=    (?!\$ )))*", text, flags=re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in blocks]


def console_blocks(path: Path) -> list[str]:
    text = path.read_text()
    return indented(text) if path.suffix == ".txt" else fenced(text, "console")


DOCUMENTS = [path for path in TEXTS if console_blocks(path)]


# Commands and what they print


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """`printed(command)`: its output, in a copy of the repository that it may write to; run once."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if path.name not in ("data", "out", "config", "ladder") and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    shutil.copytree(ROOT / "config", folder / "config")
    for path in DOCUMENTS:
        for name, content in re.findall(r"^```json (\S+)\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE):
            (folder / name).write_text(content)
    env = environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    outputs: dict[str, str] = {}

    def run(command: str) -> str:
        if command not in outputs:
            done = subprocess.run(
                ["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            outputs[command] = done.stdout
        return outputs[command]

    return run


def as_pattern(lines: list[str]) -> str:
    return "".join(r"(?:.*\n)*?" if line == "..." else re.escape(line) + r" *\n" for line in lines)


def misquoted(quotation: str, output: str) -> str | None:
    """The first line of a quotation that the output does not have there; None where it is quoted rightly."""
    lines = quotation.rstrip("\n").split("\n")
    for end in range(1, len(lines) + 1):
        if not re.match(as_pattern(lines[:end]), output):
            return lines[end - 1]
    return None if re.fullmatch(as_pattern(lines), output) else "(the output goes on after the quotation: add ...)"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_commands_print_what_is_quoted(document, printed):
    for block in console_blocks(document):
        first, _, quotation = block.partition("\n")
        assert first.startswith("$ ") and quotation, f"a console block is a command and what it prints: {first}"
        output = printed(first.removeprefix("$ "))
        wrong = misquoted(quotation, output)
        assert wrong is None, f"{document.name}\n{first}\nis not there: {wrong}\nprinted:\n{output}"


@pytest.mark.parametrize(
    ("quotation", "wrong"),
    [
        ("a 1\nb 2\n\nc 3\n", None),
        ("...\nb 2\n...\n", None),
        ("a 1\n...\nc 3\n", None),
        ("a 1\nb 3\n...\n", "b 3"),
        ("b 2\n...\n", "b 2"),
        ("...\nc 3\nb 2\n...\n", "b 2"),
        ("a 1\nc 3\n", "c 3"),
        ("a 1\nb 2\n", "(the output goes on after the quotation: add ...)"),
    ],
)
def test_what_a_false_quotation_is(quotation, wrong):
    assert misquoted(quotation, "a 1\nb 2 \n\nc 3\n") == wrong


def test_the_blocks_of_a_text_file():
    text = "A\n    $ one --x\n    a 1\n\n    b 2\n\n    $ two\n    ...\nB\n    no command\n"
    assert indented(text) == ["$ one --x\na 1\n\nb 2\n", "$ two\n...\n"]


# Arithmetic

OPERATORS = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
    ast.Pow: lambda a, b: a**b,
}


def evaluate(expression: str) -> Fraction:
    """Numbers, + - * / // ** and parentheses; exactly."""

    def value(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(value=int() | float() as number):
                return Fraction(str(number))
            case ast.BinOp(left=left, op=op, right=right):
                return OPERATORS[type(op)](value(left), value(right))
        raise ValueError(f"not arithmetic: {ast.unparse(node)}")

    return value(ast.parse(without_commas(expression).strip(), mode="eval").body)


def without_commas(text: str) -> str:
    return re.sub(r"(?<=\d),(?=\d{3})", "", text)


def equations(text: str) -> list[tuple[str, str]]:
    """(expression, result) of every line; what follows a # is the reader's."""
    lines = [line.partition("#")[0].strip() for block in fenced(text, "arithmetic") for line in block.splitlines()]
    sides = [line.rpartition("=") for line in lines if line]
    return [(expression.strip(), result.strip()) for expression, _, result in sides]


def is_right(expression: str, result: str) -> bool:
    """A whole number exactly, another one to its last printed digit."""
    mantissa, _, exponent = without_commas(result).partition("e")
    decimals = len(mantissa.partition(".")[2])
    is_whole = not decimals and not exponent
    tolerance = 0 if is_whole else Fraction(10) ** (int(exponent or 0) - decimals) / 2
    return abs(evaluate(expression) - Fraction(without_commas(result))) <= tolerance


@pytest.mark.parametrize(
    "document", [path for path in TEXTS if equations(path.read_text())], ids=lambda path: path.name
)
def test_the_arithmetic_is_right_and_arrives_at_what_a_command_prints(document):
    lines, quoted = equations(document.read_text()), numbers("".join(console_blocks(document)))
    for index, (expression, result) in enumerate(lines):
        assert is_right(expression, result), f"{expression} = {float(evaluate(expression)):,}, not {result}"
        later = numbers(" ".join(other for other, _ in lines[index + 1 :]))
        assert numbers(result) <= quoted | later, f"no command prints {result}, nor does a line go on from it"


@pytest.mark.parametrize(
    ("expression", "result", "right"),
    [
        ("12 * 4 * 768**2", "28,311,552", True),
        ("12 * 4 * 768**2", "28,311,553", False),
        ("(1,000 + 1) // 2 - 0.5", "499.5", True),
        ("2 / 3", "0.667", True),
        ("2 / 3", "0.666", False),
        ("2e21 / 3", "6.67e20", True),
        ("2e21 / 3", "6.66e+20", False),
        ("2 / 3", "1", False),
    ],
)
def test_what_right_arithmetic_is(expression, result, right):
    assert is_right(expression, result) is right


@pytest.mark.parametrize("expression", ["abs(1)", "n * 2", "'a' * 2", "1 if 2 else 3"])
def test_arithmetic_is_nothing_but_arithmetic(expression):
    with pytest.raises(ValueError, match="not arithmetic"):
        evaluate(expression)


# Figures in the prose

NUMBER = re.compile(r"(?<![\w.])(\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?!\w|\.\d)( ?%)?")
# Links, files, places in a paper, names
PLACE = re.compile(r"\]\([^)]*\)|`[\w/.]+\.\w+`|(?:section|table|equation|appendix) [\w.]+|Llama \d\.\d")


def numbers(text: str) -> set[tuple[float, bool]]:
    """(value, whether it is a percentage) of everything that reads as a number."""
    found = NUMBER.findall(text)
    return {(float(digits.replace(",", "")), bool(percent)) for digits, percent in found}


def figures(text: str) -> set[tuple[float, bool]]:
    """The numbers that somebody must have computed: with a point, an exponent, a thousands separator or a %."""
    computed = [match.group() for match in NUMBER.finditer(PLACE.sub(" ", text))]
    return numbers(" ; ".join(number for number in computed if re.search(r"[.e%]|,\d{3}", number)))


def unfounded(text: str, blocks: list[str]) -> set[tuple[float, bool]]:
    """Figures of a document's prose that are in no block of it and not among its cited constants."""
    heading, _, cited = text.partition("\n## Cited constants\n")
    prose = re.sub(r"^```(console|arithmetic|json \S+)\n.*?^```$", "", heading, flags=re.DOTALL | re.MULTILINE)
    for block in indented(text):
        prose = prose.replace(re.sub(r"^(?=.)", "    ", block, flags=re.MULTILINE), "")
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| [^|]+ \|$", cited, flags=re.MULTILINE)  # a constant, what it is, source
    return figures(prose) - numbers("\n".join([*blocks, *fenced(text, "arithmetic"), *rows]))


@pytest.mark.parametrize("name", OF_FIGURES)
def test_every_figure_of_the_prose_is_founded(name):
    (document,) = (path for path in DOCUMENTS if path.name == name)
    assert unfounded(document.read_text(), console_blocks(document)) == set()


def test_what_an_unfounded_figure_is():
    text = """18 layers [cost](x_1.5.md) 8.76e20, 64 %, 1,545 and 2.5 (appendix B.2, `x_3.5.py`, Llama 7.5) and 3.5.

```console
$ x 1.545
8.7600e+20 64.4
```
```text
9.5
```

## Cited constants

| Constant | What | Source |
|---|---|---|
| 2.5 | a rate | A data sheet |
"""
    assert unfounded(text, fenced(text, "console")) == {(64, True), (1545, False), (3.5, False), (9.5, False)}


# The system on one page

OVERVIEW = (ROOT / "SYSTEM_OVERVIEW.md").read_text()
SPAN = re.compile(r"`([^`\n]+)`")


def is_path(name: str) -> bool:
    return "/" in name or Path(name).suffix in (".py", ".md")


@functools.cache
def definitions(path: Path) -> set[str]:
    """The functions and classes of a module, and the methods and fields of its classes, as `Class.name`."""
    body = ast.parse(path.read_text()).body
    found = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for one in (node for node in body if isinstance(node, ast.ClassDef)):
        for inner in one.body:
            match inner:
                case ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                    found.add(f"{one.name}.{name}")
    return found


def not_there(text: str) -> set[str]:
    """Of what stands in backticks: paths that do not exist, and what no file that is named in the same paragraph, or
    item of a list, defines."""
    missing = set()
    for block in re.split(r"\n\n|\n(?=\d+\. |- )", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)):
        spans = SPAN.findall(block)
        files = {name: list(ROOT.glob(name)) for name in spans if is_path(name)}
        missing |= {name for name, found in files.items() if not found}
        defined = {
            name for found in files.values() for file in found if file.suffix == ".py" for name in definitions(file)
        }
        missing |= {name for name in spans if name not in files} - defined
    return missing


@pytest.mark.parametrize("document", TEXTS, ids=lambda path: path.name)
def test_modules_that_a_document_names_are_there(document):
    """But for config files and components, which it may ask the reader to write."""
    named = {
        name
        for name in SPAN.findall(document.read_text())
        if re.fullmatch(r"(?!config/|out/|mine/)[\w*]+/[\w/*]+\.py", name)
    }
    assert {name for name in named if not list(ROOT.glob(name))} == set()


def test_what_the_overview_names_is_there():
    assert not_there(OVERVIEW) == set()


def test_what_is_not_there():
    text = "`train.py`: `main`, `mains`; `no/such.py`\n\n`main` of no file.\n- `data/loader.py`: `Batch.tokens`"
    assert not_there(text) == {"mains", "no/such.py", "main"}


def test_the_picture_of_the_house_shows_every_room_and_module_of_the_root():
    """That imports go as it says is held by tests/test_rooms.py, module by module."""
    (picture,) = fenced(OVERVIEW, "")
    rooms = {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")} - {"tests/"}
    assert set(re.findall(r"[\w/]+(?:\.py|/)", picture)) == rooms | {path.name for path in ROOT.glob("*.py")}


# What the tests hold


def test_the_page_of_the_tests_names_each_of_them_once_and_what_it_needs():
    page = (ROOT / "TESTING.md").read_text()
    rows = re.findall(r"^\| `(test_\w+\.py)` \| (.+) \|$", page, flags=re.MULTILINE)
    files = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    assert sorted(name for name, _ in rows) == sorted(files)
    for name, held in rows:
        marks = {mark for mark in ("gpu", "slow", "soak") if re.search(rf"\bmark\.{mark}\b", files[name])}
        assert set(re.findall(r"`(gpu|slow|soak)`", held)) == marks, name
