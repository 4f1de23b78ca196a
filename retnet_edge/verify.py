"""`retnet-edge verify`: a bundle against the float64 model that it was made from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from retnet_edge.checkpoint import Checkpoint, load_checkpoint
from retnet_edge.errors import InputError
from retnet_edge.export.baseline import export_baseline
from retnet_edge.progress import progress
from retnet_edge.quantize.kernel_parity import KernelParity, measure_kernel_parity
from retnet_edge.reference import Float64Reference
from retnet_edge.runtime.bundle import Bundle
from retnet_edge.runtime.report import Verdict
from retnet_edge.runtime.session import choose_backend
from retnet_edge.runtime.verdict import Check
from retnet_edge.runtime.verify import verify as verify_bundle
from retnet_edge.tokenizer import END_OF_TEXT, read_documents

KERNEL_TOKENS = 64
KERNEL_ERROR = 1e-4


def verify(
    bundle: str | Path,
    *,
    checkpoint: str | Path,
    text: str | Path,
    tokens: int = 24_576,
    context: int = 2048,
    memory_steps: int = 40_000,
    baseline: bool = True,
    threads: int | None = None,
    backend: str | None = None,
    say: Callable[[str], None] = print,
) -> Verdict:
    """Replay held-out `text` through `bundle` and `checkpoint` (in float64), and measure memory.

    `tokens` of the text, in contexts of `context`; `memory_steps` steps in a process of its own;
    with `baseline`, beside a Transformer of the same size. `backend`: of those that the bundle has,
    the first by default. Reports and the verdict go into the
    bundle. Raises InputError where the bundle was not made from the checkpoint, that is not a
    RetNet's, or the text is shorter than one context.
    """
    opened, source = Bundle.open(bundle), load_checkpoint(checkpoint)
    if opened.manifest.provenance.checkpoint_sha256 != source.weights_sha256():
        raise InputError(f"{bundle} was not made from {checkpoint}: the weights' SHA-256 differ")
    reference = Float64Reference(source)
    contexts = text_contexts(source.tokenizer, Path(text), tokens, context)
    say(f"replaying {sum(map(len, contexts)):,} tokens of {text}")
    chosen = choose_backend(opened, backend)
    kernel = None
    if chosen == "onnxruntime":  # compared with NumPy; a .pte is no graph to read
        kernel = measure_kernel_parity(opened, contexts[0][:KERNEL_TOKENS])
    with tempfile.TemporaryDirectory(prefix="retnet-edge-") as folder:
        growing = _baseline(source, Path(folder), say) if baseline else None
        units = sum(map(len, contexts)) + memory_steps
        with progress("verify", units) as advance:
            return verify_bundle(
                Path(bundle),
                reference=reference,
                contexts=contexts,
                memory_steps=memory_steps,
                baseline=growing,
                text_bytes=_bytes(source.tokenizer, contexts),
                threads=threads,
                backend=chosen,
                more_checks=() if kernel is None else _kernel_checks(kernel),
                progress=_increments(advance),
            )


def text_contexts(
    tokenizer: Tokenizer, path: Path, tokens: int, context: int
) -> list[NDArray[np.int64]]:
    """The first `tokens` tokens of a text, documents joined, in contexts of `context` tokens.

    A shorter last piece is left out. Raises InputError where there is not one whole context.
    """
    if context < 2 or tokens < context:
        raise InputError(f"{tokens} tokens in contexts of {context}: give 2 <= context <= tokens")
    end = tokenizer.token_to_id(END_OF_TEXT)
    ids: list[int] = []
    for document in read_documents(path):
        ids += [*tokenizer.encode(document).ids, *([] if end is None else [end])]
        if len(ids) >= tokens:
            break
    whole = min(len(ids), tokens) // context
    if whole == 0:
        raise InputError(f"{path}: {len(ids)} tokens are fewer than one context of {context}")
    return list(np.array(ids[: whole * context], dtype=np.int64).reshape(whole, context))


def _bytes(tokenizer: Tokenizer, contexts: list[NDArray[np.int64]]) -> int:
    """UTF-8 bytes of the predicted tokens: all but each context's first."""
    return sum(len(tokenizer.decode(ids[1:].tolist()).encode()) for ids in contexts)


def _baseline(source: Checkpoint, folder: Path, say: Callable[[str], None]) -> Path:
    say("exporting the same-size Transformer, to show its cache grow")
    return export_baseline(source, folder)


def _kernel_checks(kernel: KernelParity) -> tuple[Check, ...]:
    """Judged: every quantized product on its own inputs, and the median step as a whole."""
    figures = {
        "kernel parity: steps against the same graph in NumPy, median": kernel.logit_error_median,
    }
    if kernel.products:
        figures[f"kernel parity: {kernel.products} quantized products"] = kernel.product_error
    return tuple(
        Check(
            name,
            f"{value:.2g}",
            f"≤ {KERNEL_ERROR:.2g}",
            value <= KERNEL_ERROR,
            f"{name}: error {value:.2g}, at most {KERNEL_ERROR:.2g} is allowed",
        )
        for name, value in figures.items()
    )


def _increments(advance: Callable[[int], None]) -> Callable[[int, int], None]:
    """Turn (done, total) into increments."""
    shown = 0

    def report(done: int, total: int) -> None:
        nonlocal shown
        advance(done - shown)
        shown = done

    return report
