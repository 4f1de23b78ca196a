"""Figures, a manifest and golden runs that need no model, for the tests of verification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tiny_bundle import TinyModel

from retnet_edge.files import FileEntry
from retnet_edge.runtime.bundle.manifest import (
    GraphSpec,
    Manifest,
    ModelSpec,
    Provenance,
    Quantization,
    StateSpec,
    TokenizerSpec,
    Tolerance,
    Verification,
)
from retnet_edge.runtime.memory.memory import Memory
from retnet_edge.runtime.memory.slope import Slope
from retnet_edge.runtime.parity.golden import LOGIT_ROWS, NEAR_TOKENS

TOLERANCE = Tolerance(
    max_abs_logit_error=2e-4, perplexity_ratio=1.001, mean_kl=5e-4, top1_agreement=0.99
)
LOOSE = msgspec.structs.replace(TOLERANCE, max_abs_logit_error=None)
Arrays = dict[str, NDArray[Any]]


def memory_of(slope: Slope, **changes: Any) -> Memory:
    memory = Memory(
        model="retnet",
        steps=20_000,
        warmup=500,
        threads=1,
        anonymous_slope=slope,
        file_backed_slope=Slope(0, 0, 0),
        file_backed_growth=0,
        state_bytes=192,
        state_bytes_manifest=192,
        state_bytes_per_token=0,
        base_bytes=50 << 20,
        base_anonymous_bytes=30 << 20,
        opened_bytes=60 << 20,
        tokens=list(range(540, 20_540, 40)),
        anonymous=[40 << 20] * 500,
        file_backed=[20 << 20] * 500,
        load_seconds=0.25,
        step_milliseconds=(1.0, 2.0, 3.0),
    )
    return msgspec.structs.replace(memory, **changes)


FLAT = memory_of(Slope(0.0, 0.0, 0.0))


def manifest() -> Manifest:
    return Manifest(
        schema_version=1,
        model=ModelSpec("retnet", 32, 1234, {}),
        graphs=(GraphSpec("step.onnx", "step", "onnxruntime", (), (), (), {"": 23}),),
        states=(StateSpec("state_0", "next_state_0", "float32", ("batch", 2, 4, 6)),),
        tokenizer=TokenizerSpec("tokenizer.json", None),
        quantization=Quantization("int8"),
        tolerance=TOLERANCE,
        provenance=Provenance("ab" * 32, {"torch": "2.13.0"}),
        verification=Verification("unverified"),
        files={"step.onnx": FileEntry(4321, "cd" * 32)},
    )


def golden_arrays(model: TinyModel) -> Arrays:
    """What the tiny model computes in float64: `far` goes on from position 0 (ZeroedPosition)."""
    rng = np.random.default_rng(5)
    near = rng.integers(0, model.vocab, NEAR_TOKENS)
    far = rng.integers(0, model.vocab, LOGIT_ROWS)

    def run(tokens: NDArray[np.int64], state: NDArray[np.float64]) -> tuple[Any, Any]:
        rows = []
        for position, token in enumerate(tokens):
            logits, state = model.retention([int(token)], state, position)
            rows.append(logits)
        return np.stack(rows[-LOGIT_ROWS:]).astype(np.float32), state

    near_logits, state = run(near, np.zeros((model.heads, model.key, model.value)))
    far_logits, _ = run(far, state)
    return {
        "near_tokens": near,
        "near_logits": near_logits,
        "far_tokens": far,
        "far_logits": far_logits,
        "near_state_0": state[None].astype(np.float32),
    }


def save(path: Path, arrays: dict[str, Any]) -> None:
    np.savez_compressed(path, **arrays)
