"""What commands print on a terminal of 80 characters, on a narrow one, and into a pipe."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from conftest import Tiny
from micro_checkpoint import Exported, exported_once
from rich.cells import cell_len

LONG = "edge-135m-int4-weight-searched-and-tuned-on-news.edge"
BENCH = ("--prompt", "3,5,1024", "--generate", "2,4", "--repetitions", "1", "--threads", "1")
SMALL = ("--context", "24", "--tokens", "48", "--memory-steps", "100", "--no-baseline")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported_once(tmp_path_factory.getbasetemp(), "base")


@pytest.fixture(scope="module")
def long(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a long name."""
    return Path(shutil.copytree(tiny.path, tmp_path_factory.mktemp("long") / LONG))


def on_terminal(width: int, *args: str | Path) -> tuple[int, str]:
    """Status of the command, and what is left on a terminal of so many characters."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
    child = subprocess.Popen(
        [sys.executable, "-m", "retnet_edge.cli", *map(str, args)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**environment, "TERM": "xterm"},
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            some = os.read(master, 1 << 16)
        except OSError:  # the last one that had the terminal open is gone
            break
        if not some:
            break
        shown += some
    os.close(master)
    # bars are drawn over themselves and wiped at the end
    kept = [line.split("\x1b[2K")[-1] for line in shown.decode().split("\r\n")]
    text = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in kept]
    return child.wait(), "\n".join(line for line in text if "━" not in line)


def piped(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "retnet_edge.cli", *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "40"},
        check=False,
    )


def assert_fits(shown: str, width: int) -> None:
    for line in shown.splitlines():
        assert cell_len(line) <= width, line
    assert "…" not in shown


@pytest.mark.parametrize("width", [80, 60])
def test_info_fits(width: int, long: Path) -> None:
    status, shown = on_terminal(width, "info", long)
    assert status == 0
    assert_fits(shown, width)
    for word in ("6,232", "vocabulary", "unverified", "weights.bin"):
        assert word in shown.split()
    assert "0" * 64 in "".join(shown.split())


@pytest.mark.parametrize("width", [80, 60])
def test_bench_fits(width: int, long: Path) -> None:
    status, shown = on_terminal(width, "bench", long, *BENCH, "--depth", "0,9", "--no-memory")
    assert status == 0
    assert_fits(shown, width)
    assert shown.count("prompt") >= 6
    assert shown.count("generate") >= 4
    for word in ("1,024", "tokens/s", "upper", "quartile", "bandwidth"):
        assert word in shown.split()
    assert "Speed, continued" in shown  # ten tests


def test_a_profile_fits(long: Path) -> None:
    status, shown = on_terminal(80, "bench", long, "--profile", "--generate", "3")
    assert status == 0
    assert_fits(shown, 80)
    assert "MatMul" in shown.split()


def test_a_verification_fits_and_says_nothing_of_other_libraries(made: Exported) -> None:
    text = made.checkpoint.parent / "text.txt"
    text.write_text("the cat sat on the mat, and the dog sat by the door\n" * 40)
    bundle = Path(shutil.copytree(made.bundle, made.bundle.with_name(LONG)))
    arguments: list[str | Path] = [
        "verify",
        bundle,
        "--checkpoint",
        made.checkpoint,
        "--text",
        text,
        *SMALL,
    ]
    status, shown = on_terminal(80, *arguments)
    assert status in (0, 1)
    assert_fits(shown.partition("Figures and their bounds")[2], 80)
    for word in ("figure", "perplexity", "agreement", "onnx", "resident", "memory,"):
        assert word in shown.split()
    before = shown.partition(f"{LONG}: ")[0]
    assert all(line.startswith("replaying ") for line in before.split("\r") if line.strip()), before


def test_a_pipe_gets_whole_lines(long: Path) -> None:
    done = piped("bench", long, *BENCH, "--no-memory")
    assert done.returncode == 0
    (header,) = (line for line in done.stdout.splitlines() if line.startswith("test "))
    assert header.split()[1:] == ["3", "5", "1,024", "2", "4"]
    facts = piped("info", long).stdout
    assert re.search(rf"^ *path +{re.escape(str(long))}$", facts, re.MULTILINE)


def test_a_long_sentence_is_broken_between_words_on_a_terminal(tmp_path: Path) -> None:
    status, shown = on_terminal(40, "info", tmp_path / "a")
    assert status == 2
    for word in ("directory", "manifest.json", "bundle)", "checkpoint)"):
        assert word in shown.split()
    assert piped("info", tmp_path / "a").stderr.count("\n") == 1


def test_help_says_how_to_hear_other_libraries() -> None:
    assert "RETNET_EDGE_WARNINGS=1" in piped("--help").stdout
