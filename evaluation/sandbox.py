"""Runs a program that nobody has read, such as one that a model wrote: without a network, in an empty folder that is
gone afterwards, with limits of time and memory, and with nothing else that it could write to.

Linux's namespaces do that, which util-linux' `unshare` makes for any user where the system allows it:

    network   there is none but a loopback that is down
    files     every mounted file system is read-only; the working folder is a small file system in memory
    processes the program sees and reaches its own only, and all of them end with it

In there this file is the first program (`confine`), and it runs the other one after giving up its rights over the
namespaces. Files that the user may read it may read, too. It is no virtual machine: against an attacker, take one.
"""

import contextlib
import ctypes
import dataclasses
import functools
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

SECONDS = 10  # of the wall clock, for each program
MEMORY = 1 << 30  # bytes of address space
FILES = 16 << 20  # bytes of all that it writes
PROCESSES = 16
SEPARATOR = b"\0"
UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child",
           "--mount-proc")  # fmt: skip
ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8"}
NEW_USER_NAMESPACE = 0x10000000  # CLONE_NEWUSER of <sched.h>
NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS of <linux/prctl.h>
READ_ONLY = 1 | 32 | 4096  # MS_RDONLY, MS_REMOUNT, MS_BIND of <sys/mount.h>
KEPT = 2 | 4 | 8 | 1024 | 2048  # MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME, MS_NODIRATIME: statvfs has them, too


@dataclasses.dataclass(frozen=True)
class Ending:
    """Whether a program ran to its end, and else, in words, how it ended."""

    passed: bool
    said: str


def run_confined(program: str, seconds: float = SECONDS) -> Ending:
    """Runs Python code. It passed if its last line was reached: neither an exit nor its output counts as that."""
    secret = secrets.token_bytes(16).hex().encode()
    command = [*UNSHARE, sys.executable, "-I", "-S", __file__]
    given = secret + SEPARATOR + program.encode(errors="replace")
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT, cwd="/",
        start_new_session=True,  # a signal to the program's group, the one that reaches out of a namespace, stays there
    )  # fmt: skip
    try:
        output, _ = process.communicate(given, timeout=seconds)
    except subprocess.TimeoutExpired:
        return Ending(False, f"took longer than {seconds:g} s")
    finally:
        _end(process)
    if output.startswith(secret):
        return Ending(True, "passed")
    return Ending(False, output[:200].decode(errors="replace") or f"ended with code {process.returncode}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """The first process in a namespace takes all others there with it."""
    with contextlib.suppress(OSError):  # of a process that has ended
        for first in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(first), signal.SIGKILL)
    process.kill()
    process.wait()


@functools.cache
def missing() -> str | None:
    """What there is not here to run a program so, in words; None where it works."""
    try:
        ending = run_confined("import os\nassert os.listdir() == []")
    except FileNotFoundError:
        return "there is no unshare of util-linux, which Linux has"
    return None if ending.passed else f"this system does not let its user make namespaces with unshare ({ending.said})"


# ---------------------------------------------------------------------------------------------------------------------
# In the namespaces


def confine(folder: str) -> None:
    """Makes every file system read-only but an empty one at `folder`, where the process then is; sets the limits, and
    gives up the rights that a namespace gives to whoever made it. Raises OSError."""
    import resource

    libc = ctypes.CDLL(None, use_errno=True)
    for target in mounted():
        try:
            kept = os.statvfs(target).f_flag & KEPT
        except PermissionError:  # the program is not let in there, either
            continue
        _checked(libc.mount(None, os.fsencode(target), None, READ_ONLY | kept, None), target)
    _checked(libc.mount(b"none", folder.encode(), b"tmpfs", 0, f"size={FILES}".encode()), folder)
    os.chdir(folder)
    _checked(libc.unshare(NEW_USER_NAMESPACE), "a namespace of users")
    _checked(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no new privileges")
    for limit, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, FILES), (resource.RLIMIT_CORE, 0),
                        (resource.RLIMIT_NPROC, PROCESSES), (resource.RLIMIT_CPU, SECONDS)):  # fmt: skip
        resource.setrlimit(limit, (most, most))


def mounted() -> list[str]:
    """Where file systems are mounted, the last ones first."""
    fields = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [field.encode().decode("unicode_escape").encode("latin-1").decode() for field in reversed(fields)]


def _checked(code: int, what: str) -> None:
    if code != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: {what}")


def main() -> None:
    """Runs the program on standard input, after a secret that is said when it reached its end."""
    secret, _, program = sys.stdin.buffer.read().partition(SEPARATOR)
    answers = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(nowhere, stream)
    try:
        confine("/tmp")
        exec(compile(program, "program", "exec"), {"__name__": "__main__"})
        said = secret
    except BaseException as error:
        said = f"{type(error).__name__}: {error}".strip(": ").encode(errors="replace")
    os.write(answers, said[:200])
    os._exit(0)


if __name__ == "__main__":
    main()
