"""Checkpoints: a directory of `config.json`, `model.safetensors` and `tokenizer.json`.

Where another token than `<|endoftext|>` ends a text, a `generation_config.json` names it, as
transformers reads it (`tokenizing/special_tokens.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from retnet_edge.config import (
    CONFIG_BYTES,
    ModelConfig,
    RetNetConfig,
    decode_config,
    encode_checkpoint_config,
)
from retnet_edge.errors import InputError
from retnet_edge.files import file_entry, input_size, read_input
from retnet_edge.model.retnet import RetNet
from retnet_edge.model.table_of_contents import read_table_of_contents
from retnet_edge.model.transformer import Transformer
from retnet_edge.progress import hashing, working
from retnet_edge.tokenizer import load_tokenizer, used_vocabulary
from retnet_edge.tokenizing.special_tokens import (
    SpecialTokens,
    find_special_tokens,
    write_special_tokens,
)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"

_COMPILED, _PARALLEL = "_orig_mod.", "module."

BYTES_A_SECOND = 3e8  # of weights that are read into a fresh model, roughly

LanguageModel = RetNet | Transformer


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: float32 weights whatever dtype they are stored in."""

    path: Path
    model: LanguageModel
    tokenizer: Tokenizer
    special: SpecialTokens

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
    special: SpecialTokens | None = None,
) -> None:
    """Write the files into an existing folder; weights are stored in `dtype`.

    `weights` by name stand for the model's own, where these are spread over ranks. special: which
    tokens end a text, None: `<|endoftext|>`. Raises InputError naming a weight that is not finite,
    or not in `dtype`.
    """
    tensors = {
        name: _stored(name, value.detach().to("cpu"), dtype)
        for name, value in (weights or _weights(model)).items()
    }
    (folder / CONFIG_FILE).write_bytes(encode_checkpoint_config(model.config))
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    tokenizer.save(str(folder / TOKENIZER_FILE))
    if special is not None:
        write_special_tokens(folder, special, tokenizer)


def load_weights(model: LanguageModel, path: Path) -> None:
    """Load weights into a model, in its dtype. Raises what `read_weights` raises."""
    stored = read_weights(model, path)
    with torch.no_grad():
        for name, parameter in _weights(model).items():
            parameter.copy_(stored[name])


def read_weights(model: LanguageModel, path: Path) -> dict[str, torch.Tensor]:
    """The weights of a file, as stored; the model (meta tensors will do) says what must be there.

    What torch.compile and data parallelism put before names (`plain_names`) is taken off. Raises
    InputError naming the file and the first key that is missing, unknown, of another shape or not
    finite, or the damage.
    """
    check_shapes(model, path)
    try:
        loaded = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read as safetensors: {error}") from error
    stored = {name: loaded.pop(theirs) for name, theirs in plain_names(loaded, path).items()}
    for name, tensor in stored.items():
        check_finite(tensor, f"{path}: {name}")
    return stored


def check_shapes(model: LanguageModel, path: Path) -> None:
    """Compare a file's table of contents with the model, meta tensors will do; no weight is read.

    Raises InputError naming the file and the first key that is missing, unknown or of another
    shape, or the damage.
    """
    found = read_table_of_contents(path)
    stored = {name: found[theirs].shape for name, theirs in plain_names(found, path).items()}
    expected = _weights(model)
    if missing := sorted(expected.keys() - stored.keys()):
        raise InputError(f"{path}: lacks the weight {missing[0]} ({len(missing)} missing in all)")
    if unknown := sorted(stored.keys() - expected.keys()):
        raise InputError(f"{path}: has an unknown weight {unknown[0]} ({len(unknown)} in all)")
    for name, parameter in expected.items():
        if stored[name] != tuple(parameter.shape):
            raise InputError(
                f"{path}: {name} has shape {list(stored[name])}, the configuration needs "
                f"{list(parameter.shape)}"
            )


def plain_names(names: Iterable[str], where: str | Path) -> dict[str, str]:
    """Our name of each weight, and the one in the file: without `_orig_mod.` and `module.`.

    torch.compile puts the first before the names of what it wraps, at any depth; data parallelism
    the second before all. Raises InputError where two weights then have one name.
    """
    plain: dict[str, str] = {}
    names = list(names)
    wrapped = bool(names) and all(name.startswith(_PARALLEL) for name in names)
    for theirs in names:
        name = theirs.removeprefix(_PARALLEL) if wrapped else theirs
        name = name.replace(_COMPILED, "")
        if name in plain:
            raise InputError(f"{where}: {plain[name]} and {theirs} are one weight, {name}")
        plain[name] = theirs
    return plain


def check_finite(tensor: torch.Tensor, what: str) -> None:
    """Raises InputError, which begins with `what`, where a value is NaN or infinite."""
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise InputError(f"{what} holds a value that is not finite")


def _stored(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    check_finite(tensor, name)
    narrow = tensor.to(dtype).contiguous()
    if narrow.dtype != tensor.dtype and not bool(narrow.isfinite().all()):
        largest, most = float(tensor.abs().max()), torch.finfo(dtype).max
        raise InputError(
            f"{name} holds {largest:g}, and {str(dtype).removeprefix('torch.')} at most {most:g}: "
            "store it in float32"
        )
    return narrow


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint directory. Raises InputError naming what is missing or does not fit."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such checkpoint directory")
    if not (path / CONFIG_FILE).exists():
        raise InputError(f"{path}: a checkpoint directory has a {CONFIG_FILE}")
    raw = read_input(path / CONFIG_FILE, CONFIG_BYTES, "a configuration")
    config = decode_config(raw, path / CONFIG_FILE)
    weights = path / WEIGHTS_FILE
    size = input_size(weights)
    with torch.device("meta"):  # a config may say anything: no memory before the file agrees
        check_shapes(build_model(config), weights)
    with working(f"reading {path}", size / BYTES_A_SECOND):
        model = build_model(config)
        load_weights(model, weights)
    tokenizer = load_tokenizer(path / TOKENIZER_FILE)
    check_tokens_fit(tokenizer, config.vocab_size, path / TOKENIZER_FILE)
    special = find_special_tokens(path, tokenizer)
    return Checkpoint(path, model.eval(), tokenizer, special)


def check_tokens_fit(tokenizer: Tokenizer, vocabulary: int, where: Path) -> None:
    """Raises InputError, naming the tokenizer's file, where an id has no row of the embedding."""
    if (used := used_vocabulary(tokenizer)) > vocabulary:
        raise InputError(
            f"{where}: {tokenizer.get_vocab_size()} tokens with ids up to {used - 1} do not fit "
            f"the model's vocabulary of {vocabulary}"
        )


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter by name; a tied head appears once, as the embedding."""
    return dict(model.named_parameters(remove_duplicate=True))
