"""Other libraries' messages: not in an ordinary command, and there when it fails or on request."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import retnet_edge
from retnet_edge.quiet import VARIABLE, Quiet, compiled_code_hushed, hushed

LIBRARY = """
import logging, os, sys, warnings
def speak():
    warnings.warn("a deprecated enum", FutureWarning)
    logger = logging.getLogger("library.inner")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
    logger.warning("a remark of %s", "a logger")
    os.write(2, b"a line of compiled code\\n")
"""
NOISE = ("a deprecated enum", "a remark of a logger", "a line of compiled code")
COMMAND = """
import sys, library
from retnet_edge import cli
from retnet_edge.errors import CheckFailed, InputError
import retnet_edge.pipeline.info as module
def info(path):
    library.speak()
    print("our own line", file=sys.stderr)
    if (error := {"input": InputError, "check": CheckFailed, "bug": RuntimeError}.get(path.name)):
        raise error("what is wrong")
    return {}
module.info = info
sys.exit(cli.main(["info", sys.argv[1]]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "library.py").write_text(LIBRARY)
    return tmp_path


def run(
    folder: Path,
    script: str,
    *args: str,
    options: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    clean = {k: v for k, v in os.environ.items() if k not in (VARIABLE, "PYTHONWARNINGS")}
    return subprocess.run(
        [sys.executable, *options, "-c", script, *args],
        capture_output=True,
        text=True,
        env={**clean, "PYTHONPATH": paths, **(environment or {})},
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("fine", 0, "our own line\n"),
        ("input", 2, "our own line\nretnet-edge: what is wrong\n"),
        ("check", 1, "our own line\nretnet-edge: what is wrong\n"),
    ],
)
def test_a_command_says_what_is_ours_and_no_more(
    name: str, status: int, said: str, folder: Path
) -> None:
    done = run(folder, COMMAND, name)
    assert done.returncode == status
    assert done.stderr == said


def test_a_bug_shows_what_was_held_back_before_its_traceback(folder: Path) -> None:
    done = run(folder, COMMAND, "bug")
    assert done.returncode == 1
    assert done.stderr.startswith("our own line\nOther libraries said meanwhile:\n")
    for noise in NOISE:
        assert done.stderr.count(noise) >= 1
        assert done.stderr.index(noise) < done.stderr.index("Traceback")
    assert done.stderr.endswith("RuntimeError: what is wrong\n")


@pytest.mark.parametrize(
    ("options", "environment"),
    [((), {VARIABLE: "1"}), (("-W", "default"), {}), ((), {"PYTHONWARNINGS": "default"})],
)
def test_everything_is_shown_on_request(
    options: tuple[str, ...], environment: dict[str, str], folder: Path
) -> None:
    done = run(folder, COMMAND, "fine", options=options, environment=environment)
    assert done.returncode == 0
    for noise in (*NOISE, "our own line"):
        assert noise in done.stderr


def test_zero_asks_for_nothing(folder: Path) -> None:
    assert run(folder, COMMAND, "fine", environment={VARIABLE: "0"}).stderr == "our own line\n"


def test_an_abort_says_where_it_was(folder: Path) -> None:
    script = (
        "import os\nfrom retnet_edge.quiet import Quiet\n"
        "def the_culprit():\n    os.abort()\n"
        "with Quiet():\n    the_culprit()\n"
    )
    done = run(folder, script)
    assert done.returncode < 0
    assert "in the_culprit" in done.stderr


def test_errors_in_a_log_and_our_own_warnings_get_through(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    ours = str(Path(retnet_edge.__file__).parent / "runtime" / "bundle" / "bundle.py")
    quiet = Quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with quiet:
            logging.getLogger("library").error("it failed")
            logging.getLogger("library").warning("it works")
            warnings.warn_explicit("theirs", UserWarning, "/somewhere/torch/x.py", 1)
            warnings.warn_explicit("ours", UserWarning, ours, 1)
    assert capsys.readouterr().err == "retnet-edge: warning: ours\n"
    assert caplog.messages == ["it failed"]
    quiet.show()
    shown = capsys.readouterr().err
    assert "theirs" in shown
    assert "WARNING library: it works" in shown


def test_all_is_as_before_afterwards(folder: Path) -> None:
    script = (
        "import os, sys, library\nfrom retnet_edge.quiet import Quiet\n"
        "for _ in range(2):\n"
        "    with Quiet():\n        library.speak()\n"
        "assert sys.stderr is sys.__stderr__\n"
        "os.write(2, b'after\\n')\nlibrary.speak()\n"
    )
    done = run(folder, script)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("after\n")
    # its handler keeps the stream of the block, which stays open
    assert "a remark of a logger" in done.stderr
    assert done.stderr.count("a line of compiled code") == 1


def test_hushed_drops_without_a_command_and_keeps_with_one(
    capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    ours = str(Path(retnet_edge.__file__).parent / "model" / "retnet.py")

    def traced() -> None:
        with hushed():
            warnings.warn_explicit("the tracer saw a constant", UserWarning, ours, 1)
            logging.getLogger("torch.onnx").warning("a remark")

    traced()
    assert not recwarn.list
    quiet = Quiet()
    with quiet:
        traced()
    assert capsys.readouterr().err == ""
    quiet.show()
    assert "the tracer saw a constant" in capsys.readouterr().err


def test_compiled_code_is_dropped_without_a_command(folder: Path) -> None:
    script = (
        "import os, sys\nfrom retnet_edge.quiet import Quiet, compiled_code_hushed\n"
        "def speak(text):\n"
        "    with compiled_code_hushed():\n"
        "        os.write(2, text.encode())\n"
        "        print(' by Python', file=sys.stderr)\n"  # as ExecuTorch does
        "speak('dropped')\n"
        "quiet = Quiet()\n"
        "with quiet:\n    speak('held')\n"
        "os.write(2, b'now ')\n"
        "quiet.show()\n"
    )
    done = run(folder, script)
    assert done.stderr == "now Other libraries said meanwhile:\nheld by Python\n\n"
    assert "dropped" in run(folder, script, environment={VARIABLE: "1"}).stderr


def test_compiled_code_is_heard_again_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), compiled_code_hushed():
        raise RuntimeError
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"
