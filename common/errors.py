"""The errors that end a command with one line, and how every command reports them."""

import argparse
import contextlib
import difflib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

SECONDS_TO_REPORT = 10  # for the first rank, which may still be reading its dataset through


class UserError(Exception):
    """A mistake of the user's: one line that says what was wrong and what to do."""


class RunFailure(Exception):
    """A run that others have ended, such as a lost rank: one line that says what happened, or none."""


def exit_cleanly(command: Callable[[], int | None]) -> Callable[[], None]:
    """Decorate a command's `main`: a UserError becomes one line on stderr and exit code 2.

    Under torchrun every rank meets the same mistake, and the first of each machine reports it: the others leave it the
    time to. A RunFailure is one line of the rank that raises it, and exit code 1.
    """

    @functools.wraps(command)
    def run() -> None:
        try:
            code = command()
        except UserError as error:
            if os.environ.get("LOCAL_RANK", "0") != "0":
                with contextlib.suppress(KeyboardInterrupt):
                    time.sleep(SECONDS_TO_REPORT)  # torchrun ends all ranks when one has ended, this one too
            print(f"error: {error}", file=sys.stderr)
            code = 2
        except RunFailure as error:
            if str(error):
                print(f"error: {error}", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)  # at once: threads wait in exchanges that never end
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            code = 130
        except BrokenPipeError:  # the reader of our output went away, as in `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        sys.exit(code)

    return run


class ArgumentParser(argparse.ArgumentParser):
    """argparse with every key spelled out, and mistakes as a UserError."""

    def __init__(self, description: str | None, **options: Any):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=formatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help explains")


def positive(text: str) -> int:
    """An argument's type: a count of something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'rmsnorm'?)"` for the nearest known name, or an empty string."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""
