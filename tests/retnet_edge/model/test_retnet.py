"""The model against the paper by hand, far positions, sizes, presets, and the baseline."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
import retnet_by_hand as by_hand
import torch
from torch import Tensor, nn

from retnet_edge.config import (
    RetNetConfig,
    TransformerConfig,
    gammas_eq8,
    gammas_log_linear,
    retnet_config,
    transformer_like,
)
from retnet_edge.model.checkpoint import build_model
from retnet_edge.model.retnet import Form, RetNet, decay_sum, to_float64
from retnet_edge.model.transformer import Transformer
from retnet_edge.presets import PRESETS, preset

FLOAT64 = 1e-10
FLOAT32 = 2e-5
FORMS: tuple[Form, ...] = ("parallel", "chunkwise", "recurrent")

BASE = RetNetConfig(
    vocab_size=50,
    d_model=24,
    layers=2,
    heads=3,
    key_head_dim=6,
    value_head_dim=10,
    ffn_dim=20,
    gammas=(0.5, 0.99, 1.0),
    thetas=(1.0, 0.3, 0.01),
)
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "untied": {"tie_embeddings": False},
    "mlp": {"ffn": "mlp"},
    "mlp gelu": {"ffn": "mlp", "activation": "gelu"},
    "glu gelu": {"activation": "gelu"},
    "affine": {"head_norm_affine": True},
    "z_n": {"head_norm_eps_rule": "z_n", "head_norm_eps": 0.05},
    "z_n affine untied": {
        "head_norm_eps_rule": "z_n",
        "head_norm_eps": 0.05,
        "head_norm_affine": True,
        "tie_embeddings": False,
    },
    "large eps": {"head_norm_eps": 0.3, "norm_eps": 0.2},
}


def made(config: RetNetConfig, dtype: torch.dtype = torch.float64, seed: int = 0) -> RetNet:
    """A model whose every weight (norms too) is far from its initial value."""
    model = RetNet(config)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=g)
            p.copy_(1.0 + 0.3 * noise if p.ndim == 1 else 0.3 * noise)
    return (model.to(torch.float64) if dtype == torch.float64 else model).eval()


def states_for(config: RetNetConfig, batch: int, seed: int = 1) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    shape = (batch, config.heads, config.key_head_dim, config.value_head_dim)
    return [
        torch.randn(shape, generator=g, dtype=torch.float64).float().double()
        for _ in range(config.layers)
    ]


def tokens_for(config: RetNetConfig, batch: int, length: int) -> Tensor:
    g = torch.Generator().manual_seed(2)
    return torch.randint(0, config.vocab_size, (batch, length), generator=g)


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted.double()).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_model_is_the_paper_by_hand(variant: str, form: Form) -> None:
    """Every variant and form, two sequences at their own positions, from states carried in."""
    config = msgspec.structs.replace(BASE, **VARIANTS[variant])
    model = made(config)
    tokens, states = tokens_for(config, 2, 7), states_for(config, 2)
    positions = (0, 1_000_000)
    logits, after = model(tokens, states=states, position=torch.tensor(positions), form=form)
    for row, position in enumerate(positions):
        wanted, wanted_states = by_hand.run(
            config,
            by_hand.weights_of(model),
            tokens[row].tolist(),
            [s[row].numpy() for s in states],
            position,
        )
        # at 1,000,000 the reference's float64 angles are right to 5e-10 rad
        tolerance = FLOAT64 if position == 0 else 2e-8
        assert relative(logits[row], torch.from_numpy(wanted)) <= tolerance
        for found, truth in zip(after, wanted_states, strict=True):
            assert relative(found[row], torch.from_numpy(truth)) <= tolerance


def test_variants_are_different_functions() -> None:
    """No variant of the test above is a no-op."""
    logits = []
    for changes in VARIANTS.values():
        config = msgspec.structs.replace(BASE, **changes)
        out, _ = made(config)(tokens_for(config, 1, 5))
        logits.append(out.detach())
    for i, a in enumerate(logits):
        for b in logits[:i]:
            assert relative(a, b) > 1e-3


@torch.no_grad()
def test_position_one_million_is_as_right_as_position_ten() -> None:
    """Float32 logits and states against float64, same states in, one tolerance for both."""
    config = preset("tiny", 512)
    single, double = made(config, torch.float32), made(config, torch.float64)
    tokens = tokens_for(config, 1, 33)
    states = states_for(config, 1)
    for form in FORMS:
        for start in (10, 1_000_000, 1_048_575):
            position = torch.tensor([start])
            wanted, wanted_states = double(tokens, states=states, position=position, form=form)
            found, found_states = single(
                tokens, states=[s.float() for s in states], position=position, form=form
            )
            assert found.dtype == found_states[0].dtype == torch.float32
            assert relative(found, wanted) <= FLOAT32, (form, start)
            for a, b in zip(found_states, wanted_states, strict=True):
                assert relative(a, b) <= FLOAT32, (form, start)


@torch.no_grad()
def test_the_position_matters() -> None:
    """The far-position test can fail: there the state in is read at the wrong angles."""
    model = made(BASE)
    tokens, states = tokens_for(BASE, 1, 3), states_for(BASE, 1)
    near, _ = model(tokens, states=states, position=torch.tensor([1_000_000]))
    off, _ = model(tokens, states=states, position=torch.tensor([1_000_001]))
    assert relative(near, off) > 1e-2


@torch.no_grad()
def test_state_carried_over_calls_equals_one_call() -> None:
    model = made(BASE)
    tokens = tokens_for(BASE, 2, 301)
    whole, last = model(tokens, form="recurrent")
    states, parts, at = None, [], 0
    for width in (1, 127, 128, 1, 44):
        logits, states = model(
            tokens[:, at : at + width], states=states, position=torch.tensor([at, at])
        )
        parts.append(logits)
        at += width
    assert at == 301
    assert states is not None
    assert relative(torch.cat(parts, dim=1), whole) <= FLOAT64
    for a, b in zip(states, last, strict=True):
        assert relative(a, b) <= FLOAT64


@torch.no_grad()
def test_a_far_text_is_the_near_text_turned() -> None:
    """From the empty state only distances count: logits at 1,000,000 are those at 0."""
    model = made(BASE)
    tokens = tokens_for(BASE, 1, 20)
    near, _ = model(tokens)
    far, _ = model(tokens, position=torch.tensor([1_000_000]))
    assert relative(far, near) <= 2e-8


def test_states_have_the_shape_and_bytes_of_the_configuration() -> None:
    model = RetNet(BASE)
    states = model.initial_states(3)
    assert [tuple(s.shape) for s in states] == [(3, 3, 6, 10)] * 2
    assert all(s.dtype == torch.float32 for s in states)
    assert not any(s.any() for s in states)
    assert BASE.state_bytes() == sum(s.nbytes for s in model.initial_states(1)) == 4 * 2 * 3 * 60
    assert model.to(torch.float64).initial_states(1)[0].dtype == torch.float64
    # FACTS: 2 · layers · d_model² / heads elements
    assert preset("edge-15m", 8192).state_bytes() == 4 * 2 * 7 * 384**2 // 6


def test_bfloat16_matmuls_keep_a_float32_state() -> None:
    model = made(BASE, torch.float32)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logits, states = model(tokens_for(BASE, 1, 130))
    exact, _ = made(BASE)(tokens_for(BASE, 1, 130))
    assert all(s.dtype == torch.float32 for s in states)
    assert ((logits.double() - exact).norm() / exact.norm()).item() < 0.05


def test_dropout_acts_in_training_only() -> None:
    model = RetNet(BASE, dropout=0.5)
    tokens = tokens_for(BASE, 1, 9)
    torch.manual_seed(0)
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])
    model.train()
    assert not torch.equal(model(tokens)[0], model(tokens)[0])


@pytest.mark.parametrize("gamma", [0.5, 1.0 - 1 / 32, 0.9982, 0.9965994, 1.0 - 3e-7, 1.0])
@pytest.mark.parametrize("position", [0, 9, 1_000_000])
def test_position_sum_is_the_sum_of_decays(gamma: float, position: int) -> None:
    log_decay = torch.tensor([gamma], dtype=torch.float64).log()
    n = np.arange(position + 1, position + 4)
    wanted = n.astype(float) if gamma == 1.0 else -np.expm1(n * math.log(gamma)) / (1.0 - gamma)
    if position < 10:
        direct = [math.fsum(gamma**i for i in range(m)) for m in n]
        assert np.allclose(wanted, direct, rtol=1e-9)
    found = decay_sum(log_decay, torch.tensor(n)[None])
    assert found.shape == (1, 1, 3)
    assert np.allclose(found[0, 0].numpy(), wanted, rtol=1e-9)
    single = decay_sum(log_decay.float(), torch.tensor(n)[None])
    assert single.dtype == torch.float32
    assert np.allclose(single[0, 0].numpy(), wanted, rtol=1e-6)


def test_decay_schedules() -> None:
    assert gammas_eq8(3) == (1 - 2.0**-5, 1 - 2.0**-6, 1 - 2.0**-7)
    log_linear = gammas_log_linear(8)
    assert log_linear[0] == pytest.approx(1 - 1 / 32, abs=1e-15)
    assert log_linear[-1] == pytest.approx(1 - 1 / 512, abs=1e-15)
    steps = np.diff(np.log(1 - np.array(log_linear)))
    assert np.allclose(steps, steps[0])
    assert gammas_log_linear(1) == pytest.approx((1 - 1 / 32,))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


SIZES = {
    "edge-15m": (8_192, 15e6),
    "edge-135m": (32_768, 135e6),
    "paper-1.3b": (32_000, 1.3e9),
    "paper-2.7b": (32_000, 2.7e9),
    "paper-6.7b": (32_000, 6.7e9),
    "fla-1.3b": (32_000, 1.3e9),
    "fla-2.7b": (32_000, 2.7e9),
}


@pytest.mark.parametrize("name", SIZES)
def test_presets_have_the_parameters_of_their_names(name: str) -> None:
    vocab_size, wanted = SIZES[name]
    with torch.device("meta"):
        found = parameters(build_model(preset(name, vocab_size)))
    assert abs(found / wanted - 1) <= 0.05


def test_every_preset_but_the_test_one_has_its_size_tested() -> None:
    assert {*SIZES, "tiny"} == set(PRESETS)
    assert parameters(RetNet(preset("tiny", 512))) < 1_000_000


@pytest.mark.parametrize(("name", "d", "layers", "heads"), [
    ("paper-1.3b", 2048, 24, 8), ("paper-2.7b", 2560, 32, 10), ("paper-6.7b", 4096, 32, 16),
    ("fla-1.3b", 2048, 24, 8), ("fla-2.7b", 2560, 32, 10),
])  # fmt: skip
def test_large_presets_have_the_published_dimensions(
    name: str, d: int, layers: int, heads: int
) -> None:
    config = preset(name, 32_000)
    assert (config.d_model, config.layers, config.heads) == (d, layers, heads)
    assert (config.key_head_dim, config.value_head_dim) == (256, 512)
    if name.startswith("fla"):
        assert config.gammas == gammas_eq8(heads)
        assert config.head_norm_affine
        assert config.ffn_dim == {2048: 2816, 2560: 3584}[d]
    else:
        assert config.gammas == gammas_log_linear(heads)
        assert (config.ffn, config.ffn_dim) == ("mlp", 2 * d)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("vocab_size", [1_024, 32_000])
def test_the_baseline_has_the_parameters_of_its_retnet(name: str, vocab_size: int) -> None:
    config = preset(name, vocab_size)
    baseline = transformer_like(config)
    assert (baseline.d_model, baseline.layers) == (config.d_model, config.layers)
    with torch.device("meta"):
        ours, theirs = parameters(build_model(config)), parameters(build_model(baseline))
    assert abs(theirs / ours - 1) <= 0.03


def test_the_baseline_keeps_what_is_not_retention() -> None:
    config = msgspec.structs.replace(
        retnet_config(vocab_size=512, d_model=64, layers=2, heads=2, ffn_dim=96),
        tie_embeddings=False,
        norm_eps=1e-5,
    )
    baseline = transformer_like(config)
    assert (baseline.tie_embeddings, baseline.norm_eps) == (False, 1e-5)
    assert baseline.thetas == config.thetas


TRANSFORMER = TransformerConfig(
    vocab_size=50, d_model=24, layers=2, heads=3, key_head_dim=6, ffn_dim=20,
    thetas=(1.0, 0.3, 0.01), tie_embeddings=False,
)  # fmt: skip


@torch.no_grad()
def test_the_transformers_cached_steps_equal_its_parallel_form() -> None:
    torch.manual_seed(0)
    model = Transformer(TRANSFORMER)
    for p in model.parameters():
        p.mul_(8.0)
    model = model.to(torch.float64).eval()
    tokens = torch.randint(0, 50, (2, 21))
    whole, caches = model(tokens)
    _, states = model(tokens[:, :4])
    rows = []
    for t in range(4, 21):
        logits, states = model(tokens[:, t : t + 1], states=states, position=torch.tensor([t, t]))
        rows.append(logits)
    assert relative(torch.cat(rows, dim=1), whole[:, 4:]) <= FLOAT64
    for (key, value), (whole_key, whole_value) in zip(states, caches, strict=True):
        assert key.shape == value.shape == (2, 3, 21, 6)
        assert relative(key, whole_key) <= FLOAT64
        assert relative(value, whole_value) <= FLOAT64


@torch.no_grad()
def test_the_transformer_is_causal() -> None:
    torch.manual_seed(0)
    model = Transformer(TRANSFORMER).eval()
    tokens = torch.randint(0, 50, (1, 12))
    other = tokens.clone()
    other[0, 8:] = (other[0, 8:] + 1) % 50
    a, b = model(tokens)[0], model(other)[0]
    assert torch.allclose(a[:, :8], b[:, :8], atol=1e-6)
    assert not torch.allclose(a[:, 8:], b[:, 8:], atol=1e-6)


def test_tied_and_untied_heads() -> None:
    tied = RetNet(BASE)
    assert tied.head.weight is tied.embedding.weight
    untied = RetNet(msgspec.structs.replace(BASE, tie_embeddings=False))
    assert untied.head.weight is not untied.embedding.weight
    assert parameters(untied) - parameters(tied) == 50 * 24


def test_conversion_to_float64_keeps_decays_and_angles_exact() -> None:
    model = to_float64(RetNet(BASE))
    assert isinstance(model, RetNet)
    assert model.blocks[0].retention.log_decay.tolist() == [  # type: ignore[union-attr, operator]
        math.log(g) for g in BASE.gammas
    ]
    assert (
        2 * math.pi * model.frequencies - torch.tensor(BASE.thetas).double()
    ).abs().max() <= 1e-7
    assert torch.equal(
        model.frequencies, torch.tensor(BASE.thetas, dtype=torch.float64) / (2 * math.pi)
    )
