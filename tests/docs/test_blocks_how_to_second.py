"""Blocks of the documentation, run: those of `PARTS["how_to_second"]` in doc_blocks.py."""

from __future__ import annotations

import pytest
from doc_blocks import blocks_of, run
from sybil import Example


@pytest.mark.parametrize("example", blocks_of("how_to_second"))
def test_block(
    example: Example, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(example, tmp_path_factory, monkeypatch)
