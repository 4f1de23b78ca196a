"""The fuzzer itself: it tells every kind of fault, damages what it should, and repeats itself."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fuzz import scene
from fuzz.damage import containers, plain, protobuf
from fuzz.damage.bundles import damage_manifest, damage_plan
from fuzz.damage.documents import damage_json, parse, write
from fuzz.damage.packed import HEADER, damage_packed, damage_table, mended, sections_of
from fuzz.planted import PLANTED
from fuzz.scene import Damage
from fuzz.targets import TARGETS, open_bundle
from fuzz.worker import Case, prepare_case, run_case
from retnet_edge.runtime.backends.native.library import native_available
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.packed.pack import pack
from retnet_edge.runtime.text.snapshot import Snapshot, load_snapshot, save_snapshot

TESTS = Path(__file__).resolve().parents[1]
BUNDLE = TESTS / "data" / "compatibility" / "bundle"
CHECKPOINT = TESTS / "data" / "compatibility" / "checkpoint"
TARGET = {target.name: target for target in TARGETS}
PATHS = (TESTS.parent, TESTS, TESTS / "helpers", TESTS / "helpers" / "bundles")

EXPECTED = {
    "fine": "done",
    "refused": "refused",
    **dict.fromkeys(("segfault", "abort", "leaves"), "crash"),
    **dict.fromkeys(("computes on", "waits on", "child waits"), "hang"),
    **dict.fromkeys(("foreign", "panic"), "exception"),
    **dict.fromkeys(("takes much", "takes more and more", "asks for all"), "memory"),
}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python …` with the fuzzer's paths, as the Makefile sets them."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PATHS)), **environment},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What was told of the planted faults, and the folder where wrong cases are kept."""
    folder = tmp_path_factory.mktemp("planted")
    done = run("-m", "fuzz.planted", str(folder))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder / "found"


def test_every_planted_fault_is_named_by_its_kind(planted: tuple[dict[str, Any], Path]) -> None:
    said = planted[0]["said"]
    assert EXPECTED.keys() == PLANTED.keys()
    assert {name: [kind for kind, _ in said[name]] for name in said} == {
        name: [kind, kind] for name, kind in EXPECTED.items()
    }
    assert "SIGSEGV" in said["segfault"][0][1]
    assert "SIGABRT" in said["abort"][0][1]
    assert "exit 3" in said["leaves"][0][1]
    assert "KeyError('weights')" in said["foreign"][0][1]
    assert "where 200 are allowed" in said["takes much"][0][1]


def test_what_a_hanging_case_started_is_ended(planted: tuple[dict[str, Any], Path]) -> None:
    assert planted[0]["left"] == ""


def test_wrong_cases_are_kept_to_be_run_again(planted: tuple[dict[str, Any], Path]) -> None:
    said, folder = planted
    wrong = [name for name, kind in EXPECTED.items() if kind not in ("done", "refused")]
    assert said["wrong"] == 2 * len(wrong)
    assert {path.name for path in folder.iterdir()} == {
        f"{name}-deep-0-{number}" for name in wrong for number in range(2)
    }
    kept = json.loads((folder / "foreign-deep-0-1" / "case.json").read_text())
    assert (kept["case"], kept["kind"]) == ("foreign:deep:0:1", "exception")
    assert (folder / "foreign-deep-0-1" / "file.json").is_file()
    assert (folder / "waits on-deep-0-0" / "fifo").is_fifo()


def digest_of_cases(seeds: Path, work: Path) -> str:
    """Of all files of some cases of each target that has seeds."""
    digest = hashlib.sha256()
    for target in TARGETS:
        if not any((seeds / name).is_dir() for name in target.seeds):
            continue
        for number in range(40):
            prepare_case(Case(target.name, "deep", 3, number), target, seeds, work / "case")
            for name in scene.files_of(work / "case"):
                path = work / "case" / name
                if not path.is_symlink() and path.stat().st_size < 1 << 24:
                    digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """The committed bundle and checkpoint as seeds."""
    shutil.copytree(BUNDLE, tmp_path / "seeds" / "bundle-old" / "model.edge")
    shutil.copytree(CHECKPOINT, tmp_path / "seeds" / "checkpoint" / "checkpoint")
    return tmp_path / "seeds"


def test_a_case_is_the_same_in_every_process(seeds: Path, tmp_path: Path) -> None:
    """The order of a set of texts differs between processes, and must not matter."""
    script = (
        "import sys; from pathlib import Path; from fuzz.test_fuzz import digest_of_cases;"
        "print(digest_of_cases(Path(sys.argv[1]), Path(sys.argv[2])))"
    )
    found = set()
    for salt in ("1", "2"):
        done = run("-c", script, str(seeds), str(tmp_path), PYTHONHASHSEED=salt)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


def test_seeds_are_never_written_to(seeds: Path, tmp_path: Path) -> None:
    before = {name: (seeds / name).read_bytes() for name in scene.files_of(seeds)}
    for target in ("bundle", "checkpoint"):
        for number in range(60):
            case = Case(target, "shallow", 5, number)
            assert prepare_case(case, TARGET[target], seeds, tmp_path / "case")
    assert before == {name: (seeds / name).read_bytes() for name in scene.files_of(seeds)}


def test_mended_files_are_read_and_raw_ones_refused(seeds: Path, tmp_path: Path) -> None:
    """Both happen, and what is mended is not refused for its hash."""
    said = Counter[str]()
    for number in range(60):
        case = Case("bundle", "shallow", 8, number)
        files = prepare_case(case, TARGET["bundle"], seeds, tmp_path / "case")
        if files == ("model.edge/weights.bin",):
            outcome = run_case(tmp_path / "case", TARGET["bundle"], "shallow", files)
            said[outcome.kind if "was changed" not in outcome.text else "hash"] += 1
    assert said["done"] > 0
    assert set(said) <= {"done", "refused", "hash"}


def test_the_mended_hash_is_that_of_the_file(seeds: Path, tmp_path: Path) -> None:
    scene.lay(seeds / "bundle-old", tmp_path / "case")
    before = {n: (tmp_path / "case" / n).read_bytes() for n in scene.files_of(tmp_path / "case")}
    weights = tmp_path / "case" / "model.edge" / "weights.bin"
    weights.unlink()
    weights.write_bytes(bytes(len(before["model.edge/weights.bin"]) + 8))
    scene.mend(tmp_path / "case", before)
    open_bundle(tmp_path / "case", ())


def test_a_manifest_that_holds_its_own_hash_gets_another(seeds: Path, tmp_path: Path) -> None:
    """Of its JSON with sorted keys and no white space, the hash itself left out."""
    case = tmp_path / "case"
    scene.lay(seeds / "bundle-old", case)
    path = case / "model.edge" / "manifest.json"
    record = json.loads(path.read_bytes())
    path.unlink()
    path.write_text(json.dumps({**record, "manifest_sha256": "0" * 64}, indent=3))
    scene.mend(case, {"model.edge/manifest.json": path.read_bytes()})
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    found = json.loads(path.read_bytes())
    assert found.pop("manifest_sha256") == hashlib.sha256(canonical.encode()).hexdigest()
    assert found == record


@pytest.fixture(scope="module")
def packed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed bundle in one file; its table is that of its JSON plan."""
    return pack(BUNDLE, tmp_path_factory.mktemp("packed") / "model.retnet", say=lambda text: None)


def test_damage_to_a_packed_file_follows_its_layout(packed_file: Path) -> None:
    """Most has hashes that fit, and every kind of section is among what was changed."""
    raw = packed_file.read_bytes()
    records, contents = sections_of(raw)
    assert mended(raw) == raw
    changed = Counter[int]()
    fitting = 0
    for number in range(400):
        damaged = damage_packed(raw, Random(number))
        fitting += len(damaged) >= HEADER.size and mended(damaged) == damaged
        found, others = sections_of(damaged)
        if [record[0] for record in found] == [record[0] for record in records]:
            changed.update(r[0] for r, a, b in zip(found, contents, others, strict=True) if a != b)
    assert fitting > 300
    assert set(changed) == {record[0] for record in records}


@pytest.mark.skipif(not native_available(), reason="the native backend was not built")
def test_damaged_packed_files_are_read_or_refused(packed_file: Path, tmp_path: Path) -> None:
    """Both happen, and Python and C are asked."""
    shutil.copytree(packed_file.parent, tmp_path / "seeds" / "packed")
    said = Counter[str]()
    for number in range(150):
        case = Case("packed", "shallow", 2, number)
        files = prepare_case(case, TARGET["packed"], tmp_path / "seeds", tmp_path / "case")
        outcome = run_case(tmp_path / "case", TARGET["packed"], "shallow", files)
        said[outcome.kind] += 1
    assert set(said) == {"done", "refused"}
    assert min(said.values()) > 30


def test_a_damaged_table_in_its_bundle(packed_file: Path) -> None:
    records, contents = sections_of(packed_file.read_bytes())
    table = next(c for r, c in zip(records, contents, strict=True) if r[0] == 1)
    found = {damage_table(table, Random(number)) for number in range(60)}
    assert len(found - {table}) > 50
    assert sum(len(one) == len(table) for one in found) > 40


DAMAGED: dict[str, tuple[Path, Damage]] = {
    "json": (BUNDLE / "tokenizer.json", damage_json),
    "manifest": (BUNDLE / "manifest.json", damage_manifest),
    "plan": (BUNDLE / "native.json", damage_plan),
    "graph": (BUNDLE / "step.onnx", protobuf.damage_graph),
    "npz": (BUNDLE / "golden.npz", containers.damage_npz),
    "numbers": (BUNDLE / "weights.bin", plain.damage_numbers),
    "bytes": (BUNDLE / "weights.bin", plain.damage_bytes),
    "safetensors": (CHECKPOINT / "model.safetensors", containers.damage_safetensors),
    "state": (BUNDLE.parent / "native.state", containers.damage_state),
    "torch": (
        TESTS / "data" / "import" / "torchscale-0.3.0" / "checkpoint.pt",
        containers.damage_torch,
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_changes_the_file_in_many_ways(kind: str) -> None:
    path, change = DAMAGED[kind]
    raw = path.read_bytes()
    found = {change(raw, Random(number)) for number in range(40)}
    assert len(found - {raw}) > 25


def test_documents_and_messages_survive_reading_and_writing() -> None:
    for name in ("manifest.json", "native.json", "tokenizer.json"):
        raw = (BUNDLE / name).read_bytes()
        assert json.loads(write(parse(raw))) == json.loads(raw)
    raw = (BUNDLE / "step.onnx").read_bytes()
    assert protobuf.write(protobuf.read(raw, "Model")) == raw


def test_what_is_no_json_any_more_is_damaged_on() -> None:
    """A value that nests as deeply as nobody reads, beside others that change places."""
    raw = json.dumps({"a": [1, {"b": [2, 3]}], "c": {"d": [4.5, "e"]}}).encode()
    found = [damage_json(raw, Random(number)) for number in range(4000)]
    assert len(set(found)) > 1000
    assert max(map(len, found)) < 64 << 20


def test_most_damaged_json_is_json_still() -> None:
    raw = (BUNDLE / "manifest.json").read_bytes()
    read = 0
    for number in range(100):
        try:
            json.loads(damage_json(raw, Random(number)))
        except (ValueError, RecursionError):
            continue
        read += 1
    assert read > 60


@pytest.mark.parametrize("version", [1, 3])
def test_damaged_states_have_digests_that_fit(version: int, tmp_path: Path) -> None:
    path = BUNDLE.parent / "native.state"
    if version == 3:
        bundle = Bundle.open(BUNDLE)
        kept = load_snapshot(path, bundle)
        path = tmp_path / "new.state"
        save_snapshot(Snapshot(kept.position, kept.states, (3, 1, 4)), bundle, path)
    raw = path.read_bytes()
    found = [containers.damage_state(raw, Random(number)) for number in range(60)]
    fitting = [one for one in found if hashlib.sha256(one[:-32]).digest() == one[-32:]]
    assert len(fitting) > 40
    assert len(set(fitting)) > 30


def test_odd_files_of_every_kind_are_made_and_kept(tmp_path: Path) -> None:
    made = set()
    for number in range(80):
        folder = tmp_path / "case"
        folder.mkdir()
        (folder / "a").write_text("x")
        made.add(plain.odd_file(folder / "a", Random(number)))
        scene.keep(folder, tmp_path / "kept")
        for shown in (folder / "a", tmp_path / "kept" / "a"):
            assert shown.is_symlink() or shown.exists() or number >= 0
        before, after = (
            (folder / "a").lstat() if os.path.lexists(folder / "a") else None
            for folder in (folder, tmp_path / "kept")
        )
        assert (before and before.st_mode >> 12) == (after and after.st_mode >> 12)
        assert (before and before.st_size) == (after and after.st_size) or (folder / "a").is_dir()
        shutil.rmtree(folder)
    assert made == set(plain.ODD)


def test_the_command_counts_its_cases(tmp_path: Path) -> None:
    folders = ["--seeds", str(tmp_path / "seeds"), "--found", str(tmp_path / "found")]
    cases = ["--targets", "state", "--depth", "shallow", "--cases", "40", "--jobs", "2"]
    done = run("-m", "fuzz", *cases, *folders)
    assert done.returncode == 0, done.stdout + done.stderr
    row = next(line.split() for line in done.stdout.splitlines() if line.startswith("state"))
    assert row[:3] == ["state", "shallow", "40"]
    assert int(row[3]) + int(row[4]) == 40
    again = run("-m", "fuzz", "--replay", "state:shallow:0:1", *folders)
    assert again.returncode == 0, again.stdout + again.stderr
    assert list((tmp_path / "found").iterdir()) == [tmp_path / "found" / "state-shallow-0-1"]
