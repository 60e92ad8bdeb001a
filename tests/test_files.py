"""Files that are written whole or not at all, and folders that one process at a time holds."""

import os
import subprocess
import sys
import threading

import pytest
from conftest import environment

from common.errors import UserError
from common.files import replace_file, write_whole, written_aside
from common.locks import is_locked, lock


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path):
    file = tmp_path / "file"
    replace_file(file, b"old")
    with written_aside(file) as aside:
        aside.write_bytes(b"new")
        assert file.read_bytes() == b"old"
    assert file.read_bytes() == b"new" and list(tmp_path.iterdir()) == [file]


def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    file = tmp_path / "file"
    replace_file(file, b"old")
    with pytest.raises(KeyboardInterrupt), written_aside(file) as aside:
        aside.write_bytes(b"half")
        raise KeyboardInterrupt
    with pytest.raises(OSError), written_aside(file):
        pass  # nothing is written: there is nothing to rename
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_the_content_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    file, synced = tmp_path / "file", []

    def fsync(descriptor):
        assert not file.exists()
        synced.append(os.pread(descriptor, 100, 0))

    monkeypatch.setattr(os, "fsync", fsync)
    replace_file(file, b"content", on_disk=True)
    assert synced == [b"content"] and file.exists()
    replace_file(file, b"other")
    assert len(synced) == 1, "what a user can make again need not wait for the disk"


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*: Not a directory"):
        write_whole(tmp_path / "file" / "in_it", b"")
    write_whole(tmp_path / "file", b"text")
    os.mkfifo(tmp_path / "pipe")
    reader = threading.Thread(target=(tmp_path / "pipe").read_bytes)
    reader.start()
    write_whole(tmp_path / "pipe", b"text")  # not replaced: someone reads from it
    reader.join(10)
    assert (tmp_path / "pipe").is_fifo() and not reader.is_alive()


HOLD = """
import sys
from pathlib import Path
from common.locks import lock
held = lock(Path(sys.argv[1]))
print(held is not None, flush=True)
input()
"""


def test_a_folder_is_held_by_one_process_until_it_ends_in_whatever_way(tmp_path):
    assert not is_locked(tmp_path)
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    holder = subprocess.Popen(command, env=environment(), text=True, **pipes)
    assert holder.stdout is not None and holder.stdout.readline() == "True\n"
    assert is_locked(tmp_path) and lock(tmp_path) is None
    holder.kill()
    holder.communicate()
    assert not is_locked(tmp_path)
    held = lock(tmp_path)
    assert held is not None
    held.close()
    assert not is_locked(tmp_path)
