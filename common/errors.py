"""The errors that end a command with one line, and how every command reports them."""

import argparse
import contextlib
import difflib
import functools
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from common.output import prepare_output
from common.texts import harmless

SECONDS_TO_REPORT = 10  # for the first rank, which may still be reading its dataset through


class UserError(Exception):
    """A mistake of the user's: one line that says what was wrong and what to do."""


class RunFailure(Exception):
    """A run that others have ended, such as a lost rank: one line that says what happened, or none."""


def exit_cleanly(command: Callable[[], int | None]) -> Callable[[], None]:
    """Decorate a command's `main`: a UserError becomes one line on stderr and exit code 2.

    Under torchrun every rank meets the same mistake, and the first of each machine reports it: the others leave it the
    time to. A RunFailure is one line of the rank that raises it, and exit code 1. So is a lack of memory, and an output
    that cannot be written, such as one on a full disk; where its reader went away, as in `| head`, nobody is left to be
    told.
    """

    @functools.wraps(command)
    def run() -> None:
        prepare_output()
        try:
            code = command()
            sys.stdout.flush()
        except UserError as error:
            if os.environ.get("LOCAL_RANK", "0") != "0":
                with contextlib.suppress(KeyboardInterrupt):
                    time.sleep(SECONDS_TO_REPORT)  # torchrun ends all ranks when one has ended, this one too
            _report(f"error: {error}")
            code = 2
        except RunFailure as error:
            if str(error):
                _report(f"error: {error}")
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os._exit(1)  # at once: threads wait in exchanges that never end
        except KeyboardInterrupt:
            _report("interrupted")
            code = 130
        except OSError as error:
            code = _refused_by_the_system(error)
        except (MemoryError, RuntimeError) as error:
            if not re.search("allocate memory|out of memory|^$", str(error)):  # a processor's, a GPU's, Python's own
                raise
            _report("error: there is not enough memory: take a smaller model or batch, or read less at once")
            code = 1
        _let_go_of_broken_outputs()
        sys.exit(code)

    return run


def _report(line: str) -> None:
    with contextlib.suppress(OSError):  # standard error may be on the full disk, too
        print(harmless(line), file=sys.stderr, flush=True)


def _refused_by_the_system(error: OSError) -> int:
    """Says what the system refused to a command that did not expect it; returns the exit code. An error that names no
    file is of the outputs: files are written where such errors are caught."""
    if error.filename is not None:
        _report(f"error: {os.fsdecode(error.filename)}: {error.strerror}")
        return 2
    if not isinstance(error, BrokenPipeError):
        _report(f"error: cannot write the output: {error.strerror or error}")
    return 1


def _let_go_of_broken_outputs() -> None:
    """What is left in them would end the interpreter in an error of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class ArgumentParser(argparse.ArgumentParser):
    """argparse with every key spelled out, and mistakes as a UserError."""

    def __init__(self, description: str | None, **options: Any):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=formatter, allow_abbrev=False, **options)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        for given in sys.argv[1:] if args is None else args:
            if given.startswith("-") and given.endswith("=--"):  # of which argparse makes an empty list
                self.error(f"{given}: -- is no value")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help explains")


def positive(text: str) -> int:
    """An argument's type: a count of something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def zero_or_more(text: str) -> int:
    """An argument's type: a count of something, or none."""
    return 0 if text == "0" else positive(text)


def above_zero(text: str) -> float:
    """An argument's type: how much of something."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def same_name(name: str, networks: Iterable[str]) -> str:
    """What `did_you_mean` is for the name of a network, where a near name is mostly another one's (mixtral, mistral):
    only what is the same but for case, separators and letters that are doubled."""

    def spelling(text: str) -> str:
        return re.sub(r"([^0-9])\1+", r"\1", re.sub(r"[\W_]", "", text.lower()))

    found = next((network for network in networks if spelling(network) == spelling(name)), None)
    return f" (did you mean {found!r}?)" if found else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'rmsnorm'?)"` for the nearest known name, or an empty string."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""
