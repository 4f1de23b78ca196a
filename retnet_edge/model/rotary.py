"""Rotation of queries and keys by their position (paper, eq. 3: Θ_n = e^{inθ}).

Half-split layout: channel i and channel i + K/2 are the real and imaginary part of one pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def frequencies(thetas: Sequence[float]) -> Tensor:
    """θ_i / 2π, float64 revolutions a position: [K/2]."""
    return torch.tensor(thetas, dtype=torch.float64) / (2.0 * math.pi)


def cos_sin(
    position: Tensor, tokens: int, frequencies: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of n·θ_i for `tokens` positions n, in `dtype`, each [B, T, K/2].

    `position` int64 [B] is the index of the first token, `frequencies` float64 [K/2]. Whole turns
    are dropped in float64, so position 1,000,000 is as right as position 10: there, one float32 ulp
    of n·θ_0 is 0.06 rad. (In revolutions the modulus is 1, which no exporter can round; 2π it did.)
    """
    n = position[:, None] + torch.arange(tokens, device=position.device)
    fraction = torch.fmod(n[:, :, None].to(torch.float64) * frequencies, 1.0)
    angle = fraction.to(dtype) * (2.0 * math.pi)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of channels. x [B, H, T, K]; cos, sin [B, T, K/2]."""
    return rotate_pairs(x, cos[:, None], sin[:, None])


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same for x […, K] and cosines and sines that broadcast to […, K/2]."""
    real, imag = x.chunk(2, dim=-1)
    return torch.cat((real * cos - imag * sin, real * sin + imag * cos), dim=-1)
