"""Chat templates: how turns become the one text that a model reads, in the form of Hugging Face's tokenizers.

A template is a program in Jinja, which may be a stranger's: it runs in Jinja's sandbox, as in transformers, and what it
raises is one line. `strftime_now` is the day on which a dataset is prepared, once.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from common.errors import UserError
from common.files import read_text
from common.json_files import read_json
from finetuning.conversations import ASSISTANT, USER, Turn
from runs.folder import CHAT_TEMPLATE

# Characters that Unicode sets aside for what goes on inside of a program: texts have none of them.
BEGIN, END, PROBE = "\ufdd0", "\ufdd1", "\ufdd2"  # of what {% generation %} marks; an answer that is looked for

CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA3 = """\
{{- '<|begin_of_text|>' }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
BUILT_IN = {"chatml": CHATML, "llama3": LLAMA3}


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template by the `name` that people know it by, and the strings that it may use, such as bos_token."""

    name: str
    source: str
    tokens: tuple[tuple[str, str], ...] = ()

    @functools.cached_property
    def _compiled(self) -> jinja2.Template:
        try:
            return _environment().from_string(self.source)
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template {self.name} is no Jinja template: {_one_line(error)}") from None

    @functools.cached_property
    def has_marks(self) -> bool:
        """Whether it says itself, by {% generation %}, what the model writes."""
        parsed = _environment().parse(self.source)
        return any(call.name == _Generation.MARK for call in parsed.find_all(nodes.ExtensionAttribute))

    @functools.cached_property
    def tail(self) -> str:
        """What it puts after an answer: its end of a turn, if it has one."""
        text = self.render([Turn(USER, "?"), Turn(ASSISTANT, PROBE)]).replace(BEGIN, "").replace(END, "")
        if PROBE not in text:
            raise UserError(f"the chat template {self.name} leaves the assistant's answers out: take another one")
        return text.rpartition(PROBE)[2]

    @property
    def ends_turns(self) -> bool:
        """Whether the model can tell from it that an answer is at its end, as more follows it than white space."""
        return bool(self.tail.strip())

    def render(self, turns: Sequence[Turn], asks: bool = False) -> str:
        """The text of the turns, with BEGIN and END about what {% generation %} marks; if it `asks`, with what an
        answer begins after. Raises UserError."""
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            return self._compiled.render(messages=messages, add_generation_prompt=asks, **dict(self.tokens))
        except UserError:
            raise
        except Exception as error:  # whatever a stranger's program may raise
            raise UserError(f"the chat template {self.name} fails: {_one_line(error)}") from None


# ---------------------------------------------------------------------------------------------------------------------
# Which one


def find_template(given: str, folders: Sequence[Path]) -> tuple[ChatTemplate, str | None]:
    """The template that --chat_template means, and what to say of a choice that was not the user's. `auto` is the one
    that the model came with, in the first of `folders` that has one, or else ChatML. Raises UserError."""
    tokens = next((found for folder in folders if (found := _special_tokens(folder))), ())
    if given in BUILT_IN:
        return ChatTemplate(given, BUILT_IN[given], tokens), None
    if given != "auto":
        if not Path(given).is_file():
            raise UserError(f"--chat_template={given} is none of auto, {', '.join(BUILT_IN)}, and no file")
        return ChatTemplate(given, read_text(Path(given), newline=""), tokens), None
    for folder in folders:
        if (source := _own_template(folder)) is not None:
            return ChatTemplate(f"of {folder}", source, tokens), f"chat template: the model's own, in {folder}"
    return ChatTemplate("chatml", CHATML, tokens), "chat template: chatml, as the model has none of its own"


def _own_template(folder: Path) -> str | None:
    """What a folder of Hugging Face's has, in the order in which transformers looks."""
    if (folder / CHAT_TEMPLATE).is_file():
        return read_text(folder / CHAT_TEMPLATE, newline="")
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = _read(folder / name).get("chat_template")
        if isinstance(found, list):  # several by name
            found = next((one.get("template") for one in found if one.get("name") == "default"), None)
        if isinstance(found, str):
            return found
    return None


def _special_tokens(folder: Path) -> tuple[tuple[str, str], ...]:
    """bos_token and the like, which a template may name."""
    found = {}
    for name, value in _read(folder / "tokenizer_config.json").items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return tuple(found.items())


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = read_json(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What templates are written for


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    """What transformers gives to templates, of which none can reach Python's own objects."""
    if tuple(map(int, jinja2.__version__.split(".")[:3])) < (3, 1, 6):
        raise UserError("chat templates need jinja2 3.1.6 or newer, whose sandbox holds: pip install -U jinja2")
    found = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    found.filters["tojson"] = _as_json
    found.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "namespace": _OwnNamespace,
        "dict": lambda *given, **values: dict(*given, **values),  # not the type, with all that types have
    }
    return found


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}, which stands around what the model writes."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own form)
    MARK = "mark"

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method(self.MARK), [], [], body).set_lineno(line)

    def mark(self, caller: Any) -> str:
        return f"{BEGIN}{caller()}{END}"


class _OwnNamespace(Namespace):
    """Jinja's, without the names through which a template would reach what is not its own."""

    def __init__(self, *given: Any, **values: Any):
        for name in dict(*given, **values):
            _check_name(name)
        super().__init__(*given, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise jinja2.TemplateError(f"a namespace cannot have {name!r}")


def _as_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Jinja's own escapes what HTML would take for markup."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: Any) -> None:
    raise jinja2.TemplateError(str(message))


def _one_line(error: Exception) -> str:
    kind = "" if isinstance(error, jinja2.TemplateError) else type(error).__name__
    return " ".join(f"{kind} {error}".split())[:300]


def spans(text: str) -> Iterator[tuple[str, bool]]:
    """The pieces of a text with BEGIN and END, and whether each stands between them."""
    for number, piece in enumerate(text.split(BEGIN)):
        inside, end, outside = piece.partition(END)
        if number == 0 or not end:
            yield piece, False
        else:
            yield inside, True
            yield outside, False
