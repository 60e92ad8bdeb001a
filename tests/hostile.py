"""Command lines and files as nobody should write them, for every command: seeded, so that each can be made again.

A `World` is a folder with one good file of each kind that a command reads. `hostile_case` spoils a file of a copy, or
an argument of a good command line, or what the command writes to.
"""

import dataclasses
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from conftest import ROOT, environment

from common.json_files import read_json
from configurator import configuration_keys

MOST_BYTES, MOST_SECONDS = 4 * 10**9, 60
ADDRESS_SPACE = 16 * 10**9  # PyTorch reserves far more than it uses
PLANNER = "flops_parameter_counting/"

# Good command lines, in the world's folder. {out} is a new name there.
TRAIN = (
    "train.py --dataset=tiny --data_dir=data --n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --batch_size=2 "
    "--gradient_accumulation_steps=1 --max_iters=1 --eval_iters=1 --warmup_iters=0 --device=cpu --compile=False"
)
GRID = f"{PLANNER}detailed_cost_analysis.py --grid_search 1e13 --layers 2,4 --hidden_sizes 64:256:64 --top_k 3"
COMMANDS = [
    f"{TRAIN} --out_dir={{out}}",
    f"{TRAIN} --out_dir={{out}} --dry_run",
    f"{TRAIN} --out_dir={{out}} --init_from=out/run",
    f"{TRAIN} --out_dir={{out}} --init_from=hf",
    "train.py out/run/config.py --init_from=resume --max_iters=3",
    "train.py out/run/config.py --init_from=auto --eval_only",
    "finetune.py out/run --data chats.jsonl --val_data chats.jsonl --chat_template t.jinja --max_iters=1 "
    "--eval_iters=1 --device=cpu --compile=False --out_dir={out}",
    "finetune.py hf --data chats.jsonl --chat_template t.jinja --epochs 1 --device=cpu --compile=False --out_dir={out} "
    "--dry_run",
    "sample.py out/run --max_new_tokens=3 --num_samples=1 --seed=1 --top_k=5 --temperature=1 --prompt=ab",
    "checkpoint.py export out/run {out}.safetensors",
    "checkpoint.py export out/run {out} --format hf --max_shard_size 1MB",
    "checkpoint.py import model.safetensors {out}",
    "checkpoint.py import hf {out}",
    "checkpoint.py import hf/config.json {out}",
    "compare_architectures.py out/run old.json --csv={out}.csv --json={out}.json --markdown={out}.md --x=tokens",
    "compare_architectures.py out/run --report={out}.html --sort=steps",
    "compare_architectures.py out/run --png={out}.png --filter=n_layer=1",
    "ladder.py plan --budget 1e11 --arch gpt2 --seeds 1 --dataset tiny --data_dir data --block_size 16 --out {out}",
    "ladder.py plan --isoflop 1e11:1e12:2 --sizes 2 --arch gpt2 --dataset tiny --data_dir data --law law.json "
    "--block_size 16 --layers 1 --spread 2 --out {out}",
    "ladder.py run ladder --jobs 1",
    "ladder.py report ladder --out {out}.html --markdown {out}.md",
    "ladder.py fit ladder --n_meaning total",
    f"{GRID} --law law.json --emit {{out}}.py --dataset tiny --data_dir data",
    f"{GRID} --arch llama3 --kv_heads 1,2 --aspect_ratio 1:200 --json {{out}}.json --sequence_length 64",
    f"{PLANNER}detailed_cost_analysis.py --model_config hf/config.json --sequence_length 64 --json {{out}}.json",
    f"{PLANNER}detailed_cost_analysis.py --model_config hf --device L4 --devices 2 --strategy fsdp --tokens 9 --mfu 1",
    f"{PLANNER}detailed_cost_analysis.py --model_config out/run/config.json --micro_batch 4 --dtype float32",
    f"{PLANNER}detailed_cost_analysis.py --backward_config backward.jsonc --json {{out}}.json",
    f"{PLANNER}fit_scaling_law.py points.csv --out {{out}}.json --png {{out}}.png --bootstrap 40 --holdout 2 --seed 1",
    f"{PLANNER}fit_scaling_law.py out/run points.csv --n_meaning total --bootstrap 0",
    "data/shakespeare_char/prepare.py --input text --out_dir {out} --val_fraction 0.2",
    "data/shakespeare_char/prepare.py --input text/a.jsonl --text_key text --out_dir {out} --val_tokens 20",
    "data/openwebtext/prepare.py --input text/a.txt --out_dir {out} --split_by lines --num_proc 1",
    "data/python_stdlib/prepare.py --out_dir text/a.txt/{out}",
    f"{PLANNER}validate.py",
    f"{PLANNER}detailed_cost_analysis.py --validate",
    "configurator.py",
]
NO_ARGUMENTS = (f"{PLANNER}validate.py", "configurator.py")  # which they do not read

NUMBERS = ["0", "-1", "1", "1e30", "1e400", "-1e400", "nan", "inf", "-inf", "1e12", "1000000000", "9" * 19, "9" * 400]
NUMBERS += ["9" * 5000, "0x10", "1_0", "٣", "1e-320", "1.5", "2:1", "1:2:0", "1:1e9", "1:1e9:1", "1,,2", "64:128:1e-9"]
TEXTS = ["", " ", "-", "--", "-" * 5000, "a" * 303, "a" * 100_000, "(" * 5000, "[" * 5000, "{'a': " * 300, "None"]
TEXTS += ["True", "False", "{}", "[]", "\udcff", "a\nb", "\x1b[2J", "\U0001f999", "%s%n", "*", "[", "**", "~", "{"]
TEXTS += [
    "=1+1",
    "\u202e",
    "1+1",
    "'a'*10**10",
    "{1: {}}",
    "{'A': 1}",
    "A*1000",
    "gpt3",
    "auto",
    "last",
    "cuda:99",
    "mps",
]
# Of devices only links are named: whoever runs this as root keeps them, whatever a command does.
PATHS = [".", "..", "/", "null", "full", "/proc/self/mem", "/proc/x", "/nowhere/x", "text", "text/a.txt", "empty"]
PATHS += ["data", "loop", "hf", "out/run", "out", "ladder", "model.safetensors", "law.json", "text/a.txt/b", "x" * 250]
VALUES = NUMBERS + TEXTS + PATHS

JSON_VALUES = [None, True, -1, 0, 1, 1.5, 10**12, 10**30, 10**40, -(10**30), 1e308, 1e-300, "", "a", "\ud800", "a\0b"]
JSON_VALUES += ["\x1b[31m", "=1+1", "../x", "a" * 5000, [], {}, [[]], {"a": 1}, [None], "NaN", float("nan"), 1e999]
JSON_FILES = ["data/tiny/meta.json", "data/tiny/.verified.json", "out/run/config.json", "hf/config.json", "law.json"]
JSON_FILES += ["hf/generation_config.json", "ladder/plan.json", "old.json", "backward.jsonc", "text/b.json"]
STATE = "out/run/checkpoints/step_00000001/state.json"
LINES = ["out/run/log.jsonl", "ladder/ledger.jsonl", "text/a.jsonl", "chats.jsonl"]
TENSORS = ["model.safetensors", "hf/model.safetensors"]
OTHERS = ["points.csv", "text/a.txt", "out/run/config.py", "data/tiny/train.bin", "hf/tokenizer.json", "t.jinja"]
FILES = [*JSON_FILES, STATE, *LINES, *TENSORS, *OTHERS]
DEEP = "[" * 100_000


@dataclasses.dataclass
class Case:
    """A command line, in a folder, and what was spoilt, in words."""

    folder: Path
    arguments: list[str]
    spoilt: str
    redirected: str = ""  # of its outputs, as a shell has it

    def __str__(self) -> str:
        line = " ".join(argument if len(argument) < 100 else f"{argument[:60]}…" for argument in self.arguments)
        return f"{self.spoilt!a}: {line!a} {self.redirected}"


@dataclasses.dataclass
class Ended:
    """How it ended: `code` as a shell has it, what it printed, its largest resident size and its duration."""

    code: int
    stdout: str
    stderr: str
    bytes: int
    seconds: float


def hostile_case(world: Path, folder: Path, seed: int) -> Case:
    """The seed's own case in a copy of the world."""
    rng = random.Random(seed)
    shutil.copytree(world, folder, symlinks=True)
    arguments = rng.choice(COMMANDS).format(out=f"new{seed}").split()
    how = rng.choice(["argument", "argument", "file", "file", "file", "output"])
    if arguments[0] in NO_ARGUMENTS:
        how = "output"
    if how == "argument":
        return Case(folder, arguments, spoil_arguments(arguments, rng))
    if how == "file":
        read = [file for file in FILES if any(part in " ".join(arguments) for part in readers_of(file))]
        return Case(folder, arguments, spoil_file(folder, rng.choice(read or FILES), rng))
    redirected = rng.choice([">/dev/full", ">/dev/full 2>/dev/full", ">&-", ">&- 2>&-", "2>/dev/full"])
    return Case(folder, arguments, "the output", redirected)


def readers_of(file: str) -> list[str]:
    """Words of the command lines that read the file."""
    top = file.split("/")[0]
    words = {"data": ["tiny", "out/run", "ladder.py run"], "out": ["out/run"], "text": ["--input text", "text/a"]}
    return words.get(top, [top])


# ---------------------------------------------------------------------------------------------------------------------
# Spoiling


def spoil_arguments(arguments: list[str], rng: random.Random) -> str:
    """Replaces the value of an argument, or adds one that the command has not been given; returns what."""
    options = known_options(arguments[0])
    value, place = rng.choice(VALUES), rng.randrange(1, len(arguments))
    if rng.random() < 0.5 or len(arguments) < 2:
        option = rng.choice(options)
        arguments += [f"{option}={value}"] if rng.random() < 0.7 else [option, value]
        return f"{option}={value[:60]}"
    if arguments[place].startswith("--") and "=" in arguments[place]:
        arguments[place] = f"{arguments[place].partition('=')[0]}={value}"
    elif rng.random() < 0.1:
        arguments.pop(place)
    else:
        arguments[place] = value
    return f"argument {place}"


def known_options(script: str) -> list[str]:
    """Every option of a command, as its source names them."""
    if script == "train.py":
        return [f"--{name}" for name in configuration_keys()]
    if script not in _OPTIONS:
        texts = [(ROOT / script).read_text()]
        if script.startswith("data/"):
            texts.append((ROOT / "data/preparation.py").read_text())
        _OPTIONS[script] = sorted(set(re.findall(r'"(--\w+)"', "".join(texts)))) or ["--help"]
    return _OPTIONS[script]


_OPTIONS: dict[str, list[str]] = {}


def spoil_file(folder: Path, name: str, rng: random.Random) -> str:
    """Makes something else of a file; returns what."""
    file = folder / name
    ways: list[Callable[[Path, random.Random], None]] = [truncate, garble, become_something]
    if name in JSON_FILES or name == STATE:
        ways += [spoil_json] * 7
    elif name in LINES:
        ways += [spoil_lines] * 7
    elif name in TENSORS:
        ways += [spoil_header] * 7
    way = rng.choice(ways)
    way(file, rng)
    return f"{way.__name__} {name}"


def truncate(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size + 1)])


def garble(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice([1, 10])):
        if content:
            content[rng.randrange(len(content))] = rng.randrange(256)
    file.write_bytes(content)


def become_something(file: Path, rng: random.Random) -> None:
    """A file of nothing, of deep nesting or of no text; a folder, a link to itself, a device without an end."""
    file.unlink()
    contents = [b"", DEEP.encode(), b'{"a":' * 100_000, b"\xff\xfe\x00", b"null", b"[]", b"{}", b"3", b"\n" * 1000]
    what = rng.choice([*contents, "folder", "loop", "/dev/zero", "/dev/null", "/dev/full", "gone"])
    if isinstance(what, bytes):
        file.write_bytes(what)
    elif what == "folder":
        file.mkdir()
    elif what != "gone":
        file.symlink_to(file.name if what == "loop" else what)


def spoil_json(file: Path, rng: random.Random) -> None:
    value = spoilt_value(read_json(file) if file.suffix == ".jsonc" else json.loads(file.read_text()), rng)
    if file.name == "plan.json" and rng.random() < 0.7:
        value = with_hash(value)
    if file.name == "state.json":
        value = with_checksum(value)
    file.write_text(with_nesting(json.dumps(value), rng))


def spoil_lines(file: Path, rng: random.Random) -> None:
    lines = file.read_text().splitlines()
    place = rng.randrange(len(lines))
    lines[place] = with_nesting(json.dumps(spoilt_value(json.loads(lines[place]), rng)), rng)
    file.write_text("\n".join(lines) + "\n")


def spoil_header(file: Path, rng: random.Random) -> None:
    """Of safetensors: another header before the same tensors."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    part = rng.choice([name for name in ("progress", "config", "scaler") if name in metadata] or [None])
    if part is not None and rng.random() < 0.6:
        metadata[part] = with_nesting(json.dumps(spoilt_value(json.loads(metadata[part]), rng)), rng)
    elif rng.random() < 0.3:
        name = rng.choice([name for name in header if name != "__metadata__"])
        first, last = header[name]["data_offsets"]
        header[name]["shape"] = rng.choice([[], [last - first], [1], [0], [-1], [2**62, 4]])
    else:
        header = spoilt_value(header, rng)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def spoilt_value(value: Any, rng: random.Random) -> Any:
    """The value with another one somewhere in it, without one, or with one more."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(JSON_VALUES)
    value = dict(value) if isinstance(value, dict) else list(value)
    place = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if rng.random() < 0.1:
        del value[place]
    elif rng.random() < 0.05 and isinstance(value, dict):
        value[rng.choice(["\x1b[2J", "=1+1", "a" * 3000, "\ud800", "model_type"])] = rng.choice(JSON_VALUES)
    else:
        value[place] = spoilt_value(value[place], rng)
    return value


def with_nesting(text: str, rng: random.Random) -> str:
    return text.replace("null", DEEP, 1) if rng.random() < 0.05 else text


def with_hash(plan: Any) -> Any:
    """As a stranger would write it, who can compute hashes too."""
    from ladders.plan import hash_of

    try:
        runs = [{**run, "seconds": None} for run in plan["runs"]]
        asked = {"arguments": plan["arguments"], "dataset": plan["dataset"], "runs": runs}
        return plan | {"hash": hash_of(json.dumps(asked, sort_keys=True))}
    except (KeyError, TypeError):
        return plan


def with_checksum(state: Any) -> Any:
    import zlib

    if not isinstance(state, dict):
        return state
    state.pop("checksum", None)
    return state | {"checksum": f"crc32:{zlib.crc32(json.dumps(state, sort_keys=True).encode()):08x}"}


# ---------------------------------------------------------------------------------------------------------------------
# Running


def run(case: Case) -> Ended:
    """The command as a process of its own, which is ended where it takes too long."""
    outputs = [case.folder / ".stdout", case.folder / ".stderr"]
    for output in outputs:
        output.touch()
    script = ROOT / case.arguments[0]
    line = [sys.executable, str(script), *case.arguments[1:]]
    shell = ["sh", "-c", f'exec "$@" {case.redirected}', "sh"] if case.redirected else []
    started = time.monotonic()
    with outputs[0].open("wb") as out, outputs[1].open("wb") as err:
        process = subprocess.Popen(
            [*shell, *line], cwd=case.folder, env=environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            preexec_fn=_limited, start_new_session=True,
        )  # fmt: skip
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        if time.monotonic() - started > MOST_SECONDS:
            os.killpg(process.pid, 9)
            pid, status, usage = os.wait4(process.pid, 0)
            break
        time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - started
    printed = [output.read_bytes().decode(errors="replace") for output in outputs]
    return Ended(process.returncode, *printed, usage.ru_maxrss * 1024, seconds)


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def faults(case: Case, ended: Ended, before: set[str]) -> Iterator[str]:
    """What is wrong with how a command ended."""
    if "Traceback" in ended.stdout + ended.stderr:
        yield "a traceback"
    if ended.code not in (0, 1, 2):
        yield f"exit code {ended.code}"
    if ended.bytes > MOST_BYTES:
        yield f"{ended.bytes:,} bytes"
    if ended.seconds > MOST_SECONDS:
        yield f"{ended.seconds:.0f} seconds"
    if ended.code == 2:
        lines = ended.stderr.splitlines()
        if "2>" not in case.redirected and not (lines and lines[-1].startswith("error: ")):
            yield "no line that says what is wrong"
        tells_last = case.arguments[0] == "compare_architectures.py"  # that losses do not compare, with all written
        if not tells_last and (left := files_in(case.folder) - before):
            yield f"left behind: {sorted(left)[:3]}"
    if case.arguments[0] != "sample.py" and re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", ended.stdout + ended.stderr):
        yield "a control character"


def files_in(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in found if not name.endswith((".stdout", ".stderr", ".verified.json"))}
