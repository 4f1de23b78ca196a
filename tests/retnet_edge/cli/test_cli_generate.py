"""`generate` as a user meets it: stopped, piped, in the wrong encoding, twice on one file."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Tiny
from tiny_bundle import rewrite_manifest

from retnet_edge.cli.say import show_piece
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.text.generate import generate
from retnet_edge.runtime.text.sampling import Sampling
from retnet_edge.runtime.text.snapshot import load_snapshot

COMMAND = [sys.executable, "-m", "retnet_edge.cli", "generate"]
GREEDY = ["--temperature", "0"]


def run(*args: str | Path | bytes, **options: object) -> subprocess.CompletedProcess[bytes]:
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        [*COMMAND, *args],
        capture_output=True,
        timeout=120,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    return done


def assert_state_is_of(tiny: Tiny, path: Path, shown: str | None) -> None:
    """The file holds the prompt "The cat" and the tokens of `shown` (None: of some)."""
    bundle = tiny.open()
    snapshot = load_snapshot(path, bundle)
    session, tokenizer = open_session(bundle, threads=1), bundle.tokenizer()
    count = snapshot.position - len(tokenizer.encode("The cat").ids)
    assert count > 0
    text = "".join(
        generate(session, tokenizer, "The cat", max_tokens=count, sampling=Sampling(temperature=0))
    )
    assert snapshot.states[0].tobytes() == session.states()[0].tobytes()
    assert snapshot.seen == session.seen
    if shown is not None:
        assert shown == text


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_text_is_in_the_state_file(
    number: signal.Signals, status: int, tiny: Tiny, tmp_path: Path
) -> None:
    args = ["-p", "The cat", "-n", "100000000", *GREEDY, "--threads", "1", "--state"]
    child = subprocess.Popen(
        [*COMMAND, tiny.path, *args, tmp_path / "s"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout
    first = child.stdout.read(1)
    child.send_signal(number)
    rest, stderr = child.communicate(timeout=60)
    assert child.returncode == status, stderr
    assert b"Traceback" not in stderr
    assert_state_is_of(tiny, tmp_path / "s", (first + rest).decode().removesuffix("\n"))
    assert os.listdir(tmp_path) == ["s"]


def test_a_closed_pipe_leaves_the_state(tiny: Tiny, tmp_path: Path) -> None:
    args = ["-p", "The cat", "-n", "100000000", *GREEDY, "--threads", "1", "--state"]
    child = subprocess.Popen(
        [*COMMAND, tiny.path, *args, tmp_path / "s"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout
    assert child.stderr
    child.stdout.read(1)
    child.stdout.close()
    assert child.stderr.read() == b""
    assert child.wait(60) == 141
    assert_state_is_of(tiny, tmp_path / "s", None)


def test_a_second_one_on_the_same_state_file_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with (tmp_path / ".s.lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = run(tiny.path, "-p", "x", "--state", tmp_path / "s")
        assert done.returncode == 2
        assert b"is in use by another process" in done.stderr
        assert done.stdout == b""
    # what a killed process left behind is in nobody's way, and goes
    assert run(tiny.path, "-p", "x", "-n", "2", "--state", tmp_path / "s").returncode == 0
    assert os.listdir(tmp_path) == ["s"]


def test_a_state_that_cannot_be_written_is_told_before_the_text(tiny: Tiny) -> None:
    done = run(tiny.path, "-p", "x", "--state", "/proc/self/x.state")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"cannot be written" in done.stderr


def test_bytes_that_are_no_text(tiny: Tiny) -> None:
    done = run(tiny.path, "-p", b"a\xff")
    assert done.returncode == 2
    assert done.stderr.startswith(b"retnet-edge: the prompt is not UTF-8")
    chat = run(tiny.path, "-i", "-n", "3", input=b"The cat\n\xff\xfe\nthe dog\n")
    assert chat.returncode == 0
    assert b"this line was left out: it is not UTF-8 (byte 0 is 0xff)\n" in chat.stderr
    assert chat.stdout == run(tiny.path, "-i", "-n", "3", input=b"The cat\nthe dog\n").stdout


def test_a_console_that_lacks_a_character(tiny: Tiny, tmp_path: Path) -> None:
    tokenizer = tiny.open().tokenizer()
    args = ["-n", "60", "--temperature", "5", "--top-k", "0", "--top-p", "1", "--seed", "1"]
    utf8 = run(tiny.path, "-p", "The", *args).stdout.decode()
    assert not utf8.isascii()
    assert tokenizer
    for encoding in ("ascii", "latin-1"):
        done = run(tiny.path, "-p", "The", *args, env={**os.environ, "PYTHONIOENCODING": encoding})
        assert done.returncode == 0, done.stderr
        assert done.stdout == utf8.encode(encoding, "backslashreplace")
    assert done.stderr == b""


def test_control_characters_of_a_file_do_not_reach_the_terminal(broken: Path) -> None:
    rewrite_manifest(broken, schema_version=0)
    evil = broken.with_name("evil\x1b[31m\u202e.edge")
    broken.rename(evil)
    done = run(evil, "-p", "x")
    assert done.returncode == 2
    assert b"evil\\x1b[31m\\u202e.edge" in done.stderr
    assert b"\x1b" not in done.stderr
    unknown = run(evil, "-p", "x", "--backend", "\x1b[2J")
    assert unknown.returncode == 2
    assert b"\x1b" not in unknown.stderr


@pytest.mark.parametrize(("terminal", "shown"), [(True, "a\\x1b[2J\n"), (False, "a\x1b[2J\n")])
def test_a_model_does_not_steer_a_terminal(
    terminal: bool, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    show_piece("a\x1b[2J\n")
    assert capsys.readouterr().out == shown
