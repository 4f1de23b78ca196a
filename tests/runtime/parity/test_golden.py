"""golden.npz is replayed, judged, and read with suspicion."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from conftest import Tiny
from numpy.typing import NDArray
from numpy_retnet import NetReference, NetSession, text
from verification_samples import FLAT, LOOSE, TOLERANCE, Arrays, golden_arrays, save

from retnet_edge.errors import InputError
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import Manifest
from retnet_edge.runtime.bundle.writer import update_manifest
from retnet_edge.runtime.parity.golden import (
    GOLDEN_FILE,
    NEAR_TOKENS,
    GoldenReplay,
    golden_shapes,
    replay_golden,
)
from retnet_edge.runtime.parity.parity import measure_parity
from retnet_edge.runtime.report.tables import parity_rows
from retnet_edge.runtime.report.verdict import judge
from retnet_edge.runtime.session.protocol import Session


class ZeroedPosition:
    """A session that computes as if at position 0, where the tiny graph's angles are exact."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def load_states(self, states: list[NDArray[Any]], position: int, seen: object = ()) -> None:
        assert position == 1_000_000
        self.session.load_states(states, 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


def with_golden(bundle: Path, arrays: Arrays) -> Bundle:
    save(bundle / GOLDEN_FILE, arrays)
    return relisted(bundle)


def relisted(bundle: Path) -> Bundle:
    """The bundle opened, its manifest listing golden.npz as it is now."""
    return update_manifest(Bundle.open(bundle))


def replay(bundle: Bundle) -> GoldenReplay:
    session: Any = ZeroedPosition(open_session(bundle, threads=1))
    return replay_golden(bundle, session)


def test_a_faithful_bundle_replays_its_golden_runs(tiny: Tiny, broken: Path) -> None:
    arrays = golden_arrays(tiny.model)
    assert np.abs(arrays["far_logits"]).max() > 1
    found = replay(with_golden(broken, arrays))
    assert 0 < found.near_logit_error < 1e-4
    assert 0 < found.far_logit_error < 1e-4
    assert 0 < found.relative_state_error < 1e-6


@pytest.mark.parametrize(
    ("array", "figure"),
    [
        ("near_logits", "near_logit_error"),
        ("far_logits", "far_logit_error"),
        ("near_state_0", "relative_state_error"),
    ],
)
def test_each_figure_sees_its_array(array: str, figure: str, tiny: Tiny, broken: Path) -> None:
    arrays = golden_arrays(tiny.model)
    flat = arrays[array].reshape(-1)
    moved = 0.01 * np.abs(flat).max() if "state" in array else 0.01
    flat[np.abs(flat).argmin()] += moved
    found = msgspec.structs.asdict(replay(with_golden(broken, arrays)))
    assert found.pop(figure) == pytest.approx(0.01, rel=0.02)
    if array != "near_state_0":  # `far` starts from that state
        assert max(found.values()) < 1e-4


def test_figures_that_are_not_numbers(tiny: Tiny, broken: Path) -> None:
    arrays = golden_arrays(tiny.model)
    arrays["near_logits"][0, 0] = np.nan
    arrays["near_state_0"][...] = 0
    found = replay(with_golden(broken, arrays))
    assert np.isnan(found.near_logit_error)
    assert found.relative_state_error == np.inf


def test_a_golden_file_is_not_needed_but_must_be_listed(tiny: Tiny) -> None:
    with pytest.raises(InputError, match="has no golden replay"):
        replay(tiny.open())


def lacking(arrays: Arrays, path: Path) -> None:
    del arrays["far_logits"]
    save(path, arrays)


def too_short(arrays: Arrays, path: Path) -> None:
    save(path, {**arrays, "near_tokens": arrays["near_tokens"][:-1]})


def other_dtype(arrays: Arrays, path: Path) -> None:
    state = arrays["near_state_0"].astype(np.float16)
    save(path, {**arrays, "near_state_0": state})


def objects(arrays: Arrays, path: Path) -> None:
    tokens = np.array([print] * NEAR_TOKENS, dtype=object)
    save(path, {**arrays, "near_tokens": tokens})


def huge(arrays: Arrays, path: Path) -> None:
    """A few kilobytes on disk that would be 64 MiB in memory."""
    save(path, {**arrays, "near_logits": np.zeros(1 << 23)})


def lying(arrays: Arrays, path: Path) -> None:
    """A header that promises an exabyte."""
    save(path, arrays)
    header = repr({"descr": "<i8", "fortran_order": False, "shape": (1 << 57,)}).encode()
    raw = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("near_tokens.npy", raw)


def not_a_zip(arrays: Arrays, path: Path) -> None:
    path.write_bytes(b"\x93NUMPY" * 100)


def cut_off(arrays: Arrays, path: Path) -> None:
    save(path, arrays)
    path.write_bytes(path.read_bytes()[:-200])


def out_of_range(arrays: Arrays, path: Path) -> None:
    arrays["far_tokens"][3] = 300
    save(path, arrays)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lacking, r"golden\.npz lacks the array far_logits"),
        (too_short, r"near_tokens is int64 \[127\]; this bundle's is int64 \[128\]"),
        (other_dtype, r"near_state_0 is float16 \[1, 2, 4, 6\]; this bundle's is float32"),
        (objects, "the array near_tokens cannot be read: .*allow_pickle=False"),
        (huge, r"near_logits cannot be read: it has 67108992 bytes; at most \d+ are allowed"),
        (lying, "the array near_tokens cannot be read"),
        (not_a_zip, "cannot be read: File is not a zip file"),
        (cut_off, "cannot be read: File is not a zip file"),
        (out_of_range, "token id 300 is out of range"),
    ],
)
def test_bad_files_are_refused(
    damage: Callable[[Arrays, Path], None], complaint: str, tiny: Tiny, broken: Path
) -> None:
    damage(golden_arrays(tiny.model), broken / GOLDEN_FILE)
    bundle = relisted(broken)
    with pytest.raises(InputError, match=complaint) as caught:
        replay(bundle)
    assert "\n" not in str(caught.value)


def test_any_changed_byte_is_read_or_refused(tiny: Tiny, broken: Path) -> None:
    """200 files, each with one byte changed: an InputError or figures, never another error."""
    path, arrays = broken / GOLDEN_FILE, golden_arrays(tiny.model)
    save(path, arrays)
    raw, rng = path.read_bytes(), np.random.default_rng(0)
    manifest = relisted(broken).manifest
    refused = 0
    for place, value in zip(rng.integers(0, len(raw), 200), rng.integers(1, 256, 200), strict=True):
        changed = bytearray(raw)
        changed[place] ^= int(value)
        path.write_bytes(changed)
        try:
            replay(Bundle(broken, manifest))
        except InputError:
            refused += 1
    assert 100 < refused < 200


def test_names_and_shapes_follow_the_manifest(tiny: Tiny) -> None:
    manifest: Manifest = tiny.open().manifest
    assert golden_shapes(manifest) == {
        name: (str(array.dtype), array.shape) for name, array in golden_arrays(tiny.model).items()
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"near_logit_error": 3e-4}, "golden.npz: largest logit error is 0.0003, at most 0.0002"),
        (
            {"far_logit_error": float("nan")},
            "golden.npz: largest logit error at position 1,000,000 is nan",
        ),
        ({"relative_state_error": 2e-4}, "golden.npz: relative state error is 0.0002, at most"),
    ],
)
def test_the_verdict_judges_each_figure(changes: dict[str, float], sentence: str) -> None:
    parity = measure_parity(NetSession(), NetReference(), [text(300)], allowed_error=2e-4)
    good = GoldenReplay(2e-4, 2e-4, 1e-4)
    with_it = msgspec.structs.replace(parity, golden=good)
    assert judge(with_it, FLAT, TOLERANCE) == ()
    bad = msgspec.structs.replace(parity, golden=msgspec.structs.replace(good, **changes))
    (reason,) = judge(bad, FLAT, TOLERANCE)
    assert reason.startswith(sentence)
    assert judge(bad, FLAT, LOOSE) == ()
    rows = parity_rows(with_it)
    assert ("golden.npz: logits, largest / from position 1,000,000", "0.0002 / 0.0002") in rows
    assert ("golden.npz: states, relative", "0.0001") in rows
