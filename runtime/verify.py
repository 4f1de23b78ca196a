"""Verify a bundle: replay text against the reference, measure memory, judge, and write it down."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from retnet_edge.errors import DISK_FULL, InputError, is_disk_full
from retnet_edge.runtime.bundle import Bundle
from retnet_edge.runtime.golden import GOLDEN_FILE, replay_golden
from retnet_edge.runtime.manifest import MANIFEST_FILE, Verification, encode
from retnet_edge.runtime.memory import measure_memory, memory_supported
from retnet_edge.runtime.parity import Reference, measure_parity
from retnet_edge.runtime.probes import LONG_PREFIX
from retnet_edge.runtime.report import Verdict, render_report
from retnet_edge.runtime.session import choose_backend, open_session
from retnet_edge.runtime.verdict import Check, checks
from retnet_edge.runtime.writer import replace_file, update_manifest

REPORTS = "reports"
REPORT_FILE = f"{REPORTS}/report.html"
PARITY_FILE = f"{REPORTS}/parity.json"
MEMORY_FILE = f"{REPORTS}/memory.json"
BASELINE_STEPS = 1_500


def verify(
    bundle_path: Path,
    *,
    reference: Reference,
    contexts: Sequence[NDArray[np.int64]],
    memory_steps: int = 40_000,
    baseline: Path | None = None,
    text_bytes: int | None = None,
    threads: int | None = None,
    backend: str | None = None,
    more_checks: Sequence[Check] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verdict:
    """Measure parity and memory of the bundle, and write reports and verdict into it.

    contexts: held-out text, int64 [T] each. baseline: a key-value bundle whose growth is shown
    beside (1,500 steps of it). text_bytes: see `measure_parity`. threads: for parity; memory is
    measured on one. backend: see `open_session`. more_checks: figures of the caller's, judged and
    shown with the others. progress(done, total): tokens and steps.

    A figure out of tolerance is no error: the verdict says so, and the manifest "unverified".
    An interrupted call leaves a bundle that opens: as it was, or without reports and unverified.
    Raises InputError for a bundle that does not open or run, for a golden.npz that does not hold
    what it should, and for contexts that do not fit.
    """
    bundle = Bundle.open(bundle_path)
    bundle_steps = memory_steps if memory_supported() else 0
    baseline_steps = min(BASELINE_STEPS, memory_steps) if baseline and bundle_steps else 0
    total = sum(len(context) for context in contexts) + bundle_steps + baseline_steps
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress(done, total)

    growing = any(state.growing_axis is not None for state in bundle.manifest.states)
    backend = choose_backend(bundle, backend)
    has_prefill = any(
        graph.kind == "prefill" and graph.backend == backend for graph in bundle.manifest.graphs
    )
    tolerance = bundle.manifest.tolerance
    session = open_session(bundle, threads=threads, backend=backend)
    has_golden = GOLDEN_FILE in bundle.manifest.files and not growing
    golden = replay_golden(bundle, session) if has_golden else None
    parity = measure_parity(
        session,
        reference,
        contexts,
        allowed_error=tolerance.max_abs_logit_error,
        text_bytes=text_bytes,
        places=not growing,
        prefill_tokens=LONG_PREFIX if has_prefill else None,
        advance=advance,
    )
    parity = msgspec.structs.replace(parity, golden=golden)
    memory = baseline_memory = None
    if bundle_steps:
        memory = measure_memory(bundle_path, bundle_steps, backend=backend, advance=advance)
    if baseline is not None and baseline_steps:
        baseline_memory = measure_memory(baseline, baseline_steps, warmup=50, advance=advance)
    found = (*checks(parity, memory, tolerance), *more_checks)
    verdict = Verdict(
        reasons=tuple(check.reason for check in found if not check.passed),
        checks=found,
        parity=parity,
        memory=memory,
        baseline=baseline_memory,
        measured_with={
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            **{name: version(name) for name in ("numpy", backend)},
        },
    )
    write_verdict(bundle, verdict)
    return verdict


def write_verdict(bundle: Bundle, verdict: Verdict) -> Bundle:
    """Write reports/{parity.json, memory.json, report.html} and the manifest's verification.

    Raises InputError where the disk is full; the bundle then opens, as after an interrupted call.
    """
    title = bundle.path.resolve().name
    contents = {
        PARITY_FILE: to_json(verdict.parity),
        MEMORY_FILE: to_json({"bundle": verdict.memory, "baseline": verdict.baseline}),
        REPORT_FILE: render_report(title, bundle.manifest, verdict).encode(),
    }
    verification = Verification(verdict.status, verdict.reasons, REPORT_FILE)
    try:
        return _replace_reports(bundle, contents, verification)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise InputError(f"{bundle.path}: {DISK_FULL}: no verdict was written") from error


def _replace_reports(
    bundle: Bundle, contents: dict[str, bytes], verification: Verification
) -> Bundle:
    """Replace files and manifest in an order that leaves a bundle that opens at every moment.

    The manifest lists the hash of every file, so old reports are first taken off its list and the
    bundle called unverified; then files are replaced; then the manifest is written anew.
    """
    listed = {n: e for n, e in bundle.manifest.files.items() if n not in contents}
    if listed != bundle.manifest.files:
        pending = Verification("unverified", ("verification was interrupted",))
        manifest = msgspec.structs.replace(bundle.manifest, files=listed, verification=pending)
        replace_file(bundle.path / MANIFEST_FILE, encode(manifest))
    (bundle.path / REPORTS).mkdir(exist_ok=True)
    for name, content in contents.items():
        replace_file(bundle.path / name, content)
    return update_manifest(bundle, verification=verification)


def to_json(value: object) -> bytes:
    """Indented JSON with a newline at its end; a figure that is not finite becomes null."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"
