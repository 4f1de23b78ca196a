"""What a killed process leaves beside a target, what the next one removes, and what it must not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from retnet_edge.atomic import (
    new_folder,
    publish,
    remove_leftovers,
    remove_leftovers_in,
    replace_file,
    replace_folder,
    temporary_folder,
    work_folder,
)
from retnet_edge.errors import InputError

WRITING = """
import os, sys
from pathlib import Path
from retnet_edge import atomic

kind, target = sys.argv[1], Path(sys.argv[2])

def wait():
    print("writing", flush=True)
    sys.stdin.read()

if kind == "file":
    real = os.fsync
    os.fsync = lambda descriptor: (wait(), real(descriptor)) and None
    atomic.replace_file(target, b"theirs")
elif kind == "temporary":
    with atomic.temporary_folder() as folder:
        (folder / "a").write_text("theirs")
        wait()
else:
    with atomic.new_folder(target) as folder:
        (folder / "a").write_text("theirs")
        wait()
"""


@contextmanager
def writing(kind: str, target: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is in the middle of writing `target`."""
    child = subprocess.Popen(
        [sys.executable, "-c", WRITING, kind, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"writing\n"
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def partials(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".partial")]


def write(kind: str, target: Path) -> None:
    if kind == "file":
        replace_file(target, b"mine")
    else:
        with new_folder(target) as folder:
            (folder / "a").write_text("mine")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_removed_by_the_next(kind: str, tmp_path: Path) -> None:
    with writing(kind, tmp_path / "x") as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert len(partials(tmp_path)) == 1
        assert not (tmp_path / "x").exists()
    write(kind, tmp_path / "other")
    write(kind, tmp_path / "x.y")
    assert len(partials(tmp_path)) == 1  # of another target
    write(kind, tmp_path / "x")
    assert partials(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_live_process_writes_is_not_removed(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "x"
    with writing(kind, target) as child:
        remove_leftovers(target)
        remove_leftovers_in(tmp_path)
        write(kind, target)
        assert len(partials(tmp_path)) == 1
        child.communicate(b"")
        # a file is the later one's; a folder is the first's
        assert child.returncode == (0 if kind == "file" else 1)
    assert os.listdir(tmp_path) == ["x"]
    found = target.read_text() if kind == "file" else (target / "a").read_text()
    assert found == ("theirs" if kind == "file" else "mine")


def test_threads_of_one_process_do_not_remove_each_others(tmp_path: Path) -> None:
    def often() -> None:
        for _ in range(60):
            replace_file(tmp_path / "x", b"content")

    failed: list[BaseException] = []

    def run() -> None:
        try:
            often()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("name", ["a*b", "a[0]", "ü", "a b", ".hidden"])
def test_names_that_mean_something_elsewhere(name: str, tmp_path: Path) -> None:
    (tmp_path / f".{name}.0123abcd.partial").write_text("left")
    (tmp_path / ".aXb.0123abcd.partial").write_text("of another")
    replace_file(tmp_path / name, b"")
    assert sorted(os.listdir(tmp_path)) == sorted([".aXb.0123abcd.partial", name])


def test_what_only_looks_like_a_leftover_stays(tmp_path: Path) -> None:
    names = [".x.0123abcd.partial.txt", ".x.0123ABCD.partial", "x.0123abcd.partial", ".x.1.partial"]
    for name in names:
        (tmp_path / name).write_text("a user's")
    (tmp_path / "precious").mkdir()
    (tmp_path / ".x.01234567.partial").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / ".x.01234568.partial")
    replace_file(tmp_path / "x", b"")
    left = [*names, "precious", ".x.01234567.partial", ".x.01234568.partial", "x"]
    assert sorted(os.listdir(tmp_path)) == sorted(left)


def test_a_temporary_folder_is_removed_by_the_next_that_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with writing("temporary", tmp_path, TMPDIR=str(tmp_path)) as child:
        with temporary_folder() as mine:
            assert mine.stat().st_mode & 0o777 == 0o700
            assert len(partials(tmp_path)) == 2
        assert len(partials(tmp_path)) == 1  # it is alive
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert len(partials(tmp_path)) == 1
    with temporary_folder():
        assert len(partials(tmp_path)) == 1
    assert os.listdir(tmp_path) == []


REPLACING = """
import os, signal, sys
from pathlib import Path
from retnet_edge import atomic

moment, folder, target = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
calls = 0

def counted(real):
    def wrapped(*args, **options):
        global calls
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    return wrapped

Path.rename = counted(Path.rename)
Path.unlink = counted(Path.unlink)
os.unlink = counted(os.unlink)
os.rmdir = counted(os.rmdir)
atomic.replace_folder(folder, target)
"""


@pytest.mark.parametrize("moment", range(1, 6))
def test_a_folder_is_replaced_by_the_old_the_new_or_none(moment: int, tmp_path: Path) -> None:
    target = tmp_path / "x"
    for path, text in ((target, "old"), (tmp_path / "new", "new")):
        path.mkdir()
        (path / "a").write_text(text)
        (path / "b").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", REPLACING, str(moment), str(tmp_path / "new"), str(target)],
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    found = sorted(path.read_text() for path in target.glob("*"))
    assert found == {1: ["old"] * 2, 2: []}.get(moment, ["new"] * 2)
    with work_folder(target) as folder:
        (folder / "a").write_text("next")
        replace_folder(folder, target)
    assert (target / "a").read_text() == "next"
    assert partials(tmp_path) == []


def test_a_folder_is_not_published_over_another(tmp_path: Path) -> None:
    target = tmp_path / "x"
    (target / "theirs").mkdir(parents=True)
    with work_folder(target) as folder, pytest.raises(InputError, match="exists already"):
        publish(folder, target)
    assert os.listdir(tmp_path) == ["x"]
    assert os.listdir(target) == ["theirs"]
