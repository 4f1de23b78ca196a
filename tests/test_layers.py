"""`make lint` holds the rooms' directions: kept as the tree stands, red where an arrow runs up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package in a folder of its own, its links followed, with the contracts beside it."""
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "retnet_edge", tmp_path / "retnet_edge", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> tuple[int, str]:
    """Exit status and output of import-linter on the package in `folder`."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_directions_hold(copy: Path) -> None:
    status, said = lint(copy)
    assert status == 0, said
    assert "0 broken" in said


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        (
            "runtime/bundle/manifest.py",
            "from retnet_edge.pipeline.build import build",
            "No arrow runs back up between the rooms",
        ),
        (
            "runtime/session/protocol.py",
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n"
            "    from retnet_edge.runtime.text.generate import IncrementalDetokenizer",
            "No arrow runs back up inside runtime",
        ),
        (
            "quantize/recipes/schemes.py",
            "def late() -> None:\n    import retnet_edge.quantize.tuning.tune",
            "No arrow runs back up inside quantize",
        ),
        (
            "training/schedule.py",
            "from retnet_edge.training.trainer import fit",
            "No circle, in any room",
        ),
        (
            "runtime/text/sampling.py",
            "import torch",
            "What runs on a device never imports torch",
        ),
    ],
)
def test_an_arrow_that_runs_up_is_red(copy: Path, module: str, line: str, contract: str) -> None:
    """At the top of a module, for type checkers alone, or in a function: an arrow is an arrow."""
    path = copy / "retnet_edge" / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    status, said = lint(copy)
    assert status == 1, said
    assert f"{contract} BROKEN" in said
    assert f".{Path(module).stem} " in said
