"""`retnet-edge verify`: bundles against the float64 model that they were made from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from retnet_edge.atomic import temporary_folder
from retnet_edge.data.contexts import text_contexts
from retnet_edge.errors import InputError
from retnet_edge.export.baseline import export_baseline
from retnet_edge.model.checkpoint import Checkpoint, load_checkpoint
from retnet_edge.model.reference import Float64Reference
from retnet_edge.pipeline.block_errors import measure_block_errors
from retnet_edge.progress import progress
from retnet_edge.quantize.kernel_parity import KernelParity, measure_kernel_parity
from retnet_edge.runtime.backends.select import choose_backend, open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import Backend
from retnet_edge.runtime.bundle.packed import open_bundle
from retnet_edge.runtime.memory.memory import memory_supported, steps_at_first, time_alone
from retnet_edge.runtime.memory.side_by_side import SideBySide
from retnet_edge.runtime.parity.backend_pairs import BackendPair
from retnet_edge.runtime.parity.golden import golden_arrays
from retnet_edge.runtime.parity.parity import BlockError
from retnet_edge.runtime.parity.replay import replay
from retnet_edge.runtime.report.page import column_name, labels
from retnet_edge.runtime.report.verdict import Check, Verdict
from retnet_edge.runtime.session.threads import check_threads, physical_cores
from retnet_edge.runtime.verify import check_verdict_folder, compare_backend_pairs, measure_baseline
from retnet_edge.runtime.verify import verify as verify_bundle

KERNEL_TOKENS = 64
BLOCK_TOKENS = 2048  # at most, which bounds the memory
KERNEL_ERROR = 1e-4
INT16_KERNEL_ERROR = 5e-3
"""Of a step with 16-bit activations: their codes lie so close that at every step some value rounds
the other way in the other arithmetic, by a code, which is up to 3e-3 of what enters a product."""


class Verdicts(msgspec.Struct, frozen=True):
    """Several bundles of one checkpoint: a verdict each, under the path that was given.

    between: columns of one recipe and two backends, of different bundles, compared with each other.
    """

    bundles: dict[str, Verdict]
    between: tuple[BackendPair, ...]


def verify(
    bundle: str | Path,
    *,
    checkpoint: str | Path,
    text: str | Path,
    text_field: str = "text",
    tokens: int = 24_576,
    context: int = 2048,
    memory_steps: int | None = None,
    baseline: bool = True,
    threads: int | None = None,
    backend: str | None = None,
    say: Callable[[str], None] = print,
) -> Verdict:
    """Replay held-out `text` through `bundle` and `checkpoint` (in float64), and measure memory.

    text: anything that training reads, a table's in `text_field`; `tokens` of it, in contexts of
    `context`; `memory_steps` steps in a process of its own (None: as many as the interval needs),
    which runs beside the replay; with `baseline`, beside a Transformer of the same size. All
    backends of the bundle, or only `backend`. Reports and the verdict go into the bundle. Raises
    InputError where the bundle was not made from the checkpoint, that is not a RetNet's, or the
    text is shorter than one context.
    """
    verdicts = verify_all(
        [bundle],
        checkpoint=checkpoint,
        text=text,
        text_field=text_field,
        tokens=tokens,
        context=context,
        memory_steps=memory_steps,
        baseline=baseline,
        threads=threads,
        backend=backend,
        say=say,
    )
    return verdicts.bundles[str(bundle)]


def verify_all(
    bundles: Sequence[str | Path],
    *,
    checkpoint: str | Path,
    text: str | Path,
    text_field: str = "text",
    tokens: int = 24_576,
    context: int = 2048,
    memory_steps: int | None = None,
    baseline: bool = True,
    threads: int | None = None,
    backend: str | None = None,
    say: Callable[[str], None] = print,
) -> Verdicts:
    """`verify` each of some bundles of one checkpoint on the same text, which is replayed once: all
    step beside one run of the float64 model, and the rest follows bundle by bundle.

    Raises what `verify` does, and InputError for a bundle that is named twice.
    """
    check_threads(threads)
    source = load_checkpoint(checkpoint)
    opened: dict[str, Bundle] = {}
    for path in bundles:
        if str(path) in opened:
            raise InputError(f"{path} is named twice; name each bundle once")
        opened[str(path)] = bundle = open_bundle(path)
        check_verdict_folder(bundle)
    columns: list[tuple[str, Bundle, Backend]] = []
    called = labels(list(opened))
    for name, bundle in opened.items():
        bundle.check_made_from(source.path, source.weights_sha256())
        golden_arrays(bundle)  # it holds what it should
        has = bundle.manifest.backends
        chosen = has if backend is None else (choose_backend(bundle, backend),)
        columns += [(column_name(called[name], one), bundle, one) for one in chosen]
    reference = Float64Reference(source)
    contexts = text_contexts(
        source.tokenizer, Path(text), tokens, context, text_field, end=source.special.end
    )
    length = sum(map(len, contexts))
    say(f"replaying {length:,} tokens of {text}")
    text_bytes = _bytes(source.tokenizer, contexts)
    verdicts = {}
    measured = memory_steps != 0 and memory_supported()
    with temporary_folder() as folder, SideBySide() as beside:
        units = len(columns) * (length + (steps_at_first(memory_steps) if measured else 0))
        with progress("verify", units) as advance:
            runs = [
                beside.measure(of.path, memory_steps, backend=one, advance=advance)
                for _, of, one in (columns if measured else ())
            ]
            growing = _baseline(source, folder, say) if baseline and measured else None
            grown = None if growing is None else measure_baseline(growing, memory_steps, beside)
            # a core is the steps'; two threads of torch on it would wait for each other
            with reference.on_threads(max(1, physical_cores() - 1)):
                replays = replay(
                    [open_session(of, threads, one) for _, of, one in columns],
                    reference,
                    contexts,
                    advance=beside.one_at_a_time(advance),
                )
            start = contexts[0][:BLOCK_TOKENS]
            # a .pte is no graph to read
            has_graphs = any(one == "onnxruntime" for _, _, one in columns)
            block_outputs = reference.block_outputs(start) if has_graphs else []
            kernels = {
                name: measure_kernel_parity(bundle, contexts[0][:KERNEL_TOKENS])
                for name, bundle in opened.items()
                if any(of is bundle and one == "onnxruntime" for _, of, one in columns)
            }
            memories = [run.result() for run in runs]
            transformer = None if grown is None else grown.result()
        # Times are taken now that nothing else runs.
        memories = [
            time_alone(memory, of.path, one)
            for memory, (_, of, one) in zip(memories, columns, strict=False)
        ]
        if transformer is not None and growing is not None:
            transformer = time_alone(transformer, growing)
        for name, bundle in opened.items():
            own = [index for index, (_, of, _) in enumerate(columns) if of is bundle]
            blocks: dict[Backend, tuple[BlockError, ...]] = {}
            checks: dict[Backend, tuple[Check, ...]] = {}
            if name in kernels:
                checks["onnxruntime"] = _kernel_checks(kernels[name])
                blocks["onnxruntime"] = measure_block_errors(bundle, block_outputs, start)
            verdicts[name] = verify_bundle(
                Path(name),
                reference=reference,
                contexts=contexts,
                memory_steps=memory_steps,
                baseline=transformer,
                text_bytes=text_bytes,
                threads=threads,
                backend=backend,
                more_checks=checks,
                block_errors=blocks,
                replayed={columns[index][2]: replays[index] for index in own},
                memory={columns[index][2]: memories[index] for index in own if measured},
            )
    between = tuple(
        pair
        for first, second in itertools.combinations(columns, 2)
        if first[1] is not second[1]  # a bundle's own are in its verdict
        for pair in compare_backend_pairs([first, second], contexts[0], threads)
    )
    return Verdicts(verdicts, between)


def _bytes(tokenizer: Tokenizer, contexts: list[NDArray[np.int64]]) -> int:
    """UTF-8 bytes of the predicted tokens: all but each context's first."""
    return sum(len(tokenizer.decode(ids[1:].tolist()).encode()) for ids in contexts)


def _baseline(source: Checkpoint, folder: Path, say: Callable[[str], None]) -> Path:
    say("exporting the same-size Transformer, to show its cache grow")
    return export_baseline(source, folder)


def _kernel_checks(kernel: KernelParity) -> tuple[Check, ...]:
    """Judged: every quantized product on its own inputs, and the median step as a whole."""
    bound = INT16_KERNEL_ERROR if kernel.int16_activations else KERNEL_ERROR
    name = "kernel parity: steps against the same graph in NumPy, median"
    figures = [(name, kernel.logit_error_median, bound)]
    if kernel.products:
        name = f"kernel parity: {kernel.products} quantized products"
        figures.append((name, kernel.product_error, KERNEL_ERROR))
    return tuple(
        Check(
            name,
            f"{value:.2g}",
            f"≤ {bound:.2g}",
            value <= bound,
            f"{name}: error {value:.2g}, at most {bound:.2g} is allowed",
        )
        for name, value, bound in figures
    )
