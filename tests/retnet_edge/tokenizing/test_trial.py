"""An unusual tokenizer is tried where it can be given up; a plain one starts no process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tokenizer_shapes import bert, byte_level, changed, llama, shape, t5

from retnet_edge.errors import InputError
from retnet_edge.tokenizer import load_tokenizer
from retnet_edge.tokenizing import trial


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokenizer.json"


def test_what_fails_on_a_text_is_refused(path: Path) -> None:
    """Pieces that have no token for the unknown: the library can load them, and not use them."""
    path.write_text(json.dumps(changed(shape("t5"), ("model", "unk_id"), None)))
    with pytest.raises(InputError, match=r"not a tokenizer that can be used: .*unk_id") as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("limit", "value"), [("MEMORY", 1 << 20), ("CPU_SECONDS", 0)])
def test_what_needs_too_much_is_given_up(
    limit: str, value: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sound file with less allowed than Python needs to start."""
    sound = t5()
    sound.add_tokens([f"{limit} {value}"])  # another file than those of other tests
    sound.save(str(path))
    monkeypatch.setattr(trial, limit, value)
    with pytest.raises(InputError, match=r"not a tokenizer that can be used: ") as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


def test_what_takes_too_long_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = t5()
    sound.add_tokens(["too long"])
    sound.save(str(path))
    monkeypatch.setattr(trial, "WALL_SECONDS", 0.001)
    with pytest.raises(InputError, match=r"it took more than 0\.001 seconds for a few texts"):
        load_tokenizer(path)


def test_a_file_is_tried_once(path: Path) -> None:
    bert().save(str(path))
    load_tokenizer(path)
    before = trial._tried.cache_info()
    load_tokenizer(path)
    after = trial._tried.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)


def test_a_plain_one_starts_no_process(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nothing/there")
    for made in (byte_level, llama):
        made().save(str(path))
        load_tokenizer(path)


def test_without_a_python_to_start_it_is_loaded_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "")
    bert().save(str(path))
    assert load_tokenizer(path).get_vocab_size() == 9
