"""golden.npz: what the float64 reference computes, small enough to ship, for every runtime.

Two runs of random token ids (rounding shows on any tokens), as `runtime/parity/golden.py` tells.
Arrays, per run: `<run>_tokens` int64 [T], `<run>_logits` float32 [16, vocab] of the last 16 tokens;
and `near_state_i` float32, the states after `near`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from retnet_edge.model.reference import Float64Reference
from retnet_edge.runtime.parity.golden import GOLDEN_FILE, LOGIT_ROWS, NEAR_TOKENS
from retnet_edge.runtime.parity.probes import FAR_POSITION


def write_golden(reference: Float64Reference, vocab_size: int, folder: Path) -> None:
    """Write golden.npz into `folder`."""
    rng = np.random.default_rng(0)
    near = rng.integers(0, vocab_size, NEAR_TOKENS)
    far = rng.integers(0, vocab_size, LOGIT_ROWS)
    near_logits, states = reference.run(near, None, 0)
    # what a runtime starts from is float32
    rounded = [state.astype(np.float32) for state in states]
    far_logits, _ = reference.run(far, [s.astype(np.float64) for s in rounded], FAR_POSITION)
    arrays: dict[str, Any] = {
        "near_tokens": near,
        "near_logits": near_logits[-LOGIT_ROWS:].astype(np.float32),
        "far_tokens": far,
        "far_logits": far_logits.astype(np.float32),
        **{f"near_state_{i}": state for i, state in enumerate(rounded)},
    }
    np.savez_compressed(folder / GOLDEN_FILE, **arrays)
