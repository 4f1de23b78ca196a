"""Writing a bundle's manifest: always with the hashes of the files that lie beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from retnet_edge.atomic import remove_leftovers_in, replace_file
from retnet_edge.errors import InputError
from retnet_edge.files import file_entry, regular_file
from retnet_edge.progress import hashing
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import MANIFEST_FILE, Manifest, encode, with_digest


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write manifest.json with `files` = size and SHA-256 of every other file below `folder`.

    What a killed `replace_file` left is removed first. Returns the manifest as written. Raises
    InputError for a symlink, or a file whose name a bundle may not hold.
    """
    remove_leftovers_in(folder)
    files = {}
    named = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    total = sum(path.lstat().st_size for path in named.values())
    with hashing("hash the bundle's files", total) as advance:
        for name, path in named.items():
            if name != MANIFEST_FILE and (path.is_symlink() or not path.is_dir()):
                files[name] = file_entry(regular_file(folder, name, folder), advance)
    manifest = with_digest(msgspec.structs.replace(manifest, files=files))
    replace_file(folder / MANIFEST_FILE, encode(manifest))
    return manifest


def update_manifest(bundle: Bundle, **changes: Any) -> Bundle:
    """The bundle with some of its manifest's fields replaced and `files` computed anew.

    For reports and verdicts: graphs, weights and tokenizer must be what they were when the bundle
    was opened, else InputError, and the manifest on disk stays as it was.
    """
    manifest = msgspec.structs.replace(bundle.manifest, **changes)
    fixed = {manifest.tokenizer.file}
    for graph in manifest.graphs:
        fixed |= {graph.file, *graph.external_data}
    for name in sorted(fixed):
        if file_entry(bundle.file(name)) != bundle.manifest.files[name]:
            raise InputError(f"{bundle.path / name} was changed since the bundle was opened")
    return Bundle(bundle.path, write_manifest(bundle.path, manifest))
