"""Programs that ExecuTorch must not see: judged alone, never loaded."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

pytest.importorskip("executorch")

import executorch_bundles

from retnet_edge.errors import InputError
from retnet_edge.runtime.backends.executorch.checked import check_program
from retnet_edge.runtime.backends.executorch.flatbuffer import DamagedError, Reader, schema
from retnet_edge.runtime.backends.executorch.program import load_program
from retnet_edge.runtime.backends.executorch.schemas import PROGRAM, XNN_GRAPH
from retnet_edge.runtime.backends.executorch.xnn_graph import output_shape

both = executorch_bundles.both
int8 = executorch_bundles.int8
WORDS = (0, 1, 0x7F, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


class Parts:
    """A program's bytes, and where its plan and the graph for XNNPACK lie in them."""

    def __init__(self, path: Path) -> None:
        self.raw = path.read_bytes()
        size, base = struct.unpack_from("<QQ", self.raw, 16)
        program = Reader(memoryview(self.raw)[:size], PROGRAM).root("Program", b"ET12")
        self.plan = program["execution_plan"][0]
        where = program["segments"][self.plan["delegates"][0]["processed"]["index"]]
        start = base + where["offset"]
        begin, length = struct.unpack_from("<II", self.raw, start + 10)
        self.spans = (range(size), range(start, start + begin + length))
        graph = memoryview(self.raw)[start + begin : start + begin + length]
        self.graph = Reader(graph, XNN_GRAPH).root("XNNGraph", b"XN01")

    def with_vector(self, old: Sequence[int], new: Sequence[int], code: str = "i") -> bytes:
        """The bytes with the first such list of numbers replaced."""
        before, after = (struct.pack(f"<I{len(v)}{code}", len(v), *v) for v in (old, new))
        assert before in self.raw
        assert len(before) == len(after)
        return self.raw.replace(before, after, 1)

    def call(self, number: int) -> list[int]:
        return list(self.plan["chains"][0]["instructions"][number]["instr_args"]["args"])


@pytest.fixture(scope="module")
def step(both: Path) -> Parts:
    return Parts(both / "step.pte")


def header(field: int, value: int) -> Callable[[Parts], bytes]:
    def change(step: Parts) -> bytes:
        raw = bytearray(step.raw)
        struct.pack_into("<Q", raw, 16 + 8 * field, value)
        return bytes(raw)

    return change


def argument(place: int, value: int, call: int = 0) -> Callable[[Parts], bytes]:
    def change(step: Parts) -> bytes:
        args = step.call(call)
        return step.with_vector(args, [*args[:place], value, *args[place + 1 :]])

    return change


def result_is_constant(step: Parts) -> bytes:
    args = step.call(0)
    return step.with_vector(args, [*args[:-2], 0, 0])


def output_is_no_tensor(step: Parts) -> bytes:
    outputs = step.plan["outputs"]
    number = next(n for n, v in enumerate(step.plan["values"]) if v["val"]["type"] == "Int")
    return step.with_vector(outputs, [number, *outputs[1:]])


def larger_constant(step: Parts) -> bytes:
    sizes = step.plan["values"][0]["val"]["sizes"]
    return step.with_vector(sizes, [1 << 20, *sizes[1:]])


def memory(size: int) -> Callable[[Parts], bytes]:
    def change(step: Parts) -> bytes:
        return step.with_vector(step.plan["non_const_buffer_sizes"], (0, size), "q")

    return change


def name(old: bytes, new: bytes) -> Callable[[Parts], bytes]:
    def change(step: Parts) -> bytes:
        assert old in step.raw
        return step.raw.replace(old, new, 1)

    return change


def no_permutation(step: Parts) -> bytes:
    nodes = [node["xnode_union"] for node in step.graph["xnodes"]]
    order = next(node["perm"] for node in nodes if node["type"] == "StaticTranspose")
    return step.with_vector(order, [*order[:-1], 7], "I")


def larger_weight(step: Parts) -> bytes:
    values = [value["xvalue_union"] for value in step.graph["xvalues"]]
    weight = next(value for value in values if value["constant_buffer_idx"])
    return step.with_vector(weight["dims"], [weight["dims"][0] << 12, weight["dims"][1]], "I")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda step: step.raw[:20], "bytes are too few"),
        (lambda step: step.raw[:8] + b"none" + step.raw[12:], "no extended header"),
        (lambda step: step.raw[:4] + b"ET99" + step.raw[8:], "kind ET12"),
        (header(0, 1 << 40), "parts beyond"),
        (header(1, 1 << 63), "parts beyond"),
        (header(2, 1 << 63), "parts beyond"),
        (header(0, 40), "offset leads"),
        (argument(1, 1 << 20), "no value 1048576"),
        (argument(1, -1), "no value -1"),
        (argument(2, 0), "a Tensor for a int"),
        (result_is_constant, "writes into what is constant"),
        (output_is_no_tensor, "outputs that are no tensors"),
        (larger_constant, "beyond its data"),
        (memory(8), "beyond its data"),
        (memory(1 << 40), "memory plan"),
        (memory(-1), "memory plan"),
        (name(b"aten::embedding", b"aten::nothing_!"), "operator that nobody knows"),
        (name(b"aten::embedding", b"aten::embeddin\xff"), "not UTF-8"),
        (name(b"XnnpackBackend", b"OtherpkBackend"), "none of XNNPACK's"),
        (name(b"XH00", b"XH99"), "within its segment"),
        (name(b"XN01", b"XN77"), "another kind"),
        (no_permutation, "StaticTranspose"),
        (larger_weight, "larger than its data"),
    ],
)
def test_a_program_whose_parts_do_not_fit_is_refused(
    change: Callable[[Parts], bytes], said: str, step: Parts, tmp_path: Path
) -> None:
    path = tmp_path / "step.pte"
    path.write_bytes(change(step))
    with pytest.raises(DamagedError, match=said):
        check_program(path)
    refused = r"step\.pte: ExecuTorch [\d.]+ cannot load the program, which version 1\.0 made: "
    with pytest.raises(InputError, match=refused):
        load_program(path, "1.0")


def test_whole_programs_pass(both: Path, int8: Path) -> None:
    for folder in (both, int8):
        for file in ("step.pte", "prefill.pte"):
            check_program(folder / file)


def test_any_word_is_judged(step: Parts, tmp_path: Path) -> None:
    """Whatever stands there: taken or refused, and nothing else raised."""
    rng, path, refused = random.Random(0), tmp_path / "step.pte", 0
    for number in range(400):
        span = step.spans[number % 2]
        raw = bytearray(step.raw)
        struct.pack_into("<I", raw, rng.randrange(span.start // 4, span.stop // 4) * 4,
                         rng.choice(WORDS))  # fmt: skip
        path.write_bytes(raw)
        try:
            check_program(path)
        except DamagedError:
            refused += 1
    assert refused > 100


def test_offsets_that_lead_to_one_place_are_counted() -> None:
    tables = schema("Root items:[Leaf]\nLeaf text:str")
    # 4,000 offsets to one leaf, whose text has 1,000 bytes
    leaf = struct.pack("<HHHHiI", 6, 8, 4, 0, 8, 4) + struct.pack("<I", 1000) + b"x" * 1000 + b"\0"
    many = 4000
    head = struct.pack("<I4sHHHHiI", 16, b"TEST", 6, 8, 4, 0, 8, 4) + struct.pack("<I", many)
    at = len(head) + 4 * many + 8  # the leaf, behind its list of fields
    offsets = b"".join(struct.pack("<I", at - len(head) - 4 * n) for n in range(many))
    with pytest.raises(DamagedError, match="over and over"):
        Reader(memoryview(head + offsets + leaf), tables).root("Root", b"TEST")
    few = struct.pack("<I", 2).join(head.split(struct.pack("<I", many)))
    found = Reader(memoryview(few + offsets + leaf), tables).root("Root", b"TEST")
    assert [item["text"] for item in found["items"]] == ["x" * 1000] * 2


@pytest.mark.parametrize(
    ("kind", "node", "inputs", "declared", "found"),
    [
        ("Add", {}, [(2, 1, 3), (4, 1)], (), (2, 4, 3)),
        ("Add", {}, [(2, 3), (4, 3)], (), None),
        ("Sigmoid", {}, [(2, 3)], (), (2, 3)),
        ("FullyConnected", {}, [(2, 3), (5, 3), (5,)], (1, 2, 5), (1, 2, 5)),
        ("FullyConnected", {}, [(2, 3), (5, 4)], (2, 5), None),
        ("FullyConnected", {}, [(2, 3), (5, 3), (4,)], (2, 5), None),
        ("BatchMatrixMultiply", {}, [(2, 1, 3), (2, 3, 4)], (), (2, 1, 4)),
        ("BatchMatrixMultiply", {}, [(2, 1, 3), (2, 4, 4)], (), None),
        ("GlobalAvgPooling2d", {}, [(1, 2, 3, 4)], (), (1, 1, 1, 4)),
        ("StaticTranspose", {"perm": (1, 0), "num_dims": 2}, [(2, 3)], (), (3, 2)),
        ("StaticTranspose", {"perm": (1, 7), "num_dims": 2}, [(2, 3)], (), None),
        ("StaticReshape", {"new_shape": (3, 0), "num_dims": 2}, [(2, 3)], (), (3, 2)),
        ("StaticReshape", {"new_shape": (5, 0), "num_dims": 2}, [(2, 3)], (), None),
        (
            *("StaticSlice", {"offsets": (0, 1), "sizes": (2, 2), "num_dims": 2}),
            *([(2, 3)], (), (2, 2)),
        ),
        (
            *("StaticSlice", {"offsets": (0, 2), "sizes": (2, 2), "num_dims": 2}),
            *([(2, 3)], (), None),
        ),
        ("Concatenate2", {"axis": 1}, [(2, 3), (2, 4)], (), (2, 7)),
        ("Concatenate2", {"axis": 1}, [(2, 3), (3, 4)], (), None),
        ("Concatenate2", {"axis": 9}, [(2, 3), (2, 4)], (), None),
    ],
)
def test_shapes_of_nodes(
    kind: str, node: dict[str, object], inputs: list[tuple[int, ...]], declared: tuple[int, ...],
    found: tuple[int, ...] | None,
) -> None:  # fmt: skip
    assert output_shape(kind, node, inputs, declared) == found
