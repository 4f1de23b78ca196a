"""The manifest's records: what each field may hold, and what is read off them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest
from conftest import Tiny

from retnet_edge.errors import InputError
from retnet_edge.runtime.bundle.manifest import (
    DTYPE_BYTES,
    Delegation,
    GraphSpec,
    Manifest,
    StateSpec,
    Tolerance,
    decode,
    digest,
    encode,
    model_digest,
    with_digest,
)


@pytest.fixture
def raw(tiny: Tiny) -> dict[str, Any]:
    """A manifest as JSON, without its digest."""
    found: dict[str, Any] = json.loads((tiny.path / "manifest.json").read_bytes())
    del found["manifest_sha256"]
    found["graphs"][0]["delegation"] = {"subgraphs": 1, "delegated": 2, "rest": {"add": 1}}
    return found


def read(raw: dict[str, Any]) -> Manifest:
    return decode(json.dumps(raw).encode(), "m.json")


def put(raw: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """`raw` with `value` at a place such as "graphs.0.kind"."""
    inner: Any = raw
    *way, last = place.split(".")
    for key in way:
        inner = inner[int(key) if key.isdigit() else key]
    inner[last] = value
    return raw


ENTRY = {"size": 1, "sha256": "0" * 64}
TENSOR = {"name": "x", "dtype": "int8", "shape": ["batch"]}
STATE = {"input": "x", "output": "y", "dtype": "int8", "shape": ["batch"]}
GRAPH = {"file": "x", "kind": "step", "backend": "native", "inputs": [], "outputs": [],
         "external_data": [], "operator_sets": {}}  # fmt: skip


@pytest.mark.parametrize(
    ("place", "taken", "refused"),
    [
        ("model.vocab_size", 1, 0),
        ("model.vocab_size", 2**31, 2**31 + 1),
        ("tokenizer.end_of_text", 0, -1),
        ("tokenizer.end_of_text", 2**31 - 1, 2**31),
        ("tokenizer.other_ends", [0] * 1024, [0] * 1025),
        ("quantization.recipe", "x", ""),
        ("quantization.recipe", "x" * 200, "x" * 201),
        ("graphs", [GRAPH] * 16, [GRAPH] * 17),
        ("graphs.0.operator_sets", {"": 0}, {"": -1}),
        ("graphs.0.operator_sets", {"": 2**31}, {"": 2**31 + 1}),
        ("graphs.0.inputs", [TENSOR] * 1024, [TENSOR] * 1025),
        ("graphs.0.outputs", [TENSOR] * 1024, [TENSOR] * 1025),
        ("graphs.0.inputs", [TENSOR | {"shape": [1] * 8}], [TENSOR | {"shape": [1] * 9}]),
        ("graphs.0.planned_bytes", 0, -1),
        ("graphs.0.planned_bytes", 2**40, 2**40 + 1),
        ("graphs.0.delegation.subgraphs", 0, -1),
        ("graphs.0.delegation.subgraphs", 2**31, 2**31 + 1),
        ("graphs.0.delegation.delegated", 0, -1),
        ("graphs.0.delegation.delegated", 2**31, 2**31 + 1),
        ("states", [STATE] * 1024, [STATE] * 1025),
        ("states", [STATE | {"shape": [1] * 8}], [STATE | {"shape": [1] * 9}]),
        ("files", {str(i): ENTRY for i in range(256)}, {str(i): ENTRY for i in range(257)}),
    ],
)
def test_a_value_at_its_bound_is_taken_and_one_beyond_it_refused(
    place: str, taken: Any, refused: Any, raw: dict[str, Any]
) -> None:
    """By a sentence that names the file and the field."""
    read(put(raw, place, taken))
    with pytest.raises(InputError, match=r"^m\.json: not a valid manifest: ") as caught:
        read(put(raw, place, refused))
    assert place.split(".")[-1] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_may_be_nested_32_deep_and_no_deeper(raw: dict[str, Any]) -> None:
    """The manifest itself is the first level, the configuration the third, a number one too."""

    def nested(levels: int) -> Any:
        return [nested(levels - 1)] if levels else 1

    read(put(raw, "model.config.x", nested(28)))
    with pytest.raises(InputError, match="its values are nested deeper than 32"):
        read(put(raw, "model.config.x", nested(29)))


def test_the_sentence_names_the_key_that_stands_twice(raw: dict[str, Any]) -> None:
    text = json.dumps(raw).replace('"heads": 2', '"a": 1, "heads": 2, "b": 3, "heads": 2', 1)
    with pytest.raises(InputError, match=r"^m\.json: not a valid manifest: the key 'heads' stands"):
        decode(text.encode(), "m.json")


RECORDS = ["", "model", "graphs.0", "graphs.0.inputs.0", "graphs.0.delegation", "states.0",
           "tokenizer", "quantization", "quantization.tensors.0", "tolerance", "provenance",
           "verification"]  # fmt: skip
WEIGHT = {"weight": "w", "rule": ".*", "scheme": "int8", "shape": [2, 3]}


@pytest.mark.parametrize("place", RECORDS)
def test_every_record_is_a_value(place: str, raw: dict[str, Any]) -> None:
    """It cannot be changed under others who hold it; and a key that it does not know is refused."""
    record: Any = read(put(raw, "quantization.tensors", [dict(WEIGHT)]))
    for key in place.split(".") if place else ():
        record = record[int(key)] if key.isdigit() else getattr(record, key)
    field = record.__struct_fields__[0]
    with pytest.raises(AttributeError, match="immutable"):
        setattr(record, field, getattr(record, field))
    with pytest.raises(InputError, match="unknown field `surprise`"):
        read(put(raw, f"{place}.surprise".strip("."), 1))


def test_what_is_written_says_every_field(tiny: Tiny, raw: dict[str, Any]) -> None:
    """With its default too, so that a reader needs no schema; a tokenizer's alone are left out."""
    del raw["graphs"][0]["delegation"]
    text = encode(read(raw)).decode()
    written = json.loads(text)
    assert text.startswith('{\n  "schema_version": 1,\n  "model": {\n    "kind": "retnet",\n')
    assert text.endswith('"\n}\n')
    graph = written["graphs"][0]
    assert set(graph) == set(GraphSpec.__struct_fields__)
    assert (graph["serves_step"], graph["states_in_place"]) == (False, False)
    assert (graph["delegation"], graph["planned_bytes"], graph["needs"]) == (None, None, None)
    assert set(written) == set(Manifest.__struct_fields__)
    assert written["tokenizer"] == {"file": "tokenizer.json", "end_of_text": 0}
    put(raw, "tokenizer", {"file": "tokenizer.json", "end_of_text": 0, "padding": 1})
    assert json.loads(encode(read(raw)))["tokenizer"] == raw["tokenizer"]


def test_the_version_of_the_schema_is_one(raw: dict[str, Any]) -> None:
    """Which bundles carry; another number would refuse all of them."""
    assert raw["schema_version"] == 1
    for other in (0, 2, "1", None):
        with pytest.raises(InputError, match=r"^m\.json: schema_version is .* reads 1$"):
            read(put(raw, "schema_version", other))


def test_a_digest_is_of_utf8_with_sorted_keys_and_no_white_space() -> None:
    """As docs say, so that another program can make it; the field itself is left out."""
    record = {"name": "né", "manifest_sha256": "0" * 64, "files": {"b": 1, "a": 0.5}}
    text = '{"files":{"a":0.5,"b":1},"name":"né"}'
    assert digest(record) == hashlib.sha256(text.encode()).hexdigest()


def test_a_digest_that_is_another_is_told_with_both(raw: dict[str, Any]) -> None:
    right = digest(raw)
    assert read(raw | {"manifest_sha256": right}).manifest_sha256 == right
    assert read(raw).manifest_sha256 is None
    assert with_digest(read(raw)).manifest_sha256 is not None
    with pytest.raises(InputError, match=f"is {right}; its manifest_sha256 says {'0' * 64}"):
        read(raw | {"manifest_sha256": "0" * 64})


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("model.kind", "transformer"),
        ("model.vocab_size", 7),
        ("model.config.heads", 3),
        ("states.0.input", "x"),
        ("states.0.output", "x"),
        ("states.0.dtype", "float16"),
        ("states.0.shape", ["batch", 1]),
        ("quantization.tensors", []),
        ("quantization.tensors.0.weight", "x"),
        ("quantization.tensors.0.scheme", "x"),
    ],
)
def test_the_digest_of_the_model_changes_with_what_is_computed(
    place: str, value: Any, raw: dict[str, Any]
) -> None:
    put(raw, "quantization.tensors", [dict(WEIGHT)])
    before = model_digest(read(raw))
    assert model_digest(read(put(raw, "tolerance.mean_kl", 0.5))) == before
    assert model_digest(read(put(raw, "quantization.recipe", "other"))) == before
    assert model_digest(read(put(raw, place, value))) != before


@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 4), ("float16", 2), ("int64", 8), ("int8", 1), ("uint8", 1)]
)
def test_bytes_of_a_state(dtype: Any, size: int) -> None:
    assert DTYPE_BYTES[dtype] == size
    fixed = StateSpec("s", "n", dtype, ("batch", 2, 3, 5))
    assert (fixed.growing_axis, fixed.bytes_at(0), fixed.bytes_at(9)) == (
        None,
        30 * size,
        30 * size,
    )
    growing = StateSpec("s", "n", dtype, ("batch", 2, "past", 5))
    assert growing.growing_axis == 2
    assert [growing.bytes_at(n) for n in (0, 1, 7)] == [0, 10 * size, 70 * size]


def test_the_share_that_is_delegated() -> None:
    assert Delegation(2, 30, {"add": 6, "mul": 4}).share == 0.75
    assert Delegation(1, 1, {}).share == 1.0
    assert Delegation(0, 0, {"add": 1}).share == 0.0
    assert Delegation(0, 0, {}).share == 0.0


def test_every_id_at_which_generation_ends(raw: dict[str, Any]) -> None:
    assert read(put(raw, "tokenizer.other_ends", [5, 3])).tokenizer.ends == (0, 5, 3)
    assert read(put(raw, "tokenizer.end_of_text", None)).tokenizer.ends == (5, 3)


def test_graphs_by_backend_and_kind(raw: dict[str, Any]) -> None:
    raw["graphs"] = [
        GRAPH | {"file": f"{backend}-{kind}", "kind": kind, "backend": backend} | extra
        for backend, kind, extra in (
            ("executorch", "prefill", {}),
            ("onnxruntime", "step", {"external_data": ["w.bin"]}),
            ("onnxruntime", "prefill", {"external_data": ["w.bin", "v.bin"]}),
        )
    ]
    manifest = read(raw)
    assert manifest.backends == ("executorch", "onnxruntime")
    assert manifest.files_of("onnxruntime") == (
        "onnxruntime-step",
        "w.bin",
        "onnxruntime-prefill",
        "v.bin",
    )
    assert manifest.files_of("native") == ()
    found = manifest.graph_for("onnxruntime", "prefill")
    assert found is manifest.graphs[2]
    assert manifest.graph_for("onnxruntime", "step") is manifest.graphs[1]
    assert manifest.graph_for("executorch", "step") is None
    assert manifest.graph_for("native", "step") is None
    assert manifest.graph("step") is manifest.graphs[1]
    assert manifest.graph("prefill") is manifest.graphs[0]
    without = msgspec.structs.replace(manifest, graphs=manifest.graphs[::2])
    with pytest.raises(InputError, match=r"no step graph \(it has: prefill, prefill\)"):
        without.graph("step")
    with pytest.raises(InputError, match=r"no step graph \(it has: none\)"):
        msgspec.structs.replace(manifest, graphs=()).graph("step")


def test_a_backend_may_be_held_to_figures_of_its_own(raw: dict[str, Any]) -> None:
    """A state that grows by less than a byte a token does not grow."""
    own = {
        "max_abs_logit_error": None,
        "perplexity_ratio": 2.0,
        "mean_kl": 0.1,
        "top1_agreement": 0.5,
    }
    manifest = read(put(raw, "tolerances", {"native": own}))
    assert manifest.tolerance_of("native") == Tolerance(None, 2.0, 0.1, 0.5, 1.0)
    assert manifest.tolerance_of("executorch") is manifest.tolerance
