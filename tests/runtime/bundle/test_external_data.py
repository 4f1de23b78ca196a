"""The wire-format walker, against graphs that the onnx package wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from tiny_bundle import TinyModel, build_graph

from retnet_edge.errors import InputError
from retnet_edge.runtime.bundle.external_data import ExternalData, external_data


def tensor(name: str, location: str = "") -> TensorProto:
    made = numpy_helper.from_array(np.ones(3, dtype=np.float32), name)
    if location:
        set_external_data(made, location, offset=64, length=12)
        made.ClearField("raw_data")
    return made


def graph(*, nodes: list[onnx.NodeProto] | None = None, name: str = "g") -> onnx.GraphProto:
    return helper.make_graph(nodes or [], name, [], [])


def locations(model: onnx.ModelProto, path: Path) -> set[str]:
    path.write_bytes(model.SerializeToString())
    return {external.location for external in external_data(path)}


def sparse(location: str) -> onnx.SparseTensorProto:
    values, indices = tensor("v", location), numpy_helper.from_array(np.arange(3), "i")
    return helper.make_sparse_tensor(values, indices, [9])


def constant(value: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=value)


def test_a_graph_without_external_data(tmp_path: Path) -> None:
    model = helper.make_model(graph(nodes=[constant(tensor("inside"))]))
    assert locations(model, tmp_path / "m.onnx") == set()


def test_every_place_that_can_hold_a_tensor(tmp_path: Path) -> None:
    branch = graph(nodes=[constant(tensor("t", "if/then/constant"))])
    branch.initializer.append(tensor("t", "if/then/initializer"))
    many = helper.make_node("Many", [], ["m"], domain="x")
    many.attribute.append(helper.make_attribute("ts", [tensor("t", "tensors")]))
    many.attribute.append(helper.make_attribute("gs", [branch]))
    many.attribute.append(helper.make_attribute("s", sparse("sparse_attribute")))
    many.attribute.append(helper.make_attribute("ss", [sparse("sparse_attributes")]))
    main = graph(nodes=[many])
    main.initializer.append(tensor("t", "initializer"))
    main.sparse_initializer.append(sparse("sparse_initializer"))
    function = helper.make_function(
        "d", "F", [], [], [constant(tensor("t", "function"))], [helper.make_opsetid("", 18)]
    )
    function.attribute_proto.append(helper.make_attribute("a", tensor("t", "function_default")))
    model = helper.make_model(main, functions=[function])
    training = model.training_info.add()
    training.initialization.CopyFrom(graph(nodes=[constant(tensor("t", "initialization"))]))
    training.algorithm.CopyFrom(graph(nodes=[constant(tensor("t", "algorithm"))]))
    assert locations(model, tmp_path / "m.onnx") == {
        "if/then/constant",
        "if/then/initializer",
        "tensors",
        "sparse_attribute",
        "sparse_attributes",
        "initializer",
        "sparse_initializer",
        "function",
        "function_default",
        "initialization",
        "algorithm",
    }


def test_offset_and_length(tmp_path: Path) -> None:
    main = graph()
    main.initializer.append(tensor("t", "w.bin"))
    (tmp_path / "m.onnx").write_bytes(helper.make_model(main).SerializeToString())
    assert external_data(tmp_path / "m.onnx") == (ExternalData("t", "w.bin", 64, 12),)


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ([("offset", "0")], "names no location"),
        ([("location", "a"), ("location", "b")], "'location' twice"),
        ([("location", "a"), ("offset", "-5")], "offset or length is '-5'"),
        ([("location", "a"), ("length", "9" * 20)], "offset or length is '999"),
    ],
)
def test_external_data_that_makes_no_sense(
    keys: list[tuple[str, str]], complaint: str, tmp_path: Path
) -> None:
    bad = tensor("t")
    bad.data_location = TensorProto.EXTERNAL
    for key, value in keys:
        bad.external_data.add(key=key, value=value)
    main = graph()
    main.initializer.append(bad)
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(main).SerializeToString())
    with pytest.raises(InputError, match=complaint):
        external_data(path)


def test_nesting_is_capped(tmp_path: Path) -> None:
    def nested(levels: int) -> bytes:
        """A graph with a node with an attribute with a graph …, by hand: onnx refuses to."""
        inner = b""
        for _ in range(levels):
            for field in (6, 5, 1):  # attribute.g, node.attribute, graph.node
                inner = bytes([field << 3 | 2]) + length(len(inner)) + inner
        return bytes([7 << 3 | 2]) + length(len(inner)) + inner

    def length(size: int) -> bytes:
        out = b""
        while size > 127:
            out += bytes([size & 127 | 128])
            size >>= 7
        return out + bytes([size])

    path = tmp_path / "m.onnx"
    path.write_bytes(nested(30))
    assert external_data(path) == ()
    path.write_bytes(nested(5000))
    with pytest.raises(InputError, match="nested deeper than 100"):
        external_data(path)


@pytest.mark.parametrize("content", [b"", b"\x00", b"not a graph", b"\xff" * 40, b"\x08\x08"])
def test_what_is_not_a_graph(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputError, match="is truncated or not an ONNX graph"):
        external_data(tmp_path / "m.onnx")


WHOLE = build_graph(TinyModel(300), "step", growing=False)[0].SerializeToString()


def is_answered(path: Path) -> bool:
    """False where the walker refuses the file, in the words that it has for that."""
    try:
        external_data(path)
    except InputError as error:
        if "is truncated or not an ONNX graph" not in str(error):
            raise
        return False
    return True


@given(st.integers(1, len(WHOLE) - 1))
def test_a_truncated_graph_is_refused_or_lacks_whole_fields(
    tmp_path_factory: pytest.TempPathFactory, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.onnx"
    path.write_bytes(WHOLE[:size])
    if is_answered(path):  # cut exactly between two fields of the model, behind the graph
        onnx.load_from_string(WHOLE[:size])


@given(st.binary(max_size=200))
def test_any_bytes_end_in_an_answer(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.onnx"
    path.write_bytes(raw)
    is_answered(path)


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, up to 2 MiB of them."""
    size = len(content)
    return bytes([number << 3 | 2, size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + content


@pytest.mark.parametrize(
    "inside",
    [
        pytest.param(b"\x0a\x00" * 600_000, id="empty nodes"),
        pytest.param(b"\x5a\x00" * 600_000, id="empty inputs"),
        pytest.param(field(1, b"\x0a\x00" * 600_000), id="a node of nameless inputs"),
        pytest.param(field(1, field(5, field(8, b"\x00" * 1_200_000))), id="packed integers"),
        pytest.param(field(1, field(10, b"\x00" * 1_200_000)), id="a message that is not known"),
        pytest.param(field(11, field(2, field(1, field(2, b"\x0a\x00" * 600_000)))), id="a shape"),
    ],
)
def test_more_fields_than_a_graph_can_need(inside: bytes, tmp_path: Path) -> None:
    """A parser makes 50 to 1,000 bytes of each."""
    repeated = field(7, inside) + field(7, inside)  # parsers join them
    (tmp_path / "m.onnx").write_bytes(repeated)
    with pytest.raises(InputError, match=r"it has more than .* messages or .* fields"):
        external_data(tmp_path / "m.onnx")


def test_weights_inside_a_graph_are_one_field(tmp_path: Path) -> None:
    inside = field(7, field(5, field(9, b"\x00" * 1_900_000)))
    (tmp_path / "m.onnx").write_bytes(inside)
    assert external_data(tmp_path / "m.onnx") == ()
