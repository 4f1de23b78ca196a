"""Rotation by the position is as right at position 1,000,000 as at position 10."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from retnet_edge.config import thetas_rope, thetas_torchscale
from retnet_edge.model.rotary import cos_sin, frequencies, rotate

PI = Fraction("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")
# Roundings of an angle in [0, 2π): the turn's (2π · 2^-25), that of 2π itself (1.8e-7), of their
# product (2^-22) and of the cosine (2^-25). The position is in none of them.
FLOAT32 = 2 * math.pi * 2**-25 + 1.8e-7 + 2**-22 + 2**-25
POSITIONS = (0, 1, 10, 4_097, 999_999, 1_000_000, 1_048_577)


def exact(n: int, thetas: tuple[float, ...]) -> NDArray[np.float64]:
    """cos and sin of n·θ with the whole turns dropped in rational arithmetic: [2, K/2]."""
    angles = [float(n * Fraction(theta) % (2 * PI)) for theta in thetas]
    return np.array([[math.cos(a) for a in angles], [math.sin(a) for a in angles]])


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("thetas", [thetas_rope(64), thetas_torchscale(64), (math.pi, 0.123)])
def test_float32_angles_at_any_position(position: int, thetas: tuple[float, ...]) -> None:
    found = cos_sin(torch.tensor([position]), 3, frequencies(thetas), torch.float32)
    for t in range(3):
        wanted = exact(position + t, thetas)
        for values, truth in zip(found, wanted, strict=True):
            assert values.dtype == torch.float32
            assert np.abs(values[0, t].double().numpy() - truth).max() <= FLOAT32


@pytest.mark.parametrize(("position", "tolerance"), [(10, 1e-14), (1_000_000, 5e-10)])
def test_float64_angles(position: int, tolerance: float) -> None:
    """The reference's own error: a rounding of θ/2π times the position."""
    thetas = thetas_rope(64)
    found = cos_sin(torch.tensor([position]), 1, frequencies(thetas), torch.float64)
    for values, truth in zip(found, exact(position, thetas), strict=True):
        assert np.abs(values[0, 0].numpy() - truth).max() <= tolerance


def test_plain_float32_angles_would_fail_this() -> None:
    """The test can fail: n·θ in float32 is off by orders of magnitude at 1,000,000."""
    thetas = thetas_rope(64)
    naive = (torch.tensor(1_000_001.0) * torch.tensor(thetas)).cos().double().numpy()
    assert np.abs(naive - exact(1_000_001, thetas)[0]).max() > 1_000 * FLOAT32


def test_each_sequence_has_its_own_position() -> None:
    t = frequencies(thetas_rope(8))
    cos, sin = cos_sin(torch.tensor([3, 1_000_000]), 4, t, torch.float32)
    assert cos.shape == sin.shape == (2, 4, 4)
    for row, position in enumerate((3, 1_000_000)):
        one_cos, one_sin = cos_sin(torch.tensor([position]), 4, t, torch.float32)
        assert torch.equal(cos[row], one_cos[0])
        assert torch.equal(sin[row], one_sin[0])


def test_rotation_is_a_complex_product_of_half_split_pairs() -> None:
    thetas = thetas_rope(6)
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cos, sin = cos_sin(torch.tensor([7, 20]), 5, frequencies(thetas), torch.float64)
    found = rotate(x, cos, sin).numpy()
    z = x.numpy()[..., :3] + 1j * x.numpy()[..., 3:]
    n = np.array([7, 20])[:, None] + np.arange(5)
    z = z * np.exp(1j * n[:, None, :, None] * np.array(thetas))
    assert np.abs(found - np.concatenate((z.real, z.imag), axis=-1)).max() <= 1e-13


def test_products_of_rotated_vectors_depend_on_the_distance_only() -> None:
    g = torch.Generator().manual_seed(1)
    q, k = (torch.randn(1, 1, 1, 64, generator=g) for _ in range(2))
    t = frequencies(thetas_rope(64))

    def product(n: int, m: int) -> float:
        a = rotate(q, *cos_sin(torch.tensor([n]), 1, t, torch.float32))
        b = rotate(k, *cos_sin(torch.tensor([m]), 1, t, torch.float32))
        return (a * b).sum().item()

    scale = (q.norm() * k.norm()).item()
    assert abs(product(1_000_000, 999_990) - product(10, 0)) <= 2e-6 * scale


def test_theta_schedules() -> None:
    assert thetas_rope(4) == (1.0, 0.01)
    assert thetas_torchscale(4) == (1.0, 1e-4)
    assert thetas_torchscale(2) == (1.0,)
    assert len(thetas_rope(64)) == len(thetas_torchscale(64)) == 32
