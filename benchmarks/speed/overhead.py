"""What a token costs outside the backend: the session's own work, sampling, and text.

    python -m benchmarks.speed.overhead runs/demo.edge

The backend's call is replaced by nothing after one real step, so that the rest can be timed alone:
`step` is a session's step, `generate` the whole loop of `retnet-edge generate` with its default
sampling. The real step is timed beside, in turns. The goal is 150 µs a token for edge-15m.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bench.records import quartiles
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.text.generate import generate
from retnet_edge.runtime.text.sampling import Sampling

STEPS = 300
ROUNDS = 9
SAMPLING = Sampling(temperature=0.8, top_k=40, top_p=0.95)


def microseconds(run: Callable[[], int]) -> float:
    """Of one token; `run` returns how many it made."""
    began = time.perf_counter()
    tokens = run()
    return 1e6 * (time.perf_counter() - began) / tokens


def _nothing(*_: object) -> None:
    """In the place of the backend's call."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    session = open_session(bundle, threads=args.threads, backend="onnxruntime")
    tokenizer = bundle.tokenizer()

    def steps() -> int:
        for token in range(STEPS):
            session.step(token)
        return STEPS

    def text() -> int:
        made = generate(session, tokenizer, "The sea", max_tokens=STEPS, sampling=SAMPLING)
        for _ in made:
            pass
        return STEPS

    def without_backend(run: Callable[[], int]) -> float:
        with patch("retnet_edge.runtime.backends.ort.session.run_with_binding", _nothing):
            return microseconds(run)

    session.prefill(tokenizer.encode("The sea was calm, and the").ids)
    rows: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, value in (
            ("step", microseconds(steps)),
            ("step without the backend", without_backend(steps)),
            ("generate without the backend", without_backend(text)),
        ):
            rows.setdefault(name, []).append(value)
    table = Table("a token", "µs, median", "quartiles")
    for name, values in rows.items():
        found = quartiles(values)
        table.add_row(name, f"{found.median:.1f}", f"{found.low:.1f} – {found.high:.1f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
