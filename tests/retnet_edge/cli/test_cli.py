"""The command line as a user meets it: exit statuses, and one sentence for a mistake."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from conftest import Tiny
from tiny_bundle import rewrite_manifest, write_tiny_bundle

from retnet_edge.cli import app as cli
from retnet_edge.errors import CheckFailed
from retnet_edge.pipeline.info import info


def run(*args: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """`retnet-edge args` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "retnet_edge.cli", *map(str, args)],
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_one_sentence(done: subprocess.CompletedProcess[str], *fragments: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("retnet-edge: ")
    assert done.stderr.count("\n") == 1
    for fragment in fragments:
        assert fragment in done.stderr


def changed_byte(bundle: Path) -> None:
    raw = bytearray((bundle / "weights.bin").read_bytes())
    raw[-1] ^= 255
    (bundle / "weights.bin").write_bytes(raw)


def wrong_schema(bundle: Path) -> None:
    rewrite_manifest(bundle, schema_version=0)


def symlink(bundle: Path) -> None:
    (bundle / "weights.bin").rename(bundle.parent / "elsewhere")
    (bundle / "weights.bin").symlink_to(bundle.parent / "elsewhere")


def truncated_graph(bundle: Path) -> None:
    raw = (bundle / "step.onnx").read_bytes()
    (bundle / "step.onnx").write_bytes(raw[:-100])
    rewrite_manifest(bundle, rehash=True)


def missing_weights(bundle: Path) -> None:
    (bundle / "weights.bin").unlink()


@pytest.mark.parametrize(
    ("breakage", "complaint"),
    [
        (changed_byte, "weights.bin was changed"),
        (wrong_schema, "schema_version is 0"),
        (symlink, "weights.bin is a symlink"),
        (truncated_graph, "step.onnx is truncated or not an ONNX graph"),
        (missing_weights, "'weights.bin' is missing"),
    ],
)
def test_broken_bundles(breakage: Callable[[Path], None], complaint: str, broken: Path) -> None:
    breakage(broken)
    assert_one_sentence(run("generate", broken, "-p", "The"), str(broken), complaint)


def test_no_bundle(tmp_path: Path) -> None:
    done = run("generate", tmp_path / "none.edge", "-p", "The")
    assert_one_sentence(done, "none.edge does not exist")
    assert_one_sentence(run("info", tmp_path), "has neither manifest.json")


def test_tokenizer_and_vocabulary(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b", vocab=299)
    assert_one_sentence(run("generate", tmp_path / "b", "-p", "x"), "300", "299")


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["-p", ""], "the prompt '' has 0 tokens"),
        (["-p", "x", "--temperature", "-1"], "temperature is -1.0; allowed is 0"),
        (["-p", "x", "--top-p", "0"], "top_p is 0.0"),
        (["-p", "x", "-n", "0"], "max_tokens is 0"),
        (["-p", "x", "--threads", "0"], "threads is 0"),
        (["-p", "x", "-i"], "either --prompt TEXT or --interactive"),
        ([], "either --prompt TEXT or --interactive"),
    ],
)
def test_bad_values(args: list[str], complaint: str, tiny: Tiny) -> None:
    assert_one_sentence(run("generate", tiny.path, *args), complaint)


def test_usage_errors_end_with_2(tiny: Tiny) -> None:
    for args in (["nonsense"], ["generate"], ["generate", str(tiny.path), "--top-k", "many"]):
        done = run(*args)
        assert done.returncode == 2
        assert "Usage: retnet-edge" in done.stderr
        assert "Traceback" not in done.stderr


def test_generate_prints_the_text(tiny: Tiny) -> None:
    args = ["generate", str(tiny.path), "-p", "The cat", "-n", "10", "--seed", "3"]
    done = run(*args)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.endswith("\n")
    assert run(*args).stdout == done.stdout


def test_interactive_continues_one_state(tiny: Tiny) -> None:
    done = run("generate", tiny.path, "-i", "-n", "5", text="The cat\n\nThe dog\n")
    assert done.returncode == 0
    tokenizer = tiny.open().tokenizer()
    tokens = len(tokenizer.encode("The cat").ids) + len(tokenizer.encode("\nThe dog").ids) + 10
    assert done.stderr == f"state: 192 bytes after {tokens} tokens\n"


def test_a_state_file_carries_a_text_to_the_next_call(tiny: Tiny, tmp_path: Path) -> None:
    options = ["--temperature", "0", "--max-tokens", "6"]
    whole = run("generate", tiny.path, "-i", *options, text="The cat\nthe dog\n")
    pieces = [
        run("generate", tiny.path, "-i", *options, "--state", tmp_path / "s", text=line)
        for line in ("The cat\n", "the dog\n")
    ]
    assert whole.stdout == "".join(piece.stdout for piece in pieces)
    assert whole.stderr == pieces[1].stderr


def test_a_state_file_that_cannot_be(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"RETSTATE and so on")
    for path, fragment in ((tmp_path / "s", "header"), (tmp_path / "no" / "s", "not a directory")):
        done = run("generate", tiny.path, "-p", "The", "--state", path)
        assert_one_sentence(done, str(path.parent), fragment)


def test_interactive_without_input_ends_with_0(tiny: Tiny) -> None:
    done = run("generate", tiny.path, "-i", text="")
    assert done.returncode == 0
    assert "after 0 tokens" in done.stderr


def test_ctrl_c_in_an_interactive_session(tiny: Tiny) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "retnet_edge.cli", "generate", str(tiny.path), "-i", "-n", "3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdin
    assert child.stdout
    child.stdin.write(b"The cat\n")
    child.stdin.flush()
    child.stdout.read(1)  # it answers, so it is past its imports
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 130
    assert b"Traceback" not in stderr
    assert b"state: 192 bytes" in stderr


def test_a_reader_that_goes_away(tiny: Tiny) -> None:
    """It has gone before the first word, since a tiny text might fit into the pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    child = subprocess.Popen(
        [sys.executable, "-m", "retnet_edge.cli", "generate", tiny.path, "-p", "x", "-n", "100"],
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 141
    assert stderr == b""


def test_info_of_a_bundle(tiny: Tiny) -> None:
    done = run("info", tiny.path, "--json")
    assert done.returncode == 0
    facts = json.loads(done.stdout)
    assert facts == info(tiny.path)
    assert facts["model"]["parameters"] == 6232
    assert facts["state"]["bytes a sequence after 100,000 tokens"] == 192
    table = run("info", tiny.path).stdout
    for text in ("6,232", "fp32", "unverified", "weights.bin", "0" * 16):
        assert text in table


def write_checkpoint(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text('{"type": "retnet", "d_model": 4, "gammas": [0.5]}')
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
            "b": {"dtype": "F32", "shape": [], "data_offsets": [24, 28]},
        }
    ).encode()
    raw = struct.pack("<Q", len(header)) + header + b"\0" * 28
    (folder / "model.safetensors").write_bytes(raw)


def test_info_of_a_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c")
    facts = info(tmp_path / "c")
    assert facts["checkpoint"]["parameters"] == 7
    assert facts["config"] == {"type": "retnet", "d_model": 4}
    assert "d_model" in run("info", tmp_path / "c").stdout


def test_info_of_a_broken_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c")
    (tmp_path / "c/model.safetensors").write_bytes(b"\xff" * 30)
    assert_one_sentence(
        run("info", tmp_path / "c"), "cannot be read as safetensors: it is truncated or"
    )
    (tmp_path / "c/model.safetensors").unlink()
    assert_one_sentence(run("info", tmp_path / "c"), "model.safetensors is missing")


def status_of(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(sys.modules[__name__], "failing", failing, raising=False)
    monkeypatch.setitem(cli.COMMANDS, "failing", cli.LazyCommand(f"{__name__}:failing", "Fails."))
    previous = signal.getsignal(signal.SIGTERM)
    try:
        return cli.main(["failing"])
    finally:
        signal.signal(signal.SIGTERM, previous)


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (CheckFailed("mean_kl is 1.0"), 1, "retnet-edge: mean_kl is 1.0\n"),
        (KeyboardInterrupt(), 130, "\n"),
        (cli.Terminated(), 143, ""),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            2,
            "retnet-edge: torch is not installed: pip install 'retnet-edge[train]'\n",
        ),
        (PermissionError(13, "Permission denied", "/x"), 2, "retnet-edge: /x: Permission denied\n"),
    ],
)
def test_statuses(
    error: BaseException,
    status: int,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status_of(error, monkeypatch) == status
    assert capsys.readouterr().err == sentence


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        status_of(ZeroDivisionError(), monkeypatch)


def test_every_command_of_the_table_exists() -> None:
    context = click.Context(cli.cli)
    for name in cli.COMMANDS:
        assert cli.cli.get_command(context, name)


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["generate", "--help"], ["info", "-h"]]
)
def test_help_is_light(args: list[str]) -> None:
    script = (
        "import sys; from retnet_edge import cli; status = cli.main(sys.argv[1:]); "
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'numpy', 'tokenizers', 'rich') "
        "if m in sys.modules]); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *args], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("closed", [1, 2])
def test_a_stream_that_was_closed_is_no_traceback(closed: int, tiny: Tiny) -> None:
    """As by `retnet-edge info BUNDLE >&-` in a shell."""
    other = 3 - closed
    done = subprocess.run(
        [sys.executable, "-m", "retnet_edge.cli", "info", str(tiny.path)],
        preexec_fn=lambda: os.close(closed),
        stdout=subprocess.PIPE if other == 1 else None,
        stderr=subprocess.PIPE if other == 2 else None,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert b"Traceback" not in (done.stderr or b"")
