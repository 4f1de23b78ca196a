"""Damage to a bundle's manifest and native plan that still agrees with itself in most places."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from random import Random
from typing import Any

from fuzz.damage.documents import damage_json

DIMENSIONS = (
    0,
    1,
    2,
    3,
    7,
    9,
    11,
    13,
    15,
    16,
    32,
    100,
    1000,
    2**20,
    2**29,
    2**31,
    "batch",
    "past",
    "T",
)
BLOCKS = (1, 16, 32, 64, 96, 128, 160, 192, 224, 256, 288, 1024)
CONFIG = ("vocab_size", "d_model", "layers", "heads", "key_head_dim", "value_head_dim", "ffn_dim")
ODD_FLOATS = (0.0, -1.0, 1.0, 1.5, 1e-30, 1e30, 1e308, 0.999999)
DIGEST_FIELD = "manifest_sha256"
Json = dict[str, Any]


def damage_manifest(raw: bytes, rng: Random) -> bytes:
    """Half of the time as any JSON; else states, sizes or numbers of the model, all over."""
    if rng.random() < 0.5:
        return damage_json(raw, rng)
    manifest = json.loads(raw)
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice(WAYS)(manifest, rng)
    return json.dumps(manifest).encode()


def _everywhere(manifest: Json, name: str, change: Any) -> None:
    """The tensor's description in the states and in every graph."""
    boxes = [manifest["states"]] + [
        g[side] for g in manifest["graphs"] for side in ("inputs", "outputs")
    ]
    for box in boxes:
        for spec in box:
            if name in (spec.get("name"), spec.get("input"), spec.get("output")):
                change(spec)


def _state_shape(manifest: Json, rng: Random) -> None:
    """Of one state or all, in states, inputs and outputs."""
    states = manifest["states"]
    if not states:
        return
    shape = list(rng.choice(states)["shape"])
    if rng.random() < 0.4:
        shape[1:] = [1] * (len(shape) - 1)
    elif rng.random() < 0.8:
        shape[rng.randrange(len(shape))] = rng.choice(DIMENSIONS)
    else:
        shape = [*shape, 1] if rng.random() < 0.5 else shape[:-1]
    for state in states if rng.random() < 0.5 else [rng.choice(states)]:
        for name in {state["input"], state["output"]}:
            _everywhere(manifest, name, lambda spec: spec.update(shape=shape))


def _state_dtype(manifest: Json, rng: Random) -> None:
    if manifest["states"]:
        state, dtype = (
            rng.choice(manifest["states"]),
            rng.choice(("float16", "int8", "int64", "uint8")),
        )
        for name in {state["input"], state["output"]}:
            _everywhere(manifest, name, lambda spec: spec.update(dtype=dtype))


def _fewer_states(manifest: Json, rng: Random) -> None:
    if manifest["states"]:
        state = manifest["states"].pop(rng.randrange(len(manifest["states"])))
        for graph in manifest["graphs"]:
            graph["inputs"] = [s for s in graph["inputs"] if s["name"] != state["input"]]
            graph["outputs"] = [s for s in graph["outputs"] if s["name"] != state["output"]]


def _more_states(manifest: Json, rng: Random) -> None:
    if manifest["states"]:
        state = dict(rng.choice(manifest["states"]), input="more", output="next_more")
        manifest["states"].append(state)
        for graph in manifest["graphs"]:
            spec = {"dtype": state["dtype"], "shape": list(state["shape"])}
            graph["inputs"].append({"name": "more", **spec})
            graph["outputs"].append({"name": "next_more", **spec})


def _vocabulary(manifest: Json, rng: Random) -> None:
    old = manifest["model"]["vocab_size"]
    new = rng.choice((old - 1, old + 1, old + 100, 1, 2, old * 2, 2**20, 2**31))
    manifest["model"]["vocab_size"] = new
    _everywhere(manifest, "logits", lambda spec: spec.update(shape=[spec["shape"][0], new]))
    if rng.random() < 0.3:
        manifest["model"]["config"]["vocab_size"] = new


def _config(manifest: Json, rng: Random) -> None:
    """A size, a decay or a frequency of the model, which the native backend computes by."""
    config = manifest["model"]["config"]
    if rng.random() < 0.5:
        name = rng.choice(CONFIG)
        if name in config:
            old = config[name]
            config[name] = rng.choice((old + 1, old - 1, old * 2, 1, 0, 10**6, 2**31 - 1, -old))
    for name in ("gammas", "thetas"):
        if config.get(name) and rng.random() < 0.5:
            values = config[name]
            if rng.random() < 0.3:
                config[name] = values[: rng.randrange(len(values) + 1)] + [0.5] * rng.randrange(3)
            else:
                values[rng.randrange(len(values))] = rng.choice(ODD_FLOATS)
    if rng.random() < 0.3:
        config[rng.choice(("norm_eps", "head_norm_eps"))] = rng.choice(ODD_FLOATS)
        config["head_norm_eps_rule"] = rng.choice(("z_n", "constant"))
        config["ffn"] = rng.choice(("glu", "mlp"))


def _graphs(manifest: Json, rng: Random) -> None:
    """Which file is which graph, for which backend, on which weights."""
    graph, way = rng.choice(manifest["graphs"]), rng.randrange(5)
    if way == 0:
        graph["file"] = rng.choice(list(manifest["files"]))
    elif way == 1:
        graph["backend"] = rng.choice(("onnxruntime", "native", "executorch"))
    elif way == 2:
        graph["external_data"] = rng.sample(list(manifest["files"]), rng.randrange(3))
    elif way == 3:
        graph["kind"] = rng.choice(("step", "prefill"))
    else:
        for key in ("serves_step", "states_in_place"):
            graph[key] = rng.random() < 0.5
    if rng.random() < 0.2:
        rng.shuffle(manifest["graphs"])


def _tokenizer(manifest: Json, rng: Random) -> None:
    ends = (-1, 0, 5, 383, 384, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, None)
    manifest["tokenizer"]["end_of_text"] = rng.choice(ends)
    if rng.random() < 0.2:
        manifest["tokenizer"]["file"] = rng.choice(list(manifest["files"]))


WAYS = (
    *(_state_shape, _state_shape, _state_dtype, _fewer_states, _more_states),
    *(_vocabulary, _config, _config, _graphs, _tokenizer),
)


def damage_plan(raw: bytes, rng: Random) -> bytes:
    """Blocks, bits, places and norms, with sizes that follow them in most cases."""
    if rng.random() < 0.4:
        return damage_json(raw, rng)
    plan = json.loads(raw)
    layers = plan["layers"]
    matrices = [plan["embedding"], plan["head"]] + [
        layer[name] for layer in layers for name in ("qkvg", "out", "inner", "down")
    ]
    for matrix in rng.sample(matrices, rng.choice((1, 1, 2, len(matrices)))):
        way = rng.randrange(6)
        if way < 3:
            _other_blocks(matrix, rng)
        elif way == 3:
            place = matrix[rng.choice(("codes", "scales"))]
            if isinstance(place, dict):
                place["offset"] = max(0, place["offset"] + rng.choice((1, 2, 3, -1, 4, 64, 2**31)))
        elif way == 4:
            matrix["zeros"] = rng.choice((None, "", "AAAA", {"offset": 0, "size": 1}))
        else:
            key = rng.choice(("rows", "inputs"))
            matrix[key] = max(1, matrix[key] + rng.choice((-1, 1, 32, -32, 2**20)))
    if rng.random() < 0.2:
        del layers[rng.randrange(len(layers))]
    if rng.random() < 0.2:
        numbers = b"\xff\xff\xff\x7f" if rng.random() < 0.5 else b"\0\0\x80\x7f"
        plan["final_norm"] = base64.b64encode(numbers * 64).decode()
    return json.dumps(plan).encode()


def _other_blocks(matrix: Json, rng: Random) -> None:
    """Other blocks or bits, and as many bytes as they take, from wherever there are some."""
    matrix["block"], matrix["bits"] = rng.choice(BLOCKS), rng.choice((4, 8))
    if rng.random() < 0.3:
        matrix["scale_dtype"] = rng.choice(("float32", "float16"))
    blocks = -(-matrix["inputs"] // matrix["block"])
    halves = matrix["scale_dtype"] == "float16"
    sizes = {
        "codes": matrix["rows"] * blocks * matrix["block"] * matrix["bits"] // 8,
        "scales": matrix["rows"] * blocks * (2 if halves else 4),
        "zeros": matrix["rows"] * -(-blocks * matrix["bits"] // 8),
    }
    if matrix.get("zeros") is None and rng.random() < 0.7:
        del sizes["zeros"]
    for name, size in sizes.items():
        matrix[name] = {"offset": rng.choice((0, 0, 4, 64, 1, 2)), "size": max(1, size)}


def mended_digest(raw: bytes) -> bytes:
    """A manifest with the hash that fits it: of its JSON in one form, the hash left out."""
    try:
        record = json.loads(raw)
        told = record.pop(DIGEST_FIELD)
        form = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        digest = hashlib.sha256(form.encode()).hexdigest()
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError):
        return raw  # nothing could agree with it
    if isinstance(told, str) and re.fullmatch("[0-9a-f]{64}", told):
        return raw.replace(told.encode(), digest.encode())
    return raw
