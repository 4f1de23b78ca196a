"""The folder that a document's blocks run in: small things under the names that the pages use."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from retnet_edge.export.export import export
from retnet_edge.model.checkpoint import build_model, write_checkpoint
from retnet_edge.presets import preset
from retnet_edge.quantize.quantize import quantize
from retnet_edge.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]
TEXT_LENGTH, VALID_LENGTH = 60_000, 6_000
TEXTS = ("train.txt", "heldout.txt", "calibration.txt")
PREPARED = ("a.edge", "fp32.edge", "model.edge", "runs/a", "runs/book")
"""What a page may make anew, under the same name."""
COMMANDS = {
    "python": 'exec "{python}" "$@"',
    "torchrun": 'exec "{python}" -m torch.distributed.run "$@"',
    "pip": "echo 'a block that installs is marked as not run' >&2; exit 1",
    "make": "echo 'a block that makes is marked as not run' >&2; exit 1",
    "retnet-edge": 'exec "{python}" -S "{root}/tests/docs/warm_shell.py" call "$WARM" "$@"',
}


_MADE: dict[str, Path] = {}
"""The prepared folder, under "", the warm process's socket, and each document's own copy."""


def folder_of(document: str, factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder that a document's blocks share, and the environment of its shell blocks."""
    if "" not in _MADE:
        _MADE[""] = factory.mktemp("documentation")
        prepare_folder(_MADE[""])
        _MADE["warm"] = _warm(factory.mktemp("warm") / "socket")
    if document not in _MADE:
        _MADE[document] = factory.mktemp("page") / "here"
        shutil.copytree(_MADE[""], _MADE[document], symlinks=True)
    folder = _MADE[document]
    path = (folder / ".commands", Path(sys.executable).parent, os.environ["PATH"])
    return folder, {
        **os.environ,
        "PATH": os.pathsep.join(map(str, path)),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "80",
        "WARM": str(_MADE["warm"]),
    }


def _warm(socket: Path) -> Path:
    """Start the process that runs `retnet-edge`; where it listens. It ends with this one."""
    server = subprocess.Popen(
        [sys.executable, ROOT / "tests/docs/warm_shell.py", "serve", socket],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(server.communicate)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return socket


def prepare_folder(folder: Path) -> None:
    """Checkpoints, bundles and texts of the smallest size, once for all documents."""
    shipped = ROOT / "checkpoints/edge-15m"
    whole = (shipped / "heldout.txt").read_text()
    text = whole[:TEXT_LENGTH]
    for name in TEXTS:
        (folder / name).write_text(text)
    (folder / "valid.txt").write_text(text[:VALID_LENGTH])
    torch.manual_seed(1)
    bpe = train_tokenizer([text], 300)
    model = build_model(preset("tiny", 384))
    for name in ("checkpoints/edge-15m", "runs/a/checkpoint", "runs/book/checkpoint"):
        (folder / name).mkdir(parents=True)
        write_checkpoint(folder / name, model, bpe)
    (folder / "checkpoints/edge-15m/heldout.txt").write_text(whole)
    shutil.copytree(ROOT / "tests/data/import/fla", folder / "my-folder")
    letters = Tokenizer(models.WordLevel({chr(97 + i): i for i in range(26)}, unk_token="a"))
    letters.save(str(folder / "tokenizer.json"))  # of fewer tokens than my-folder's model has
    made = export(folder / "runs/a/checkpoint", folder / "fp32.edge", say=lambda text: None)
    shutil.copytree(made, folder / "model.edge")
    quantize(made, folder / "a.edge", recipe="int8", native=True, say=lambda text: None)
    (folder / ".prepared").write_text("\n".join(PREPARED))
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    commands = folder / ".commands"
    commands.mkdir()
    for name, line in COMMANDS.items():
        script = f"#!/bin/sh\n{line.format(python=sys.executable, root=ROOT)}\n"
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
