"""One case's folder: a seed's files, some of them damaged, hashes and sizes made to fit again."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from random import Random

from fuzz.damage import containers, plain
from fuzz.damage.bundles import damage_manifest, damage_plan, mended_digest
from fuzz.damage.documents import damage_json
from fuzz.damage.packed import damage_packed, damage_table
from fuzz.damage.protobuf import damage_graph

Damage = Callable[[bytes, Random], bytes]

# The first pattern that a path fits decides.
DAMAGES: tuple[tuple[str, Damage], ...] = (
    ("model.edge/manifest.json", damage_manifest),
    ("*/native.json", damage_plan),
    ("*/native.table", damage_table),
    ("*.retnet", damage_packed),
    ("*.json", damage_json),
    ("*.onnx", damage_graph),
    ("*.npz", containers.damage_npz),
    ("*.safetensors", containers.damage_safetensors),
    ("*.state", containers.damage_state),
    ("*/.metadata", containers.damage_pickle),
    ("*.distcp", containers.damage_torch),
    ("source/*.bin", containers.damage_torch),
    ("*.pt", containers.damage_torch),
    ("model.edge/*.bin", plain.damage_numbers),
    ("*.prepared/*.bin", plain.damage_numbers),
    ("*", plain.damage_bytes),
)
ODD_SHARE = 0.03
MENDED_SHARE = 0.88


def files_of(folder: Path) -> list[str]:
    """Paths of the files below the folder, relative to it, in an order of its own."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def lay(seed: Path, case: Path) -> None:
    """The seed's files in a new folder, as links to the seed's own; writing anew breaks a link."""
    for folder, _, names in os.walk(seed):
        inner = case / os.path.relpath(folder, seed)
        inner.mkdir(parents=True)
        for name in names:
            os.link(os.path.join(folder, name), inner / name)


def damage_some(case: Path, patterns: tuple[str, ...], rng: Random) -> list[str]:
    """Damage one file, or two, of those that fit a pattern; the files' paths.

    Each pattern has the same chance, however many files fit it.
    """
    names = files_of(case)
    fitting = [[name for name in names if fnmatch(name, pattern)] for pattern in patterns]
    fitting = [found for found in fitting if found]
    chosen = {rng.choice(rng.choice(fitting)) for _ in range(rng.choice((1, 1, 1, 1, 2)))}
    if rng.random() < ODD_SHARE:
        name = rng.choice(sorted(chosen))
        return [f"{name}: {plain.odd_file(case / name, rng)}"]
    before = {name: (case / name).read_bytes() for name in names if _hashed(name)}
    for name in sorted(chosen):
        path = case / name
        old = path.read_bytes()
        new = next(change for pattern, change in DAMAGES if fnmatch(name, pattern))(old, rng)
        path.unlink()
        path.write_bytes(new)
    if rng.random() < MENDED_SHARE:
        mend(case, before)
    return sorted(chosen)


def _hashed(name: str) -> bool:
    return not name.endswith((".txt", ".state", ".jsonl"))


def mend(case: Path, before: dict[str, bytes]) -> None:
    """Every record of a changed file's size and SHA-256 becomes that of the new content.

    By the text of the records, so that a manifest that is no JSON any more is mended too. Manifests
    are written last: nothing holds a hash of theirs but another manifest.
    """
    for round_of in (False, True):
        for name, old in before.items():
            if name.endswith(("manifest.json", "prepared.json")) is not round_of:
                continue
            new = (case / name).read_bytes()
            if new != old:
                _rewrite(case, before, name, old, new)
    for name in before:
        if name.endswith("manifest.json"):
            _mend_digest(case / name)


def _mend_digest(path: Path) -> None:
    raw = path.read_bytes()
    if (new := mended_digest(raw)) != raw:
        path.unlink()
        path.write_bytes(new)


def _rewrite(case: Path, before: dict[str, bytes], name: str, old: bytes, new: bytes) -> None:
    sha = [hashlib.sha256(raw).hexdigest().encode() for raw in (old, new)]
    entry = re.compile(rb'("size"\s*:\s*)%d(\s*,\s*"sha256"\s*:\s*")%s' % (len(old), sha[0]))
    for record in before:
        if record == name or not record.endswith(".json"):
            continue
        path = case / record
        text = path.read_bytes()
        if sha[0] in text:
            text = entry.sub(lambda m: b"%s%d%s%s" % (m[1], len(new), m[2], sha[1]), text)
            path.unlink()
            path.write_bytes(text.replace(sha[0], sha[1]))


def size_of(case: Path) -> int:
    """Bytes of all files, as much as lies on the disk: of a file with holes what is not one."""
    total = 0
    for path in case.rglob("*"):
        found = path.lstat()
        total += min(found.st_size, found.st_blocks * 512)
    return total


def keep(case: Path, target: Path) -> None:
    """A copy of a case's folder, odd files as they are."""
    shutil.rmtree(target, ignore_errors=True)
    for folder, folders, names in os.walk(case):
        inner = target / os.path.relpath(folder, case)
        inner.mkdir(parents=True)
        for name in [*names, *(f for f in folders if os.path.islink(os.path.join(folder, f)))]:
            source = Path(folder) / name
            if source.is_symlink():
                (inner / name).symlink_to(os.readlink(source))
            elif source.is_fifo():
                os.mkfifo(inner / name)
            elif source.is_socket():
                os.mknod(inner / name, 0o140644)
            elif source.stat().st_size > source.stat().st_blocks * 512 + (1 << 20):
                (inner / name).touch()
                os.truncate(inner / name, source.stat().st_size)
            else:
                shutil.copy(source, inner / name)
