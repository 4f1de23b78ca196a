"""`retnet-edge train`, as a user meets it: checkpoints to start from, and int8-aware training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from retnet_edge import cli
from retnet_edge.config import retnet_config
from retnet_edge.model.checkpoint import build_model, load_checkpoint, write_checkpoint
from retnet_edge.tokenizer import train_tokenizer

SENTENCES = "the cat sat on the mat, and the dog sat by the door\n" * 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint and a text."""
    (tmp_path / "text.txt").write_text(SENTENCES)
    (tmp_path / "checkpoint").mkdir()
    torch.manual_seed(0)
    model = build_model(retnet_config(vocab_size=384, d_model=32, layers=1, heads=2, ffn_dim=48))
    write_checkpoint(tmp_path / "checkpoint", model, train_tokenizer([SENTENCES], 270))
    return tmp_path


def train(folder: Path, *arguments: str) -> int:
    """Two steps on the folder's text, into folder/out."""
    text, out = str(folder / "text.txt"), str(folder / "out")
    paths = ["--out", out, "--data", text, "--valid", text, "--no-tensorboard"]
    size = ["--steps", "2", "--batch", "1", "--seq-len", "16", "--device", "cpu"]
    return cli.main(["train", *paths, *size, *arguments])


def test_a_run_from_a_checkpoint(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No option but --init says what the model is."""
    assert train(folder, "--init", str(folder / "checkpoint"), "--int8-aware", "10") == 0
    said = capfd.readouterr()
    assert said.out.startswith(f"{folder / 'out' / 'checkpoint'}: held-out perplexity ")
    assert "training a byte-level BPE" not in said.err
    source, made = (load_checkpoint(folder / p) for p in ("checkpoint", "out/checkpoint"))
    assert made.config == source.config
    assert made.tokenizer.to_str() == source.tokenizer.to_str()


DECIDED = [
    ("--model", "tiny"),
    ("--model", "edge-15m"),  # the default's value, named all the same
    ("--arch", "transformer"),
    ("--arch", "retnet"),
    ("--tokenizer", "checkpoint/tokenizer.json"),
    ("--vocab-size", "8192"),
]


@pytest.mark.parametrize(("option", "value"), DECIDED)
def test_what_the_checkpoint_decides_cannot_be_given_beside_it(
    option: str, value: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    value = str(folder / value) if "/" in value else value
    sentence = f"retnet-edge: {option} is decided by the checkpoint of --init: leave it out\n"
    assert refusal(folder, capfd, "--init", str(folder / "checkpoint"), option, value) == sentence


def test_a_checkpoint_that_is_not_there(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    none = folder / "none"
    sentence = f"retnet-edge: {none}: no such checkpoint directory\n"
    assert refusal(folder, capfd, "--init", str(none)) == sentence
    text = folder / "text.txt"
    sentence = f"retnet-edge: {text}: no such checkpoint directory\n"
    assert refusal(folder, capfd, "--init", str(text)) == sentence


def test_int8_aware_training_with_dropout(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Refused before a run directory is made, which would hold these options for good."""
    said = refusal(folder, capfd, "--model", "tiny", "--int8-aware", "1", "--dropout", "0.1")
    assert said == "retnet-edge: training options: int8-aware training needs dropout 0\n"


def test_an_int8_aware_weight_below_0(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = refusal(folder, capfd, "--model", "tiny", "--int8-aware", "-1")
    assert said.startswith("retnet-edge: training options: Expected `float` >= 0")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--kept-activations", "0", "--compile"), "training options: Expected `float` > 0.0"),
        (("--kept-activations", "1.5", "--compile"), "training options: Expected `float` <= 1.0"),
        (
            ("--kept-activations", "0.8"),
            "--kept-activations below 1 needs a compiled model: give --compile\n",
        ),
        (
            ("--kept-activations", "0.8", "--compile", "--recompute"),
            "training options: --kept-activations below 1 goes with neither --recompute nor "
            "int8-aware training\n",
        ),
    ],
)
def test_kept_activations_that_cannot_be(
    arguments: tuple[str, ...], sentence: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = refusal(folder, capfd, "--model", "tiny", "--device", "cpu", *arguments)
    assert said.startswith(f"retnet-edge: {sentence}")


def refusal(folder: Path, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What standard error holds of a run that was refused, and that left nothing."""
    before = sorted(folder.rglob("*"))
    capfd.readouterr()
    assert train(folder, *arguments) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before
    return said.err


def test_a_tokenizer_s_training_shows_how_much_it_has_read(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the time left, as all counted work; then what is still to be done."""
    monkeypatch.setattr("retnet_edge.progress.LEAST_SECONDS", 0.0)
    monkeypatch.setattr("retnet_edge.progress.WORTH_A_WORD", 0.0)
    long = folder / "long.txt"
    long.write_text(f"{SENTENCES}\n<|endoftext|>\n" * 50)
    model = ["--model", str(folder / "checkpoint" / "config.json"), "--vocab-size", "270"]
    assert train(folder, *model, "--data", str(long)) == 0
    lines = capfd.readouterr().err.splitlines()
    size = long.stat().st_size + (folder / "text.txt").stat().st_size
    start = next(i for i, line in enumerate(lines) if line.startswith("training a byte-level BPE"))
    read = [line for line in lines if line.startswith("read for the tokenizer (bytes): ")]
    assert len(read) > 3
    assert read[0].endswith(" left")
    assert read[-1].startswith(f"read for the tokenizer (bytes): {size} of {size}, took ")
    learning = next(i for i, line in enumerate(lines) if line.startswith("learning 270 tokens"))
    assert start < lines.index(read[0]) < lines.index(read[-1]) < learning
