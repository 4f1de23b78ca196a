"""Reading a public checkpoint: where its files are, and weights that are asked for by name."""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from retnet_edge.errors import InputError
from retnet_edge.files import input_size, read_input
from retnet_edge.model.checkpoint import plain_names
from retnet_edge.model.table_of_contents import read_table_of_contents
from retnet_edge.progress import hashing, working

CONFIG_FILE = "config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED_FROM_HUB = ("*.json", "*.safetensors", "*.bin", "*.pt", "*.pth")
_SAFETENSORS = ".safetensors"
_PICKLES = (".bin", ".pt", ".pth")
_NOT_THE_MODEL = ("optimizer", "scheduler", "rng_state", "training_args", "scaler")
_INDEX_BYTES = 64 << 20
_CONFIG_BYTES = 4 << 20  # all of it becomes objects, which take up to thirty times as much
BYTES_A_SECOND = 1e9  # of weights that are read, roughly
# What a file that is no checkpoint makes torch's reader of pickles raise: it trusts their order.
_UNREADABLE = (
    SafetensorError,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    ImportError,
    MemoryError,
    struct.error,
)
_WRAPPERS = ("model", "state_dict", "module")


_SHOWN = 255  # characters of a name that is no file's; a file's has no more


class _Index(msgspec.Struct, frozen=True):
    """What is read of an index: the file of each weight."""

    weight_map: dict[str, str]


class SourceWeights:
    """The tensors of a checkpoint, taken one by one; what is left at the end is unknown."""

    def __init__(self, where: Path, tensors: dict[str, Tensor]) -> None:
        """Hold `tensors`, read from `where`, under names without wrappers (`plain_names`)."""
        self.where = where
        self._tensors = {
            ours: tensors[theirs] for ours, theirs in plain_names(tensors, where).items()
        }

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self) -> list[str]:
        """Names not taken yet, sorted."""
        return sorted(self._tensors)

    def take(self, name: str, *shape: int | None) -> Tensor:
        """The float32 tensor `name`; None in `shape` stands for any length.

        Raises InputError where it is missing, has another shape, is no floating-point tensor or
        holds what is not finite.
        """
        if name not in self._tensors:
            raise InputError(f"{self.where}: lacks the weight {name}")
        tensor = self._tensors.pop(name)
        if tensor.layout != torch.strided or tensor.is_meta:
            raise InputError(
                f"{self.where}: {name} is no plain tensor with its numbers in the file"
            )
        found = list(tensor.shape)
        fits = len(found) == len(shape) and all(
            wanted in (None, length) for wanted, length in zip(shape, found, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if length is None else str(length) for length in shape)
            raise InputError(
                f"{self.where}: {name} has shape {found}, the configuration needs [{wanted}]"
            )
        if not tensor.is_floating_point():
            raise InputError(
                f"{self.where}: {name} is {tensor.dtype}; weights that are not quantized are needed"
            )
        if not tensor.isfinite().all():
            raise InputError(f"{self.where}: {name} holds a value that is not finite")
        return tensor.float()

    def drop(self, ending: str) -> None:
        """Leave aside every tensor whose name ends so."""
        self._tensors = {k: v for k, v in self._tensors.items() if not k.endswith(ending)}

    def finish(self) -> None:
        """Raise InputError naming the first weight that was not taken."""
        if left := self.names():
            raise InputError(
                f"{self.where}: has an unknown weight {left[0]} ({len(left)} in all); the "
                "configuration has no place for it"
            )


def source_folder(source: str) -> Path:
    """A local folder, or the download of a hub id. Raises InputError where there is neither."""
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{source}: not a folder; name the one that holds it and its config.json")
    if not _HUB_ID.fullmatch(source):
        raise InputError(f"{source}: no such folder, and not a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(_WANTED_FROM_HUB)))
    except Exception as error:  # the library's errors have no common base but this
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{source}: no such folder here, and not to be had from the hub: {reason}"
        ) from error


def read_fields(folder: Path) -> dict[str, Any]:
    """The object in config.json. Raises InputError where it is missing or not a JSON object."""
    path = folder / CONFIG_FILE
    raw = read_input(path, _CONFIG_BYTES, "a configuration of another project")
    try:
        fields = msgspec.json.decode(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path}: holds no JSON object")
    return fields


def read_source_weights(folder: Path) -> SourceWeights:
    """Every tensor of the folder's weights, in one file or in the shards that an index names.

    Pickles are read with `weights_only`, so nothing in them is run. Raises InputError where there
    is no weights file, more than one, or one that cannot be read.
    """
    path = _weights_file(folder)
    if path.name.endswith(".index.json"):
        tensors: dict[str, Tensor] = {}
        sizes = {shard: input_size(shard) for shard in _shards(path)}
        with hashing(f"read {folder.name}", sum(sizes.values())) as advance:
            for shard, size in sizes.items():
                tensors.update(_read(shard))
                advance(size)
        return SourceWeights(path, tensors)
    with working(f"reading {path}", input_size(path) / BYTES_A_SECOND):
        return SourceWeights(path, _read(path))


def _weights_file(folder: Path) -> Path:
    """safetensors before pickles; an index before the files that it names."""
    for endings in ((_SAFETENSORS,), _PICKLES):
        index = [p for ending in endings for p in folder.glob(f"*{ending}.index.json")]
        found = [
            path
            for path in sorted(folder.iterdir())
            if path.suffix in endings and not path.name.startswith(_NOT_THE_MODEL)
        ]
        if len(index) == 1:
            return index[0]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found[:3])
            raise InputError(f"{folder}: holds several weights files without an index: {names}")
    raise InputError(
        f"{folder}: holds no weights; {_SAFETENSORS}, {', '.join(_PICKLES)} files are read"
    )


def _shards(index: Path) -> Sequence[Path]:
    raw = read_input(index, _INDEX_BYTES, "an index of weights files")
    try:
        names = sorted(set(msgspec.json.decode(raw, type=_Index).weight_map.values()))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{index}: not an index of weights files: {error}") from error
    if not names:
        raise InputError(f"{index}: names no weights file")
    beside = {path.name for path in index.parent.iterdir()}
    for name in names:
        if Path(name).name != name:
            raise InputError(f"{index}: names {name[:_SHOWN]!r}, which is no file beside it")
        if name not in beside:
            raise InputError(f"{index}: names {name[:_SHOWN]}, which is not there")
    return [index.parent / name for name in names]


def _read(path: Path) -> dict[str, Tensor]:
    if input_size(path) == 0:
        raise InputError(f"{path}: is empty")
    if path.suffix == _SAFETENSORS:
        read_table_of_contents(path)
    try:
        if path.suffix == _SAFETENSORS:
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: not a file of weights only; save the model's state_dict() by itself"
        ) from error
    except _UNREADABLE as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(f"{path}: cannot be read: {reason}") from error
    for wrapper in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not found:
        raise InputError(f"{path}: holds no weights by name")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{path}: {name!r} is not the name of a tensor; save the model's state_dict() by "
                "itself"
            )
        if not value.is_meta and value.layout == torch.strided and _is_spread(value):
            raise InputError(f"{path}: {name} has more numbers than the file holds of it")
    return found


def _is_spread(tensor: Tensor) -> bool:
    """Whether places of the tensor share numbers, so that a small file makes a large one."""
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
