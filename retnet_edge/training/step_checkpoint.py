"""Checkpoints in the midst of training: written beside the training, by any number of ranks.

    steps/step-00000500/
      .metadata          which part of which tensor lies where   } torch.distributed.checkpoint
      __<rank>_0.distcp  a rank's parts of the tensors           }
      manifest.json      step, batches skipped, size and SHA-256 of every file above

Every tensor that training changes is stored by name, whole or in parts, so what four ranks wrote
can be read by two or by one. `save` copies the state and returns; a thread writes it into a hidden
folder, hashes what was written and renames the folder, so that one is there whole or not at all.

The manifest tells damage, not malice: whoever can change a file can change its hash. Yet nothing
in a checkpoint is executed: tensors are read with `weights_only`, and the one pickle, `.metadata`,
with an unpickler that knows only the classes of a table of contents.
"""

from __future__ import annotations

import io
import pickle
import re
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NamedTuple, Self

import msgspec
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from retnet_edge.atomic import replace_file
from retnet_edge.errors import DISK_FULL, InputError, is_disk_full
from retnet_edge.files import FileEntry, file_entry, read_input

MANIFEST_FILE = "manifest.json"
METADATA_FILE = ".metadata"
STATE = "state"
KEPT = 2
_MANIFEST_BYTES = 16 << 20  # a file a rank, and one
_TABLE_BYTES = 256 << 20  # some hundred bytes a tensor and rank

_METADATA = "torch.distributed.checkpoint.metadata"
_KNOWN = {
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta")),
    *((_METADATA, name) for name in ("TensorProperties", "_MEM_FORMAT_ENCODING")),
    *((_METADATA, name) for name in ("TensorStorageMetadata", "ChunkStorageMetadata")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    *(("torch", name) for name in ("Size", "float32", "float64", "bfloat16", "float16")),
    *((module, "PosixPath") for module in ("pathlib", "pathlib._local")),
}


# What unpickling raises where a pickle is none, or asks for what is not known.
_NO_TABLE = (
    pickle.UnpicklingError,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    ImportError,
    MemoryError,
)


class Progress(NamedTuple):
    """Steps done, and how many of them were skipped because something was not finite."""

    step: int
    skipped: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A step checkpoint's `manifest.json`; `step` is the number in its folder's name."""

    step: Annotated[int, msgspec.Meta(ge=1, lt=10**8)]
    skipped: Annotated[int, msgspec.Meta(ge=0, lt=10**8)]
    files: dict[str, FileEntry]


class StepCheckpoints:
    """The step checkpoints of one run, written one at a time; the newest two are kept.

    `group` is a process group of all ranks with a CPU backend, None for a single process. The
    `first` rank looks after the folder, which all ranks see. Leaving the `with` block waits for
    what is still being written, but not for other ranks when an error ends it.
    """

    def __init__(self, folder: Path, *, group: dist.ProcessGroup | None, first: bool) -> None:
        """Of the checkpoints in `folder`, which need not exist."""
        self._folder = folder
        self._group = group
        self._first = first
        self._thread = ThreadPoolExecutor(1, "step-checkpoint")
        self._pending: Future[None] | None = None
        # in a single process torch says that it takes it for one, at every call
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or unin")

    def __enter__(self) -> Self:
        """The checkpoints themselves."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the checkpoint that is being written."""
        if error is None or self._group is None:
            self.wait()
        self._thread.shutdown(wait=False)

    def newest(self, say: Callable[[str], None]) -> Path | None:
        """The newest checkpoint that is whole, None where there is none at all; first rank only.

        Also removes what a killed run has left half written. `say` is told of each checkpoint that
        is not whole. Raises InputError where none of several is.
        """
        for partial in self._folder.glob(".step-*.partial"):
            shutil.rmtree(partial)
        found = self._all()
        for path in reversed(found):
            try:
                read_manifest(path)
            except InputError as error:
                say(f"{error}: passed over")
            else:
                return path
        if found:
            raise InputError(
                f"{self._folder}: none of the {len(found)} checkpoints is whole; remove the folder "
                "to begin the run anew"
            )
        return None

    def load(self, path: Path, state: dict[str, Tensor]) -> Progress:
        """Read the checkpoint into the tensors of `state`, in place, on all ranks.

        Raises InputError where torch cannot read it, or where it lacks a tensor.
        """
        manifest = _decode_manifest(path)
        reader = _Reader(path)
        try:
            reader.read_metadata()  # torch prints where it failed in this, whoever catches it
        except InputError:
            raise
        except _NO_TABLE as error:
            raise InputError(f"{path / METADATA_FILE}: cannot be read: {error}") from error
        try:
            load({STATE: state}, storage_reader=reader, process_group=self._group)
        except CheckpointException as error:
            cause = _cause(error)
            raise InputError(f"{path}: cannot be read: {cause}") from cause
        return Progress(manifest.step, manifest.skipped)

    def save(self, progress: Progress, state: dict[str, Tensor]) -> None:
        """Copy `state` and begin to write it, once the checkpoint before is written.

        Raises what went wrong with that one: InputError for a full disk.
        """
        self.wait()
        staging = self._folder / f".step-{progress.step:08d}.partial"
        written = async_save(
            {STATE: state}, storage_writer=FileSystemWriter(staging), process_group=self._group
        )
        assert isinstance(written, Future)
        self._pending = self._thread.submit(self._complete, written, staging, progress)

    def wait(self) -> None:
        """Until what is being written is complete. Raises what went wrong."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _complete(self, written: Future[Any], staging: Path, progress: Progress) -> None:
        try:
            written.result()  # on the first rank: the files of all ranks are there
            if self._first:
                files = {path.name: file_entry(path) for path in sorted(staging.iterdir())}
                manifest = Manifest(progress.step, progress.skipped, files)
                encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
                replace_file(staging / MANIFEST_FILE, encoded + b"\n")
                self._take_its_place(staging, progress.step)
        except (CheckpointException, OSError) as error:
            cause = _cause(error) if isinstance(error, CheckpointException) else error
            if self._first:
                shutil.rmtree(staging, ignore_errors=True)
            if is_disk_full(cause):
                raise InputError(f"{self._folder}: {DISK_FULL}: no room for a step") from cause
            raise RuntimeError(f"{staging}: could not be written: {cause}") from cause

    def _take_its_place(self, staging: Path, step: int) -> None:
        target = self._folder / _name(step)
        for path in self._all():  # at this step or past it: damaged, and passed over on resuming
            if path.name >= target.name:
                shutil.rmtree(path)
        staging.rename(target)
        for old in self._all()[:-KEPT]:
            shutil.rmtree(old)

    def _all(self) -> list[Path]:
        """Of the run, oldest first."""
        found = self._folder.glob("step-*")
        return sorted(path for path in found if re.fullmatch(r"step-\d{8}", path.name))


def read_manifest(path: Path) -> Manifest:
    """The manifest of a step checkpoint whose every file is as it was written.

    Raises InputError naming the file that is missing, of another size or altered.
    """
    manifest = _decode_manifest(path)
    for name, entry in manifest.files.items():
        file = path / name
        try:
            size = file.stat().st_size
            found = file_entry(file) if size == entry.size else None
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror}") from error
        if found is None:
            raise InputError(f"{file}: {size} bytes where {entry.size} were written")
        if found.sha256 != entry.sha256:
            raise InputError(f"{file}: altered since it was written (its SHA-256 is another)")
    return manifest


def _decode_manifest(path: Path) -> Manifest:
    file = path / MANIFEST_FILE
    raw = read_input(file, _MANIFEST_BYTES, "the manifest of a step checkpoint")
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not the manifest of a step checkpoint: {error}") from error
    if path.name != _name(manifest.step) or manifest.skipped > manifest.step:
        raise InputError(
            f"{file}: says step {manifest.step}, of which {manifest.skipped} were skipped; in "
            f"{path.name} it is that step, and at most as many were"
        )
    return manifest


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _cause(error: CheckpointException) -> BaseException:
    """What went wrong on the lowest rank that says so."""
    return error.failures[min(error.failures)][0]


class _Reader(FileSystemReader):
    """Reads `.metadata` without executing what a pickle could ask for."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        raw = read_input(Path(self.path) / METADATA_FILE, _TABLE_BYTES, "a table of contents")
        metadata = _TableOfContents(io.BytesIO(raw)).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"{METADATA_FILE} holds a {type(metadata).__name__}")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _TableOfContents(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in _KNOWN:
            name = f"{module_name}.{global_name}"
            raise pickle.UnpicklingError(f"{METADATA_FILE} asks for {name}, which is not its")
        return super().find_class(module_name, global_name)
