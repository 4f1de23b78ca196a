"""The commands that make things, as a user meets them when an input is wrong.

Each ends with its exit status and one sentence, and leaves the disk as it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import command_world
import pytest
from command_world import Command, Main, World, build, export, quantize_, train, verify
from tiny_bundle import rewrite_manifest

from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.parity.golden import GOLDEN_FILE
from retnet_edge.tokenizer import load_tokenizer

made = command_world.made
world = command_world.world
main = command_world.main


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


Spoil = Callable[[World], None]
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
