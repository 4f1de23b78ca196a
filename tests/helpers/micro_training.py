"""A model and a text small enough to train in seconds, and a child process that can be killed."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import torch

from retnet_edge.atomic import new_folder, replace_file
from retnet_edge.config import encode_config, retnet_config
from retnet_edge.tokenizer import END_OF_TEXT
from retnet_edge.training import step_checkpoint, trainer
from retnet_edge.training.evaluate import Evaluation
from retnet_edge.training.train import train
from retnet_edge.training.trainer import TrainOptions

WORDS = {
    "who": ["the cat", "a dog", "the old man", "my sister", "the naïve traveller"],
    "does": ["sees", "follows", "paints", "never forgets", "asks for"],
    "what": ["the river", "a green door", "some bread", "the first train", "an open window"],
    "when": ["in the morning", "at night", "after the rain", "on Sundays"],
}
OPTIONS = TrainOptions(
    steps=24, batch=2, seq_len=32, lr=3e-3, warmup=4, dropout=0.1, seed=7, form="chunkwise"
)


def write_text(path: Path, sentences: int, seed: int) -> Path:
    rng = random.Random(seed)
    lines = []
    for i in range(sentences):
        words = [rng.choice(choices) for choices in WORDS.values()]
        lines.append(" ".join(words).capitalize() + ".")
        if i % 25 == 24:
            lines.append(END_OF_TEXT)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_inputs(folder: Path) -> Path:
    """train.txt, valid.txt and config.json (d_model 32, 2 layers) in `folder`."""
    write_text(folder / "train.txt", 900, 0)
    write_text(folder / "valid.txt", 60, 1)
    config = retnet_config(vocab_size=384, d_model=32, layers=2, heads=2, ffn_dim=48)
    (folder / "config.json").write_bytes(encode_config(config))
    return folder


def run(inputs: Path, out: Path, options: TrainOptions = OPTIONS, **changes: Any) -> Evaluation:
    """`train` on the inputs' text, on one thread, validating and saving every few steps."""
    torch.set_num_threads(1)
    arguments: dict[str, Any] = {
        "model": str(inputs / "config.json"),
        "vocab_size": 384,
        "device": "cpu",
        "eval_every": 4,
        "save_every": 5,
        "tensorboard": False,
        "say": lambda text: None,
        **changes,
    }
    return train(
        out=out,
        data=[inputs / "train.txt"],
        valid=inputs / "valid.txt",
        options=options,
        **arguments,
    )


def _kill_in(moment: str) -> None:
    """Arrange for SIGKILL at the given moment of the run."""

    def kill(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    real_rate, real_replace = trainer.learning_rate, replace_file

    def rate(options: TrainOptions, step: int) -> float:
        if step == 13:
            wait_for(Path(sys.argv[2]) / "steps" / "step-00000010")
            kill()
        return real_rate(options, step)

    def replace(path: Path, content: bytes) -> None:
        if "00000015" in path.parent.name:  # the tensors are written, the manifest half
            path.write_bytes(content[: len(content) // 2])
            kill()
        real_replace(path, content)

    if moment == "between checkpoints":
        _replace(trainer, "learning_rate", rate)
    elif moment == "while writing a checkpoint":
        _replace(step_checkpoint, "replace_file", replace)
    elif moment == "before the first checkpoint":
        _replace(step_checkpoint.StepCheckpoints, "save", kill)
    elif moment == "while writing the result":
        _replace(trainer, "new_folder", _bundle_that_kills(new_folder))


def wait_for(path: Path) -> None:
    """What is written beside the training is there."""
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not appear"
        time.sleep(0.01)


def _replace(module: object, name: str, value: Any) -> None:
    assert hasattr(module, name)
    setattr(module, name, value)


def _bundle_that_kills(real: Any) -> Any:
    def killing(target: Path) -> Any:
        if target.name == "checkpoint":
            (target.parent / ".checkpoint.0.partial").mkdir()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(target)

    return killing


if __name__ == "__main__":
    _kill_in(sys.argv[3])
    steps = int(sys.argv[4]) if len(sys.argv) > 4 else OPTIONS.steps
    run(Path(sys.argv[1]), Path(sys.argv[2]), msgspec.structs.replace(OPTIONS, steps=steps))
