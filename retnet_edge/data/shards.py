"""Writing token shards: text tokenized once, into files of bounded size with one manifest.

A folder of shards is one row of token ids, cut every `shard_tokens` tokens wherever that falls, so
that neither the cuts nor the number of processes can be seen in what is read. It is built beside
its place and renamed when whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
import numpy as np
from tokenizers import Tokenizer

from retnet_edge.atomic import (
    remove_folder,
    remove_leftovers,
    replace_folder,
    work_folder,
)
from retnet_edge.data.encoding import Encoded, encode_groups
from retnet_edge.data.kinds import Kind
from retnet_edge.data.sources import Source, find_sources, read_source
from retnet_edge.errors import InputError
from retnet_edge.files import file_entry, read_input
from retnet_edge.progress import hashing, progress
from retnet_edge.tokenizer import END_OF_TEXT, used_vocabulary
from retnet_edge.tokenizing.texts import whole

MANIFEST_FILE = "manifest.json"
_MANIFEST_BYTES = 64 << 20  # a few hundred bytes a shard and a source
SHARD_TOKENS = 1 << 27  # 256 MiB of uint16
MOST_WORKERS = 256  # processes
GROUP_CHARACTERS = 1 << 19  # of text given to a process at once: about 0.2 s of work

Dtype = Literal["uint16", "uint32"]


class SourceFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that the tokens were made from; `size` in bytes, `field` the column of a table."""

    name: str
    kind: Kind
    field: str | None
    size: int
    sha256: str

    def same_text(self, other: SourceFile) -> bool:
        """Whether both give the same documents, whatever the files are called."""
        return msgspec.structs.replace(self, name="") == msgspec.structs.replace(other, name="")


class ShardFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One shard; `text_bytes` is UTF-8 bytes of the documents that end in it."""

    file: str
    tokens: int
    text_bytes: int
    sha256: str


class ShardManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """manifest.json: what was tokenized, with what, and the shards in order.

    `sha256` is of the rest of the manifest, encoded with `sha256` empty. end_of_text: the id after
    each document, where that is not `<|endoftext|>`.
    """

    schema: Literal[1]
    dtype: Dtype
    tokenizer_sha256: str
    sources: tuple[SourceFile, ...]
    shards: tuple[ShardFile, ...]
    sha256: str = ""
    end_of_text: int | msgspec.UnsetType = msgspec.UNSET

    @property
    def tokens(self) -> int:
        """Of all shards."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return sum(shard.text_bytes for shard in self.shards)

    def own_sha256(self) -> str:
        """What `sha256` is where nothing was changed."""
        return hashlib.sha256(
            msgspec.json.encode(msgspec.structs.replace(self, sha256=""))
        ).hexdigest()


def read_manifest(folder: Path, *, check_hashes: bool = False) -> ShardManifest:
    """The manifest of a folder of shards, whose files are there and of the right size.

    Raises InputError naming the file where that is not so, and with `check_hashes` where a byte of
    a shard was changed.
    """
    path = folder / MANIFEST_FILE
    raw = read_input(path, _MANIFEST_BYTES, "a manifest of token shards")
    try:
        manifest = msgspec.json.decode(raw, type=ShardManifest)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a manifest of token shards: {error}") from error
    if manifest.sha256 != manifest.own_sha256():
        raise InputError(f"{path}: was changed: its own SHA-256 is another")
    for shard in manifest.shards:
        file = folder / shard.file
        wanted = shard.tokens * np.dtype(manifest.dtype).itemsize
        if file.name != shard.file or not file.is_file():
            raise InputError(f"{file}: the manifest lists this shard, which is missing")
        if file.stat().st_size != wanted:
            raise InputError(
                f"{file}: holds {file.stat().st_size} bytes, the manifest says {wanted}"
            )
    if not check_hashes:
        return manifest
    size = manifest.tokens * np.dtype(manifest.dtype).itemsize
    with hashing(f"check {folder.name}", size) as advance:
        for shard in manifest.shards:
            if file_entry(folder / shard.file, advance).sha256 != shard.sha256:
                raise InputError(
                    f"{folder / shard.file}: was changed: its SHA-256 is not the manifest's"
                )
    return manifest


def write_shards(
    paths: list[Path],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    text_field: str = "text",
    workers: int = 1,
    shard_tokens: int = SHARD_TOKENS,
    replace: bool = True,
    end: int | None = None,
) -> Path:
    """Tokenize `paths` into `folder`, or keep what is there if it was made from the same inputs.

    The shards do not depend on `workers`: with 1 this process tokenizes, on the threads of the
    tokenizers library; with more, that many processes do, on one thread each (a script then calls
    this under `if __name__ == "__main__"`). Without `replace`, whole shards of other inputs are not
    replaced but refused. end: the id after each document, None: `<|endoftext|>`. Returns `folder`.
    Raises InputError for sources that cannot be read or hold no text, for a tokenizer without an
    end of text, and where a process died; what was in `folder` then stays.
    """
    if not 1 <= workers <= MOST_WORKERS:
        raise InputError(f"{workers} workers: give at least 1 and at most {MOST_WORKERS}")
    tokenizer = whole(tokenizer)
    usual = tokenizer.token_to_id(END_OF_TEXT)
    end = usual if end is None else end
    if end is None:
        raise InputError(
            f"the tokenizer has no {END_OF_TEXT} token, and no generation_config.json or "
            "tokenizer_config.json beside it names another that ends a text"
        )
    sources = find_sources(paths)
    total = sum(source.size() for source in sources)
    with hashing("hash the text", total) as advance:
        described = tuple(_described(source, text_field, advance) for source in sources)
    wanted = ShardManifest(
        schema=1,
        dtype="uint16" if used_vocabulary(tokenizer) <= 1 << 16 else "uint32",
        tokenizer_sha256=hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
        sources=described,
        shards=(),
        end_of_text=msgspec.UNSET if end == usual else end,
    )
    remove_leftovers(folder)
    if folder.exists():
        try:
            found = read_manifest(folder, check_hashes=True)
        except InputError:
            found = None  # damaged: written anew, from the same inputs or not
        if found is not None and _same_inputs(found, wanted):
            return folder
        if found is not None and not replace:
            raise InputError(
                f"{folder}: the run was begun with other text or another --text-field; resume "
                "with the same or give another --out"
            )

    with (
        _whole_folder(folder) as staging,
        progress(f"tokenize {folder.name} (bytes read)", total) as advance,
        closing(_groups(sources, text_field, advance)) as groups,
        closing(encode_groups(groups, tokenizer, wanted.dtype, workers, end)) as encoded,
        ShardWriter(staging, wanted, shard_tokens) as writer,
    ):
        for some in encoded:
            writer.add(some)
        if not writer.close().tokens:
            raise InputError(f"{', '.join(map(str, paths))}: no text in {text_field!r}")
    return folder


class ShardWriter:
    """Cuts a row of token ids into files of `shard_tokens` in `folder`, and writes the manifest."""

    def __init__(self, folder: Path, about: ShardManifest, shard_tokens: int) -> None:
        """`about` is the manifest without its shards; its dtype is that of the files."""
        self.folder, self.about, self.shard_tokens = folder, about, shard_tokens
        self.shards: list[ShardFile] = []
        self._open()

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no file open, where it was not closed."""
        self._file.close()

    def add(self, encoded: Encoded) -> None:
        """Write some documents after those before."""
        tokens, ends, text_bytes = encoded
        while len(tokens):
            taken = tokens[: self.shard_tokens - self._tokens]
            raw = taken.astype(self.about.dtype).tobytes()
            self._file.write(raw)
            self._digest.update(raw)
            whole = int(np.searchsorted(ends, len(taken), side="right"))
            self._tokens += len(taken)
            self._text_bytes += int(text_bytes[:whole].sum())
            tokens, ends, text_bytes = (
                tokens[len(taken) :],
                ends[whole:] - len(taken),
                text_bytes[whole:],
            )
            if self._tokens == self.shard_tokens:
                self._close()
                self._open()

    def close(self) -> ShardManifest:
        """Finish the last shard, write the manifest and return it."""
        self._close()
        manifest = msgspec.structs.replace(self.about, shards=tuple(self.shards))
        manifest = msgspec.structs.replace(manifest, sha256=manifest.own_sha256())
        raw = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
        (self.folder / MANIFEST_FILE).write_bytes(raw + b"\n")
        return manifest

    def _open(self) -> None:
        self._name = f"shard-{len(self.shards):05d}.bin"
        self._file = (self.folder / self._name).open("wb")
        self._digest = hashlib.sha256()
        self._tokens = self._text_bytes = 0

    def _close(self) -> None:
        self._file.close()
        if self._tokens:
            digest = self._digest.hexdigest()
            self.shards.append(ShardFile(self._name, self._tokens, self._text_bytes, digest))
        else:
            (self.folder / self._name).unlink()


def _described(source: Source, text_field: str, advance: Callable[[int], None]) -> SourceFile:
    field = text_field if source.has_fields else None
    return SourceFile(source.name, source.kind, field, source.size(), source.sha256(advance))


def _same_inputs(found: ShardManifest, wanted: ShardManifest) -> bool:
    return (
        found.tokenizer_sha256 == wanted.tokenizer_sha256
        and found.end_of_text == wanted.end_of_text
        and len(found.sources) == len(wanted.sources)
        and all(map(SourceFile.same_text, found.sources, wanted.sources))
    )


def _groups(
    sources: list[Source], text_field: str, advance: Callable[[int], Any]
) -> Generator[list[str]]:
    """All documents in order, in groups of some GROUP_CHARACTERS; `advance` gets the bytes read."""
    group: list[str] = []
    characters = 0
    for source in sources:
        shown, size = 0, source.size()
        for document in read_source(source, text_field):
            group.append(document.text)
            characters += len(document.text)
            if characters >= GROUP_CHARACTERS:
                yield group
                group, characters = [], 0
                advance(min(document.position, size) - shown)
                shown = min(document.position, size)
        advance(size - shown)
    if group:
        yield group


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill that replaces `folder` when the block ends well, and else is removed.

    What earlier, killed processes left is removed first.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_folder(folder.with_name(f"{folder.name}.new"))  # what older versions left
    with work_folder(folder) as staging:
        yield staging
        replace_folder(staging, folder)
