"""Fixtures that several folders of tests share."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import tokenizers
from tiny_bundle import TinyModel, train_tokenizer, write_tiny_bundle

from retnet_edge.runtime.bundle import Bundle


@dataclass(frozen=True)
class Tiny:
    """A bundle on disk and the model that it was written from."""

    path: Path
    model: TinyModel

    def open(self) -> Bundle:
        return Bundle.open(self.path)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A retention bundle that no test changes."""
    path = tmp_path_factory.mktemp("bundles") / "tiny.edge"
    return Tiny(path, write_tiny_bundle(path))


@pytest.fixture(scope="session")
def tiny_transformer(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """An attention bundle, whose state grows, that no test changes."""
    path = tmp_path_factory.mktemp("bundles") / "transformer.edge"
    return Tiny(path, write_tiny_bundle(path, growing=True))


@pytest.fixture
def broken(tiny: Tiny, tmp_path: Path) -> Path:
    """A copy of the retention bundle, to be broken."""
    return Path(shutil.copytree(tiny.path, tmp_path / "broken.edge"))


@pytest.fixture(scope="session")
def tokenizer() -> tokenizers.Tokenizer:
    """The tokenizer of the tiny bundles."""
    return train_tokenizer()
