"""Checkpoints: a directory of `config.json`, `model.safetensors` and `tokenizer.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from retnet_edge.config import (
    ModelConfig,
    RetNetConfig,
    decode_config,
    encode_checkpoint_config,
)
from retnet_edge.errors import InputError
from retnet_edge.files import file_entry
from retnet_edge.model.retnet import RetNet
from retnet_edge.model.transformer import Transformer
from retnet_edge.progress import hashing, working
from retnet_edge.tokenizer import load_tokenizer

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"

BYTES_A_SECOND = 3e8  # of weights that are read into a fresh model, roughly

LanguageModel = RetNet | Transformer


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: float32 weights whatever dtype they are stored in."""

    path: Path
    model: LanguageModel
    tokenizer: Tokenizer

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self.model.config

    def weights_sha256(self) -> str:
        """SHA-256 of the weights file, the checkpoint's identity in a bundle's provenance."""
        path = self.path / WEIGHTS_FILE
        with hashing(f"hash {path}", path.stat().st_size) as advance:
            return file_entry(path, advance).sha256


def build_model(config: ModelConfig, *, dropout: float = 0.0) -> LanguageModel:
    """A model with fresh weights from torch's global generator."""
    if isinstance(config, RetNetConfig):
        return RetNet(config, dropout=dropout)
    return Transformer(config, dropout=dropout)


def write_checkpoint(
    folder: Path,
    model: LanguageModel,
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype = torch.float32,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the three files into an existing folder; weights are stored in `dtype`.

    `weights` by name stand for the model's own, where these are spread over ranks.
    """
    tensors = {
        name: value.detach().to("cpu", dtype).contiguous()
        for name, value in (weights or _weights(model)).items()
    }
    (folder / CONFIG_FILE).write_bytes(encode_checkpoint_config(model.config))
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    tokenizer.save(str(folder / TOKENIZER_FILE))


def load_weights(model: LanguageModel, path: Path) -> None:
    """Load weights into a model, in its dtype. Raises what `read_weights` raises."""
    stored = read_weights(model, path)
    with torch.no_grad():
        for name, parameter in _weights(model).items():
            parameter.copy_(stored[name])


def read_weights(model: LanguageModel, path: Path) -> dict[str, torch.Tensor]:
    """The weights of a file, as stored; the model (meta tensors will do) says what must be there.

    Raises InputError naming the file and the first key that is missing, unknown or of another
    shape, or the damage.
    """
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read as safetensors: {error}") from error
    expected = _weights(model)
    if missing := sorted(expected.keys() - stored.keys()):
        raise InputError(f"{path}: lacks the weight {missing[0]} ({len(missing)} missing in all)")
    if unknown := sorted(stored.keys() - expected.keys()):
        raise InputError(f"{path}: has an unknown weight {unknown[0]} ({len(unknown)} in all)")
    for name, parameter in expected.items():
        if stored[name].shape != parameter.shape:
            raise InputError(
                f"{path}: {name} has shape {list(stored[name].shape)}, the configuration needs "
                f"{list(parameter.shape)}"
            )
    return stored


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint directory. Raises InputError naming what is missing or does not fit."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such checkpoint directory")
    try:
        raw = (path / CONFIG_FILE).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: a checkpoint directory has a {CONFIG_FILE}") from error
    config = decode_config(raw, path / CONFIG_FILE)
    weights = path / WEIGHTS_FILE
    size = weights.stat().st_size if weights.is_file() else 0
    with working(f"reading {path}", size / BYTES_A_SECOND):
        model = build_model(config)
        load_weights(model, weights)
    tokenizer = load_tokenizer(path / TOKENIZER_FILE)
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise InputError(
            f"{path / TOKENIZER_FILE}: {tokenizer.get_vocab_size()} tokens do not fit the model's "
            f"vocabulary of {config.vocab_size}"
        )
    return Checkpoint(path, model.eval(), tokenizer)


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter by name; a tied head appears once, as the embedding."""
    return dict(model.named_parameters(remove_duplicate=True))
