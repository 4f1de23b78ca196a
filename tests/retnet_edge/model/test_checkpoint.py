"""Checkpoints: what is written is what is read, and damage is named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from retnet_edge.config import ModelConfig, encode_config, retnet_config, transformer_like
from retnet_edge.errors import InputError
from retnet_edge.model.checkpoint import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    build_model,
    load_checkpoint,
    write_checkpoint,
)
from retnet_edge.tokenizer import train_tokenizer

CONFIG = retnet_config(
    vocab_size=300, d_model=16, layers=2, heads=2, ffn_dim=24, head_norm_affine=True
)
CONFIGS: dict[str, ModelConfig] = {
    "retnet": CONFIG,
    "retnet untied": msgspec.structs.replace(CONFIG, tie_embeddings=False),
    "transformer": transformer_like(CONFIG),
}


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat, and the dog sat by the door"], 270)


def write(
    folder: Path, config: ModelConfig, bpe: Tokenizer, dtype: torch.dtype = torch.float32
) -> Path:
    torch.manual_seed(0)
    folder.mkdir()
    write_checkpoint(folder, build_model(config), bpe, dtype=dtype)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path, bpe: Tokenizer) -> Path:
    return write(tmp_path / "checkpoint", CONFIG, bpe)


@pytest.mark.parametrize("kind", CONFIGS)
def test_round_trip(kind: str, tmp_path: Path, bpe: Tokenizer) -> None:
    config = CONFIGS[kind]
    path = write(tmp_path / "c", config, bpe)
    torch.manual_seed(0)
    wanted = build_model(config).eval()
    found = load_checkpoint(path)
    assert found.config == config
    assert found.path == path
    assert not found.model.training
    assert found.tokenizer.to_str() == bpe.to_str()
    for (name, a), (other, b) in zip(
        found.model.state_dict().items(), wanted.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b), name
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(found.model(tokens)[0], wanted(tokens)[0])
    assert sorted(p.name for p in path.iterdir()) == sorted(
        (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE)
    )


def test_a_tied_head_is_stored_once(tmp_path: Path, bpe: Tokenizer) -> None:
    assert "head.weight" not in load_file(write(tmp_path / "t", CONFIG, bpe) / WEIGHTS_FILE)
    untied = write(tmp_path / "u", CONFIGS["retnet untied"], bpe)
    assert "head.weight" in load_file(untied / WEIGHTS_FILE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_load_as_float32(
    tmp_path: Path, bpe: Tokenizer, dtype: torch.dtype
) -> None:
    path = write(tmp_path / "half", CONFIG, bpe, dtype)
    stored = load_file(path / WEIGHTS_FILE)
    assert {w.dtype for w in stored.values()} == {dtype}
    model = load_checkpoint(path).model
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, stored[name].float())
    # γ and θ are in the configuration, not among the weights, and stay float64
    assert model.frequencies.dtype == torch.float64
    full = write(tmp_path / "full", CONFIG, bpe)
    assert (path / WEIGHTS_FILE).stat().st_size < 0.6 * (full / WEIGHTS_FILE).stat().st_size


def test_the_weights_hash_is_of_the_file(checkpoint: Path) -> None:
    raw = (checkpoint / WEIGHTS_FILE).read_bytes()
    assert load_checkpoint(checkpoint).weights_sha256() == hashlib.sha256(raw).hexdigest()


def refused(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def change(checkpoint: Path, key: str, value: torch.Tensor | None) -> None:
    weights = load_file(checkpoint / WEIGHTS_FILE)
    if value is None:
        del weights[key]
    else:
        weights[key] = value
    save_file(weights, checkpoint / WEIGHTS_FILE)


def test_a_missing_weight_is_named(checkpoint: Path) -> None:
    change(checkpoint, "blocks.1.ffn.out.weight", None)
    refused(checkpoint, WEIGHTS_FILE, "lacks", "blocks.1.ffn.out.weight", "1 missing")


def test_an_unknown_weight_is_named(checkpoint: Path) -> None:
    change(checkpoint, "blocks.7.ffn.out.weight", torch.zeros(2))
    refused(checkpoint, WEIGHTS_FILE, "unknown", "blocks.7.ffn.out.weight")


def test_a_wrong_shape_is_named(checkpoint: Path) -> None:
    change(checkpoint, "blocks.0.retention.out.weight", torch.zeros(16, 31))
    refused(checkpoint, "blocks.0.retention.out.weight", "[16, 31]", "[16, 32]")


def test_a_configuration_of_another_size_is_refused(checkpoint: Path) -> None:
    smaller = msgspec.structs.replace(CONFIG, ffn_dim=20)
    (checkpoint / CONFIG_FILE).write_bytes(encode_config(smaller))
    refused(checkpoint, "ffn.inner.weight", "[48, 16]", "[40, 16]")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(checkpoint: Path, keep: int) -> None:
    weights = checkpoint / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:keep])
    refused(checkpoint, str(weights), "safetensors")


def test_a_tokenizer_larger_than_the_vocabulary(checkpoint: Path) -> None:
    bpe = train_tokenizer(["some other text about several things " * 3, "and more"], 330)
    for word in range(40):
        bpe.add_tokens([f"<extra {word}>"])
    assert bpe.get_vocab_size() > 300
    bpe.save(str(checkpoint / TOKENIZER_FILE))
    refused(checkpoint, TOKENIZER_FILE, str(bpe.get_vocab_size()), "300")


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE])
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    refused(checkpoint, name)


@pytest.mark.parametrize("name", [CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE])
def test_garbage_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).write_bytes(b"{ not this")
    refused(checkpoint, name)


def test_no_such_directory(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", str(tmp_path / "nowhere"), "no such checkpoint directory")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "no such checkpoint directory")


def test_reading_does_not_depend_on_where_it_lies(checkpoint: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(checkpoint, tmp_path / "another place")
    a, b = load_checkpoint(checkpoint), load_checkpoint(moved)
    assert a.weights_sha256() == b.weights_sha256()
    assert str(tmp_path).encode() not in (moved / WEIGHTS_FILE).read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(value: float, checkpoint: Path, bpe: Tokenizer) -> None:
    """Neither read nor written."""
    path = checkpoint / WEIGHTS_FILE
    weights = load_file(path)
    weights["blocks.1.ffn.out.weight"][0, 3] = value
    model = load_checkpoint(checkpoint).model
    save_file(weights, path)
    with pytest.raises(
        InputError,
        match=r"model\.safetensors: blocks\.1\.ffn\.out\.weight holds a value that is not",
    ):
        load_checkpoint(checkpoint)
    with pytest.raises(InputError, match=r"^blocks\.1\.ffn\.out\.weight holds a value that is not"):
        write_checkpoint(checkpoint, model, bpe, weights=weights)


def test_a_weight_beyond_float16(checkpoint: Path, bpe: Tokenizer) -> None:
    model = load_checkpoint(checkpoint).model
    with torch.no_grad():
        model.final_norm.weight[3] = 70_000.0
    with pytest.raises(
        InputError, match=r"final_norm\.weight holds 70000, and float16 at most 65504"
    ):
        write_checkpoint(checkpoint, model, bpe, dtype=torch.float16)
    write_checkpoint(checkpoint, model, bpe, dtype=torch.bfloat16)


def test_a_huge_configuration_takes_no_memory(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes are compared with the file's table of contents before a model is built."""
    fields = json.loads((checkpoint / CONFIG_FILE).read_bytes())
    (checkpoint / CONFIG_FILE).write_text(json.dumps({**fields, "d_model": 1_000_000}))
    built = []
    real = torch.nn.Embedding.__init__

    def embedding(self: torch.nn.Embedding, *arguments: object, **more: object) -> None:
        real(self, *arguments, **more)  # type: ignore[arg-type]
        built.append(self.weight.device.type)

    monkeypatch.setattr(torch.nn.Embedding, "__init__", embedding)
    with pytest.raises(InputError, match=r"has shape .*, the configuration needs .*1000000"):
        load_checkpoint(checkpoint)
    assert built == ["meta"]


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_what_is_no_file_is_named_and_not_waited_for(checkpoint: Path, name: str) -> None:
    path = checkpoint / name
    path.unlink()
    os.mkfifo(path)
    refused(checkpoint, name, "not a regular file")
    path.unlink()
    path.symlink_to("/dev/zero")
    refused(checkpoint, name, "not a regular file")
    path.unlink()
    path.touch()
    os.truncate(path, 1 << 40)
    refused(checkpoint, name)
