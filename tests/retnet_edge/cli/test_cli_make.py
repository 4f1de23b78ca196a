"""The commands that make things, as a user meets them when something is wrong.

Each ends with its exit status and one sentence, and leaves the disk as it was. Lowering a graph
takes seconds and is tested elsewhere: here, a graph that was lowered once stands in for it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from conftest import file_size_limit
from micro_checkpoint import Exported, export_variant
from tiny_bundle import rewrite_manifest

import retnet_edge.export.export as export_module
from retnet_edge import cli
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.parity.golden import GOLDEN_FILE
from retnet_edge.tokenizer import load_tokenizer

SENTENCES = "the cat sat on the mat, and the dog sat by the door\n" * 40
SMALL = ("--context", "24", "--tokens", "48", "--memory-steps", "100", "--no-baseline")
Arguments = Sequence[str | Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A checkpoint and its fp32 bundle, which no test changes."""
    return export_variant("base", tmp_path_factory.mktemp("made"))


@dataclass(frozen=True)
class World:
    """A folder with a checkpoint, its bundle and a text, for a test to spoil."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def bundle(self) -> Path:
        return self.folder / "model.edge"

    @property
    def text(self) -> Path:
        return self.folder / "text.txt"

    @property
    def out(self) -> Path:
        return self.folder / "out.edge"

    def listing(self) -> list[str]:
        """Every path below the folder, temporary ones included."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*"))

    def judge(self, bundle: Path | None = None, **changes: str | Path) -> list[str | Path]:
        """The arguments of verify."""
        values = {"--checkpoint": self.checkpoint, "--text": self.text}
        values |= {f"--{name}": Path(value) for name, value in changes.items()}
        options = [part for pair in values.items() for part in pair]
        return ["verify", bundle or self.bundle, *options, *SMALL]

    def build(self, **changes: str | Path) -> list[str | Path]:
        """The arguments of build."""
        given = {"checkpoint": self.checkpoint, "out": self.out, "text": self.text} | changes
        return ["build", given["checkpoint"], given["out"], "--text", given["text"], *SMALL]

    def train(self, **changes: str | Path) -> list[str | Path]:
        """The arguments of train: one step of a micro model."""
        values: dict[str, str | Path] = {
            "out": self.out,
            "data": self.text,
            "valid": self.text,
            "model": self.checkpoint / "config.json",
            "vocab-size": "270",
            "steps": "1",
            "batch": "1",
            "seq-len": "16",
            "device": "cpu",
        }
        values |= changes
        return ["train", *(part for k, v in values.items() for part in (f"--{k}", v)),
                "--no-tensorboard"]  # fmt: skip


@pytest.fixture
def world(made: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    shutil.copytree(made.checkpoint, tmp_path / "checkpoint")
    shutil.copytree(made.bundle, tmp_path / "model.edge")
    (tmp_path / "text.txt").write_text(SENTENCES)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def lowered(lowering: Any, states: Any) -> ir.Model:
        return ir.load(made.bundle / f"{lowering.kind}.onnx")

    monkeypatch.setattr(export_module, "lower_onnx", lowered)
    return World(tmp_path)


@dataclass(frozen=True)
class Done:
    """What a command line ended with."""

    status: int
    stdout: str
    stderr: str


Main = Callable[[Arguments], Done]


@pytest.fixture
def main(capfd: pytest.CaptureFixture[str]) -> Iterator[Main]:
    """Run a command line in this process, whose signals are as in one of its own."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def run(args: Arguments) -> Done:
        capfd.readouterr()
        status = cli.main([str(arg) for arg in args])
        return Done(status, *capfd.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def changed_byte(world: World) -> None:
    raw = bytearray((world.bundle / "weights.bin").read_bytes())
    raw[100] ^= 1
    (world.bundle / "weights.bin").write_bytes(raw)


def truncated_graph(world: World) -> None:
    raw = (world.bundle / "prefill.onnx").read_bytes()
    (world.bundle / "prefill.onnx").write_bytes(raw[:-100])
    rewrite_manifest(world.bundle, rehash=True)


def truncated_checkpoint(world: World) -> None:
    weights = world.checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])


def other_checkpoint(world: World) -> None:
    """One weight differs in its last bit."""
    weights = world.checkpoint / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-4] ^= 1
    weights.write_bytes(raw)


def no_config(world: World) -> None:
    (world.checkpoint / "config.json").unlink()


def config_of_another_size(world: World) -> None:
    config = json.loads((world.checkpoint / "config.json").read_bytes())
    (world.checkpoint / "config.json").write_text(json.dumps(config | {"ffn_dim": 60}))


def tokenizer_too_large(world: World) -> None:
    tokenizer = load_tokenizer(world.checkpoint / "tokenizer.json")
    tokenizer.add_tokens([f"<extra {number}>" for number in range(150)])
    tokenizer.save(str(world.checkpoint / "tokenizer.json"))


def tokenizer_too_small(world: World) -> None:
    """One that 256 logits were enough for, where the model has 384."""
    tokenizer = json.loads((world.checkpoint / "tokenizer.json").read_bytes())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {t: i for t, i in vocabulary.items() if i < 250}
    tokenizer["model"]["merges"] = []
    (world.checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))


def broken_tokenizer(world: World) -> None:
    (world.checkpoint / "tokenizer.json").write_text("{}")


def short_text(world: World) -> None:
    world.text.write_text("the cat")


def no_text(world: World) -> None:
    world.text.unlink()


def empty_text(world: World) -> None:
    world.text.write_text("\n\n")


def text_of_bytes(world: World) -> None:
    world.text.write_bytes(b"the \xff cat" * 1000)


def out_exists(world: World) -> None:
    world.out.mkdir()


def nothing(world: World) -> None:
    pass


def export(world: World) -> Arguments:
    return ["export", world.checkpoint, world.out]


def quantize_(world: World) -> Arguments:
    return ["quantize", world.bundle, world.out]


def verify(world: World) -> Arguments:
    return world.judge()


def build(world: World) -> Arguments:
    return world.build()


def train(world: World) -> Arguments:
    return world.train()


Spoil = Callable[[World], None]
Command = Callable[[World], Arguments]
BAD_INPUTS: list[tuple[Spoil, Command, str]] = [
    *(
        (spoil, command, complaint)
        for command in (export, build)
        for spoil, complaint in (
            (no_config, "checkpoint: a checkpoint directory has a config.json"),
            (config_of_another_size, "ffn.inner.weight has shape"),
            (truncated_checkpoint, "model.safetensors: cannot be read as safetensors"),
            (tokenizer_too_large, "tokenizer.json: 4"),
            (tokenizer_too_small, "tokenizer.json does not match the vocabulary: the tokenizer"),
            (broken_tokenizer, "tokenizer.json: not a tokenizer file"),
            (out_exists, "out.edge exists already"),
        )
    ),
    (nothing, lambda w: ["export", w.folder / "none", w.out], "none: no such checkpoint"),
    (nothing, lambda w: ["export", w.checkpoint, w.out, "--to", "onnx,tflite"],
     "unknown backend 'tflite'; --to takes: onnx"),
    (nothing, lambda w: ["export", w.checkpoint, w.folder / "no/out"], "no is not a directory"),
    (nothing, lambda w: ["quantize", w.folder / "none.edge", w.out], "none.edge does not exist"),
    (nothing, lambda w: ["quantize", w.checkpoint, w.out], "checkpoint is not a bundle"),
    (nothing, lambda w: [*quantize_(w), "--recipe", "int3"],
     "unknown recipe 'int3'; known for onnxruntime: int8, int8-dynamic"),
    (nothing, lambda w: ["quantize", w.bundle, w.folder / "no/out"], "no is not a directory"),
    (nothing, lambda w: ["quantize", w.bundle, w.bundle], "model.edge exists already"),
    (changed_byte, quantize_, "weights.bin was changed: its SHA-256 is"),
    (truncated_graph, quantize_, "prefill.onnx is truncated or not an ONNX graph"),
    (nothing, lambda w: w.judge(w.folder / "none.edge"), "none.edge does not exist"),
    (nothing, lambda w: w.judge(checkpoint=w.folder / "none"), "none: no such checkpoint"),
    (other_checkpoint, verify, "model.edge was not made from"),
    (changed_byte, verify, "weights.bin was changed: its SHA-256 is"),
    (truncated_graph, verify, "prefill.onnx is truncated or not an ONNX graph"),
    (no_text, verify, "text.txt: cannot be read: No such file or directory"),
    (empty_text, verify, "text.txt: holds no text"),
    (text_of_bytes, verify, "text.txt: not UTF-8 text"),
    (short_text, verify, "tokens are fewer than one context of 24"),
    (nothing, lambda w: [*verify(w), "--tokens", "20"],
     "20 tokens in contexts of 24: give 2 <= context <= tokens"),
    (nothing, lambda w: w.build(checkpoint=w.folder / "none"), "none: no such checkpoint"),
    (nothing, lambda w: w.build(out=w.folder / "no/out"), "no is not a directory"),
    (nothing, lambda w: [*build(w), "--recipe", "int3"],
     "unknown recipe 'int3'; known for onnxruntime: int8, int8-dynamic"),
    (no_text, build, "text.txt: cannot be read: No such file or directory"),
    (short_text, build, "tokens are fewer than one context of 24"),
    (empty_text, build, "text.txt: holds no text"),
    (text_of_bytes, build, "text.txt: not UTF-8 text"),
    (no_text, train, "text.txt: cannot be read: No such file or directory"),
    (empty_text, train, "text.txt: holds no text"),
    (text_of_bytes, train, "text.txt: not UTF-8 text"),
    (nothing, lambda w: w.train(valid=w.folder / "none.txt"), "none.txt: cannot be read"),
    (nothing, lambda w: w.train(model="edge-1t"), "unknown preset 'edge-1t'"),
    (nothing, lambda w: w.train(model="none.json"), "none.json: cannot be read"),
    (nothing, lambda w: w.train(steps="0"), "training options: Expected `int` >= 1"),
    (nothing, lambda w: w.train(device="quantum"), "device 'quantum' cannot be used"),
    (nothing, lambda w: [*train(w), "--vocab-size", "100"],
     "vocab_size is 100; byte-level BPE needs 257"),
    (tokenizer_too_large, lambda w: w.train(tokenizer=w.checkpoint / "tokenizer.json"),
     "config.json: vocab_size is 384; the tokenizer has 4"),
    (nothing, lambda w: [*train(w), "--tokenizer", w.text], "text.txt: not a tokenizer file"),
    (nothing, lambda w: [*train(w), "--seq-len", "9999"], "too few for sequences of 9999"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "command", "complaint"), BAD_INPUTS)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    spoil: Spoil, command: Command, complaint: str, world: World, main: Main
) -> None:
    spoil(world)
    before = world.listing()
    done = main(command(world))
    assert done.status == 2
    assert done.stdout == ""
    # some things are known only when there are a tokenizer and tokens
    working = ("training a byte-level BPE of", "tokenize ")
    (sentence,) = (line for line in done.stderr.splitlines() if not line.startswith(working))
    assert sentence.startswith("retnet-edge: ")
    assert complaint in sentence
    assert world.listing() == before


def test_a_golden_file_that_is_none_is_refused_before_the_replay(world: World, main: Main) -> None:
    (world.bundle / GOLDEN_FILE).write_bytes(b"PK")
    rewrite_manifest(world.bundle, rehash=True)
    before = world.listing()
    done = main(world.judge())
    assert done.status == 2
    (sentence,) = done.stderr.splitlines()
    assert "golden.npz: the array near_tokens cannot be read" in sentence
    assert world.listing() == before


def test_a_tokenizer_of_a_run_that_never_began_is_not_taken_over(world: World, main: Main) -> None:
    """The first call is stopped when it has trained a tokenizer; the second wants another."""
    world.out.mkdir()
    assert main([*world.train(), "--seq-len", "9999"]).status == 2
    assert load_tokenizer(world.out / "tokenizer.json").get_vocab_size() == 270
    assert main([*world.train(), "--vocab-size", "260"]).status == 0
    assert load_tokenizer(world.out / "tokenizer.json").get_vocab_size() == 260


def fail_at(
    monkeypatch: pytest.MonkeyPatch, place: str, call: int, action: Callable[[], Any]
) -> None:
    """Have `action` happen where `module:function` is called for the `call`-th time."""
    module, name = place.split(":")
    real, calls = getattr(import_module(module), name), 0

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            action()
        return real(*args, **options)

    monkeypatch.setattr(f"{module}.{name}", wrapped)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def assert_interrupted(done: Done) -> None:
    assert done.status == 130
    assert done.stdout == ""
    assert done.stderr.endswith("\n\n")  # a line of its own after the terminal's ^C
    assert "Traceback" not in done.stderr
    assert "retnet-edge:" not in done.stderr


LOWERED = ("retnet_edge.export.export:lower_onnx", 2)
WEIGHTS_WRITTEN = ("onnx_ir:save", 1)
GRAPHS_WRITTEN = ("retnet_edge.runtime.bundle.writer:encode", 1)
VERIFYING = (
    ("retnet_edge.pipeline.verify:measure_kernel_parity", 1),
    ("retnet_edge.runtime.verify:measure_parity", 1),
    ("retnet_edge.runtime.verify:render_report", 1),
)


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (export, LOWERED),
        (export, WEIGHTS_WRITTEN),
        (export, ("retnet_edge.export.export:write_golden", 1)),
        (export, GRAPHS_WRITTEN),
        (quantize_, ("retnet_edge.quantize.quantize:apply_recipe", 2)),
        (quantize_, WEIGHTS_WRITTEN),
        (quantize_, GRAPHS_WRITTEN),
        (build, LOWERED),
        (build, ("retnet_edge.quantize.quantize:apply_recipe", 1)),
        (build, ("retnet_edge.runtime.bundle.writer:encode", 2)),  # of the quantized bundle
        *((build, place) for place in VERIFYING),
        *((verify, place) for place in VERIFYING),
        (lambda w: [*verify(w), "--baseline"], ("retnet_edge.export.export:lower_onnx", 1)),
    ],
)
def test_ctrl_c_leaves_nothing(
    command: Command, place: tuple[str, int], world: World, main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    before = world.listing()
    manifest = (world.bundle / "manifest.json").read_bytes()
    fail_at(monkeypatch, *place, press_ctrl_c)
    assert_interrupted(main(command(world)))
    assert world.listing() == before
    assert (world.bundle / "manifest.json").read_bytes() == manifest


def test_ctrl_c_while_memory_is_measured_ends_the_process_that_does(
    world: World, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before, seen = children.read_text(), []

    def advance(tokens: int) -> None:
        seen.append(children.read_text())
        if seen[-1] != before:
            press_ctrl_c()

    monkeypatch.setattr("retnet_edge.pipeline.verify.progress", lambda *_: nullcontext(advance))
    listing = world.listing()
    assert_interrupted(main(world.judge()))
    assert len(seen[-1].split()) == len(before.split()) + 1
    assert children.read_text() == before
    assert world.listing() == listing


def test_a_figure_out_of_tolerance_is_status_1_and_leaves_the_bundle(
    world: World, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retnet_edge.pipeline.verify.KERNEL_ERROR", -1.0)
    before = world.listing()
    done = main([*world.build(), "--json"])
    assert done.status == 1
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith(f"retnet-edge: {world.out} is unverified: ")
    assert "at most -1 is allowed" in sentence
    reasons = tuple(json.loads(done.stdout)["reasons"])
    verification = Bundle.open(world.out).manifest.verification
    assert (verification.status, verification.reasons) == ("unverified", reasons)
    assert [path for path in world.listing() if not path.startswith("out.edge")] == before


@pytest.mark.parametrize(
    ("command", "limit"),
    [
        (export, 20_000),
        (quantize_, 20_000),
        (build, 20_000),
        (lambda w: [*verify(w), "--baseline"], 1_000),
    ],
)
def test_a_full_disk_leaves_nothing(command: Command, limit: int, world: World, main: Main) -> None:
    before = world.listing()
    with file_size_limit(limit):
        done = main(command(world))
    assert_disk_full(done)
    assert world.listing() == before


def assert_disk_full(done: Done) -> None:
    assert done.status == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("retnet-edge: ")]
    assert sentences == [done.stderr.splitlines()[-1]]
    assert "disk full" in sentences[0]


def test_a_disk_that_is_full_when_reports_are_written(world: World, main: Main) -> None:
    manifest = (world.bundle / "manifest.json").read_bytes()
    with file_size_limit(len(manifest) + 1000):  # a profile is larger, and so is report.html
        done = main(world.judge())
    assert_disk_full(done)
    assert re.search(rf"({re.escape(str(world.bundle))}|\.json): disk full", done.stderr)
    assert (world.bundle / "manifest.json").read_bytes() == manifest
    assert Bundle.open(world.bundle).manifest.verification.status == "unverified"


@pytest.mark.parametrize("limit", [1_000, 50_000, 300_000])
def test_a_disk_that_is_full_while_training(limit: int, world: World, main: Main) -> None:
    """At the tokenizer, at a checkpoint's weights and at its optimizer; the run goes on later."""
    command = [*world.train(), "--steps", "2", "--save-every", "1"]
    with file_size_limit(limit):
        assert_disk_full(main(command))
    assert main(command).status == 0
    assert not [path for path in world.listing() if "partial" in path]


def ended_by_ctrl_c(
    args: Arguments, line: str, environment: dict[str, str]
) -> tuple[int | None, str]:
    """Status and standard error of a process of its own, interrupted when it has said `line`."""
    child = subprocess.Popen(
        [sys.executable, "-m", "retnet_edge.cli", *map(str, args)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    said = ""
    assert child.stderr is not None
    for said in child.stderr:
        if said.startswith(line):
            child.send_signal(signal.SIGINT)
            break
    _, rest = child.communicate(timeout=120)
    return child.returncode, said + rest


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (export, "lowering step"),
        pytest.param(export, "lowering prefill", marks=pytest.mark.slow),
        pytest.param(build, "lowering prefill", marks=pytest.mark.slow),
        pytest.param(build, "quantizing step", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_in_a_process_of_its_own(command: Command, line: str, world: World) -> None:
    """Seconds of work follow each of these lines."""
    before = world.listing()
    status, said = ended_by_ctrl_c(
        command(world), line, {"TMPDIR": str(world.folder / "temporary")}
    )
    assert (status, "Traceback" in said) == (130, False), said
    assert world.listing() == before
