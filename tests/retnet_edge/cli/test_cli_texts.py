"""Texts reach every command whole, in any form that training reads, and as text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import command_world
import numpy as np
import pytest
from command_world import SENTENCES, Main, World
from tokenizers import Tokenizer, models

from retnet_edge.data.contexts import text_contexts
from retnet_edge.data.dataset import Shards
from retnet_edge.data.shards import write_shards
from retnet_edge.importing.checkpoint import import_checkpoint
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.quantize.quantize import contexts_of
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import MANIFEST_FILE, decode
from retnet_edge.runtime.bundle.writer import write_manifest

made = command_world.made
world = command_world.world
main = command_world.main

LINES = SENTENCES.splitlines()
END = "<|endoftext|>"
IMPORTED = Path(__file__).parents[2] / "data" / "import" / "torchscale-0.3.0"
LIMITS = {
    "truncation": {
        "direction": "Right",
        "max_length": 16,
        "strategy": "LongestFirst",
        "stride": 0,
    },
    "padding": {
        "strategy": {"Fixed": 200},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": END,
    },
}


def limit(path: Path) -> Path:
    """Let a tokenizer.json say that texts are cut off after 16 tokens and padded to 200."""
    path.write_text(json.dumps(json.loads(path.read_bytes()) | LIMITS))
    return path


@pytest.fixture
def limited(world: World) -> World:
    """A checkpoint and a bundle whose tokenizers have limits."""
    limit(world.checkpoint / "tokenizer.json")
    limit(world.bundle / "tokenizer.json")
    raw = (world.bundle / MANIFEST_FILE).read_bytes()
    write_manifest(world.bundle, decode(raw, MANIFEST_FILE))
    return world


def test_no_room_lets_a_tokenizer_cut_texts_off(limited: World, tmp_path: Path) -> None:
    """Contexts, calibration, shards by one process and by two, with the tokenizers they load."""
    checkpoint, bundle = load_checkpoint(limited.checkpoint), Bundle.open(limited.bundle)
    for tokenizer in (checkpoint.tokenizer, bundle.tokenizer()):
        assert (tokenizer.truncation, tokenizer.padding) == (None, None)
    ids = checkpoint.tokenizer.encode(SENTENCES.strip()).ids
    assert len(ids) > 500
    contexts = text_contexts(checkpoint.tokenizer, limited.text, 512, 256)
    assert np.concatenate(contexts).tolist() == ids[:512]
    found = contexts_of(bundle, limited.text, lambda _: None)
    assert found.ravel().tolist() == ids[: len(ids) // 256 * 256]
    for workers in (1, 2):
        shards = write_shards(
            [limited.text], checkpoint.tokenizer, tmp_path / f"{workers}", workers=workers
        )
        assert Shards(shards).tokens().tolist() == [*ids, 0]


def test_no_tokenizer_that_is_written_cuts_texts_off(limited: World, main: Main) -> None:
    """By export, which other programs read, and by an import."""
    assert main(["export", limited.checkpoint, limited.out]).status == 0
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(limited.folder / "words.json"))
    outside = limit(limited.folder / "words.json")
    import_checkpoint(IMPORTED, limited.folder / "taken", tokenizer=outside, say=lambda _: None)
    for folder in (limited.out, limited.folder / "taken"):
        written = json.loads((folder / "tokenizer.json").read_bytes())
        assert (written["truncation"], written["padding"]) == (None, None)


def test_a_run_with_a_tokenizer_of_limits_sees_the_whole_text(limited: World, main: Main) -> None:
    given = limited.train(tokenizer=limited.checkpoint / "tokenizer.json")
    given = [part for part in given if part not in ("--vocab-size", "270")]
    done = main(given)
    assert done.status == 0, done.stderr
    ids = load_checkpoint(limited.checkpoint).tokenizer.encode(SENTENCES.strip()).ids
    assert Shards(limited.out / "data" / "train").tokens().tolist() == [*ids, 0]


def write_rows(path: Path, field: str = "text") -> Path:
    raw = "".join(json.dumps({"id": i, field: line}) + "\n" for i, line in enumerate(LINES))
    path.write_bytes(gzip.compress(raw.encode()) if path.suffix == ".gz" else raw.encode())
    return path


def test_every_command_reads_rows(world: World, main: Main) -> None:
    """Packed ones with a field of another name, as the same text in prose."""
    world.text.write_text(f"\n{END}\n".join(LINES))
    column = write_rows(world.folder / "b.gz", "body")
    parity, weights = [], []
    for text, more in ((world.text, []), (column, ["--text-field", "body"])):
        done = main([*world.judge(text=text), "--json", *more])
        (found,) = json.loads(done.stdout[done.stdout.index("{") :])["backends"]
        parity.append(found["parity"])
        out = world.folder / f"{text.name}.q"
        given = ["--recipe", "int8-static", "--calibration", text, *more]
        done = main(["quantize", world.bundle, out, *given])
        assert done.status == 0, done.stderr
        weights.append((out / "weights.bin").read_bytes())
    assert parity[0] == parity[1]
    assert weights[0] == weights[1]
    done = main([*world.build(text=column), "--recipe", "fp32", "--text-field", "body"])
    assert done.status in (0, 1), done.stderr  # a figure may be out of tolerance, the text not


@pytest.mark.parametrize("command", ["verify", "build", "quantize", "tune", "train"])
def test_every_command_says_what_it_saw(command: str, world: World, main: Main) -> None:
    text = world.folder / "text.txt"
    write_rows(text)
    arguments = {
        "verify": world.judge(),
        "build": world.build(),
        "quantize": ["quantize", world.bundle, world.out, "--recipe", "int8-static",
                     "--calibration", text],
        "tune": ["tune", world.bundle, world.out, "--checkpoint", world.checkpoint,
                 "--data", text],
        "train": world.train(),
    }  # fmt: skip
    done = main(arguments[command])
    assert done.status == 2
    wanted = "text.txt: named as prose, but its lines are JSON objects with the fields 'id', 'text'"
    assert wanted in done.stderr
    assert not world.out.exists()


def test_three_rows_are_three_documents(world: World, main: Main) -> None:
    """Whatever they say about the end of a text."""
    rows = world.folder / "rows.jsonl"
    texts = [f"one {END} two", f"{END}\nthree\n{END}", "four " * 60]
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    done = main(world.train(data=rows, valid=rows))
    assert done.status == 0, done.stderr
    for folder in ("train", "valid"):
        tokens = Shards(world.out / "data" / folder).tokens().tolist()
        assert tokens.count(0) == 3
        tokenizer = load_checkpoint(world.out / "checkpoint").tokenizer
        whole = tokenizer.decode(tokens, skip_special_tokens=False)
        assert whole == END.join(texts) + END
