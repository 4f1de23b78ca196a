"""Configurations: exact round trips, and one sentence for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from retnet_edge.config import (
    RetNetConfig,
    TransformerConfig,
    decode_config,
    encode_config,
    retnet_config,
    transformer_like,
)
from retnet_edge.errors import InputError
from retnet_edge.presets import PRESETS, preset

CONFIG = retnet_config(vocab_size=512, d_model=48, layers=2, heads=3, ffn_dim=64)


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_is_exact(name: str) -> None:
    """γ and θ come back bit for bit, of both kinds of model."""
    config = preset(name, 8_192)
    again = decode_config(encode_config(config), "config.json")
    assert isinstance(again, RetNetConfig)
    assert again == config
    baseline = transformer_like(config)
    again_baseline = decode_config(encode_config(baseline), "config.json")
    assert isinstance(again_baseline, TransformerConfig)
    assert again_baseline == baseline


def test_round_trip_of_every_field() -> None:
    config = msgspec.structs.replace(
        CONFIG,
        ffn="mlp",
        activation="gelu",
        head_norm_eps=3e-5,
        head_norm_eps_rule="z_n",
        head_norm_affine=True,
        tie_embeddings=False,
        norm_eps=1e-5,
        gammas=(0.1, 1.0, 1.0 - 2.0**-40),
    )
    raw = encode_config(config)
    assert decode_config(raw, "config.json") == config
    assert raw.endswith(b"}\n")
    assert set(json.loads(raw)) == {"type", *RetNetConfig.__struct_fields__}


def test_configurations_are_frozen_and_hashable() -> None:
    with pytest.raises(AttributeError):
        CONFIG.layers = 3  # type: ignore[misc]
    assert len({CONFIG, msgspec.structs.replace(CONFIG)}) == 1


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "too few gammas": ({"gammas": [0.9, 0.9]}, ["gammas", "2", "3 heads"]),
    "gamma above one": ({"gammas": [0.9, 0.9, 1.5]}, ["gammas", "1.5", "(0, 1]"]),
    "gamma zero": ({"gammas": [0.9, 0.0, 0.9]}, ["gammas", "0.0", "(0, 1]"]),
    "gamma negative": ({"gammas": [-0.9, 0.9, 0.9]}, ["gammas", "-0.9", "(0, 1]"]),
    "odd key dim": ({"key_head_dim": 15}, ["key_head_dim", "15", "even"]),
    "thetas for another key dim": ({"thetas": [1.0]}, ["thetas", "1 ", "16 needs 8"]),
    "unknown field": ({"hidden_size": 48}, ["hidden_size"]),
    "zero layers": ({"layers": 0}, ["layers", ">= 1"]),
    "a text for a number": ({"heads": "three"}, ["heads", "int", "str"]),
    "eps of zero": ({"norm_eps": 0.0}, ["norm_eps", "> 0"]),
    "unknown activation": ({"activation": "relu"}, ["activation", "relu"]),
    "unknown ffn": ({"ffn": "moe"}, ["ffn", "moe"]),
    "unknown eps rule": ({"head_norm_eps_rule": "n"}, ["head_norm_eps_rule"]),
    "unknown kind": ({"type": "mamba"}, ["mamba"]),
    "absurd width": ({"d_model": 10**9}, ["d_model", "1000000"]),
    "missing field": ({"gammas": None}, ["gammas"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_field_is_named_in_one_sentence(case: str) -> None:
    changes, words = BAD[case]
    raw = {**json.loads(encode_config(CONFIG)), **changes}
    if case == "missing field":
        del raw["gammas"]
    with pytest.raises(InputError) as caught:
        decode_config(json.dumps(raw).encode(), Path("some/config.json"))
    message = str(caught.value)
    assert message.startswith("some/config.json: ")
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"type": "retnet"'])
def test_not_a_configuration_at_all(raw: bytes) -> None:
    with pytest.raises(
        InputError, match=r"^config\.json: not a valid model configuration"
    ) as caught:
        decode_config(raw, "config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gamma", [float("nan"), float("inf"), 0.0, 1.0000001, -0.5])
def test_no_decay_outside_zero_to_one(gamma: float) -> None:
    with pytest.raises(InputError, match="gammas holds"):
        msgspec.structs.replace(CONFIG, gammas=(0.9, 0.9, gamma))


def test_gamma_of_one_is_a_decay() -> None:
    assert msgspec.structs.replace(CONFIG, gammas=(1.0, 1.0, 1.0)).gammas == (1.0, 1.0, 1.0)


def test_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(InputError, match="d_model 50 is not a multiple of heads 3"):
        retnet_config(vocab_size=512, d_model=50, layers=1, heads=3, ffn_dim=64)


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(InputError) as caught:
        preset("edge-15g", 512)
    assert "'edge-15g'" in str(caught.value)
    assert all(name in str(caught.value) for name in PRESETS)


@pytest.mark.parametrize(
    "raw", [b"[" * 100_000, b'{"dtype": ' * 100_000, b'{"thetas": ' + b"[" * 9999]
)
def test_nested_ever_deeper(raw: bytes) -> None:
    with pytest.raises(InputError, match="here: not a valid model configuration"):
        decode_config(raw, "here")
