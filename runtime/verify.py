"""Verify a bundle: replay text against the reference, measure memory, judge, and write it down."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from retnet_edge.atomic import check_writable, replace_file
from retnet_edge.errors import DISK_FULL, InputError, is_disk_full
from retnet_edge.runtime.backends.profile import profile
from retnet_edge.runtime.backends.select import backend_version, choose_backend, open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import MANIFEST_FILE, Backend, Verification, encode
from retnet_edge.runtime.bundle.packed import PackedBundle, open_bundle
from retnet_edge.runtime.bundle.writer import update_manifest
from retnet_edge.runtime.memory.memory import Memory, measure_memory, memory_supported
from retnet_edge.runtime.memory.side_by_side import SideBySide
from retnet_edge.runtime.parity.backend_pairs import BackendPair, compare_backends
from retnet_edge.runtime.parity.golden import has_golden, replay_golden
from retnet_edge.runtime.parity.parity import BlockError, Reference, measure_parity
from retnet_edge.runtime.parity.probes import LONG_PREFIX
from retnet_edge.runtime.parity.replay import Replayed
from retnet_edge.runtime.report.card import model_card
from retnet_edge.runtime.report.page import render_report
from retnet_edge.runtime.report.verdict import BackendResult, Check, Verdict, checks, reasons_of
from retnet_edge.runtime.session.threads import check_threads

REPORTS = "reports"
REPORT_FILE = f"{REPORTS}/report.html"
CARD_FILE = f"{REPORTS}/card.md"
PARITY_FILE = f"{REPORTS}/parity.json"
MEMORY_FILE = f"{REPORTS}/memory.json"
PROFILE_FILE = f"{REPORTS}/profile.json"
BASELINE_STEPS = 800  # the interval of a cache that grows by 21,400 bytes a token is ± 2 %
PROFILED_STEPS = 100


def verify(
    bundle_path: Path,
    *,
    reference: Reference,
    contexts: Sequence[NDArray[np.int64]],
    memory_steps: int | None = None,
    baseline: Memory | None = None,
    text_bytes: int | None = None,
    threads: int | None = None,
    backend: str | None = None,
    more_checks: Mapping[Backend, Sequence[Check]] | None = None,
    block_errors: Mapping[Backend, Sequence[BlockError]] | None = None,
    replayed: Mapping[Backend, Replayed] | None = None,
    memory: Mapping[Backend, Memory] | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> Verdict:
    """Measure parity and memory of every backend of the bundle; write reports and verdict into it.

    contexts: held-out text, int64 [T] each. memory_steps: see `measure_memory`; 0 for no
    measurement of memory. baseline: what `measure_baseline` gave, shown beside. text_bytes: see
    `measure_parity`. threads: for parity; memory is measured on one. backend: only this one, which
    leaves a bundle of several unverified. more_checks: figures of the caller's, judged and shown
    with the others. block_errors: shown. replayed: of backends whose contexts were replayed
    already; memory: whose memory was measured already. advance(n): called after n more tokens or
    steps.

    A figure out of tolerance is no error: the verdict says so, and the manifest "unverified".
    An interrupted call leaves a bundle that opens: as it was, or without reports and unverified.
    Raises InputError for a bundle that does not open or run, for a golden.npz that does not hold
    what it should, and for contexts that do not fit.
    """
    check_threads(threads)
    bundle = open_bundle(bundle_path)
    check_verdict_folder(bundle)
    has = bundle.manifest.backends
    chosen = has if backend is None else (choose_backend(bundle, backend),)
    measured = tuple(
        _measure(
            bundle,
            name,
            reference,
            contexts,
            memory_steps=memory_steps,
            text_bytes=text_bytes,
            threads=threads,
            more_checks=(more_checks or {}).get(name, ()),
            block_errors=(block_errors or {}).get(name, ()),
            replayed=(replayed or {}).get(name),
            memory=(memory or {}).get(name),
            advance=advance,
        )
        for name in chosen
    )
    verdict = Verdict(
        reasons=reasons_of(measured, has),
        backends=measured,
        between=compare_backend_pairs(
            [(name, bundle, name) for name in chosen], contexts[0], threads
        ),
        baseline=baseline,
        measured_with={
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "numpy": version("numpy"),
            **{name: backend_version(name) for name in chosen},
        },
    )
    write_verdict(bundle, verdict)
    return verdict


def check_verdict_folder(bundle: Bundle) -> None:
    """Raises InputError where reports and a verdict cannot be written into the bundle.

    Into a packed file none are.
    """
    for folder in (bundle.path, bundle.path / REPORTS):
        if folder.is_dir():
            check_writable(folder, bundle.path / REPORT_FILE)


def measure_baseline(path: Path, memory_steps: int | None, beside: SideBySide) -> Future[Memory]:
    """Begin to measure the memory of a key-value bundle over at most 800 steps.

    The times in it are to be taken again (`time_alone`).
    """
    steps = BASELINE_STEPS if memory_steps is None else min(BASELINE_STEPS, memory_steps)
    return beside.measure(path, steps, warmup=50)


def compare_backend_pairs(
    columns: Sequence[tuple[str, Bundle, Backend]],
    context: NDArray[np.int64],
    threads: int | None = None,
) -> tuple[BackendPair, ...]:
    """Every two columns (name, bundle, backend) of one recipe and two backends, compared.

    context: int64 [T], replayed through both.
    """
    found = []
    for index, (name, bundle, backend) in enumerate(columns):
        recipe = bundle.manifest.quantization.recipe
        for other_name, other, other_backend in columns[index + 1 :]:
            if other_backend != backend and other.manifest.quantization.recipe == recipe:
                sessions = (
                    open_session(bundle, threads, backend),
                    open_session(other, threads, other_backend),
                )
                names = (name, other_name)
                found.append(compare_backends(*sessions, context, names=names, recipe=recipe))
    return tuple(found)


def _measure(
    bundle: Bundle,
    backend: Backend,
    reference: Reference,
    contexts: Sequence[NDArray[np.int64]],
    *,
    memory_steps: int | None,
    text_bytes: int | None,
    threads: int | None,
    more_checks: Sequence[Check],
    block_errors: Sequence[BlockError],
    replayed: Replayed | None,
    memory: Memory | None,
    advance: Callable[[int], None],
) -> BackendResult:
    """One backend of the bundle."""
    manifest = bundle.manifest
    growing = any(state.growing_axis is not None for state in manifest.states)
    graphs = {graph.kind: graph for graph in manifest.graphs if graph.backend == backend}
    tolerance = manifest.tolerance_of(backend)
    session = open_session(bundle, threads=threads, backend=backend)
    replayable = not growing and has_golden(bundle)
    golden = replay_golden(bundle, session) if replayable else None
    parity = measure_parity(
        session,
        reference,
        contexts,
        allowed_error=tolerance.max_abs_logit_error,
        text_bytes=text_bytes,
        places=not growing,
        prefill_tokens=LONG_PREFIX if "prefill" in graphs else None,
        decode=partial(bundle.tokenizer().decode, skip_special_tokens=False),
        replayed=replayed,
        advance=advance,
    )
    parity = msgspec.structs.replace(parity, golden=golden, blocks=tuple(block_errors))
    if memory is None and memory_steps != 0 and memory_supported():
        memory = measure_memory(bundle.path, memory_steps, backend=backend, advance=advance)
    return BackendResult(
        backend=backend,
        checks=(*checks(parity, memory, tolerance), *more_checks),
        parity=parity,
        memory=memory,
        planned_bytes=graphs["step"].planned_bytes,
        operators=tuple(
            profile(bundle, steps=PROFILED_STEPS, threads=1, backend=backend) if not growing else ()
        ),
        profiled_steps=0 if growing else PROFILED_STEPS,
    )


def write_verdict(bundle: Bundle, verdict: Verdict) -> Bundle:
    """Write reports/{parity,memory,profile}.json, report.html, card.md and the manifest's verdict.

    Into a packed file, which is as it was packed, nothing is written. Raises InputError where the
    disk is full; the bundle then opens, as after an interrupted call.
    """
    if isinstance(bundle, PackedBundle):
        return bundle
    title = bundle.path.resolve().name
    contents = {
        PARITY_FILE: to_json(
            {
                **{str(m.backend): m.parity for m in verdict.backends},
                "between": verdict.between,
            }
        ),
        PROFILE_FILE: to_json({str(m.backend): m.operators for m in verdict.backends}),
        MEMORY_FILE: to_json(
            {
                **{str(m.backend): m.memory for m in verdict.backends},
                "baseline": verdict.baseline,
            }
        ),
        REPORT_FILE: render_report(title, [(title, bundle.manifest, verdict)]).encode(),
        CARD_FILE: model_card([(title, bundle.manifest, verdict)]).encode(),
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
