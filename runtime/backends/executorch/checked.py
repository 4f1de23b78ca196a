"""Judging an ExecuTorch program before ExecuTorch sees it (docs/decisions/0063).

ExecuTorch checks much of what it loads, but some of a program's numbers it takes as they stand: a
damaged one ends the process. So a program is taken where all that it says fits together, and where
it does nothing that an export of retnet-edge does not do.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import torch

from retnet_edge.files import open_regular
from retnet_edge.runtime.backends.executorch.flatbuffer import (
    MOST_BYTES,
    TYPE,
    DamagedError,
    Reader,
    Table,
)
from retnet_edge.runtime.backends.executorch.schemas import PROGRAM
from retnet_edge.runtime.backends.executorch.xnn_graph import Argument, check_graph

_HEADER = struct.Struct("<4sIQQQ")
_HEADER_AT = 8
METHOD = "forward"
# bytes of an element, by ExecuTorch's ScalarType
_BYTES = {0: 1, 1: 1, 2: 2, 3: 4, 4: 8, 5: 2, 6: 4, 7: 8, 11: 1, 15: 2}
_TO_XNN = {6: 1, 5: 2, 3: 12, 15: 14}
_MOST_DIMENSIONS = 16
_PLANNED_BYTES = 64 << 20
"""What a program may plan beside 4 times its file: a prompt's span takes more than a step."""
_OWN_SCHEMAS = {  # what torch does not know
    "dim_order_ops::_to_dim_order_copy.out": (
        *(("Tensor", False), ("bool", False), ("List[int]", True), ("Tensor", False)),
    )
}
_LISTS = {"IntList": "Int", "TensorList": "Tensor", "OptionalTensorList": "Tensor"}
_KINDS = {
    "Tensor": ("Tensor",),
    "int": ("Int",),
    "number": ("Int", "Double", "Bool"),
    "float": ("Double",),
    "bool": ("Bool",),
    "List[int]": ("IntList",),
    "str": ("String",),
    "List[Tensor]": ("TensorList",),
}


def check_program(path: Path) -> None:
    """Raises DamagedError where the program at `path` is damaged, or none that an export writes.

    Takes some 20 ms for the program of edge-15m; of its weights nothing is read. InputError where
    it is no regular file.
    """
    with open_regular(path) as file:
        _Program(file).check()


class _Program:
    """One file: its segments, and what lies in them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._segments: list[tuple[int, int]] = []  # first byte in the file, bytes
        self._constants: list[tuple[int, int]] = []  # the same, up to the segment's end
        self._named: dict[str, int] = {}

    def check(self) -> None:
        """The whole file. Raises DamagedError."""
        magic, length, size, base, segments = _HEADER.unpack(self._read(_HEADER_AT, _HEADER.size))
        if magic != b"eh00" or length < _HEADER.size:
            raise DamagedError("it has no extended header")
        if size > base or base > self._size or segments > self._size - base:
            raise DamagedError(f"its header names parts beyond the file's {self._size} bytes")
        if size > MOST_BYTES:
            raise DamagedError(f"its plan has {size} bytes where {MOST_BYTES} are the most")
        program = Reader(memoryview(self._read(0, size)), PROGRAM).root("Program", b"ET12")
        for name in ("constant_buffer", "backend_delegate_data", "mutable_data_segments"):
            if program[name]:
                raise DamagedError(f"it has a {name}, which no export of retnet-edge writes")
        for segment in program["segments"] or []:
            if segment["offset"] > segments or segment["size"] > segments - segment["offset"]:
                raise DamagedError("one of its segments lies beyond the file")
            self._segments.append((base + segment["offset"], segment["size"]))
        if (offsets := program["constant_segment"]) is not None and offsets["offsets"]:
            start, size = self._segment(offsets["segment_index"])
            for offset in offsets["offsets"]:
                if offset > size:
                    raise DamagedError("one of its constants lies beyond its segment")
                self._constants.append((start + offset, size - offset))
        for entry in program["named_data"] or []:
            if entry["key"] is None or entry["key"] in self._named:
                raise DamagedError("its named data have no name, or one twice")
            self._named[entry["key"]] = self._segment(entry["segment_index"])[1]
        names = [plan["name"] for plan in program["execution_plan"] or []]
        if METHOD not in names or None in names or len(set(names)) != len(names):
            raise DamagedError(f"it has no method {METHOD}, or one twice")
        for plan in program["execution_plan"]:
            _Plan(plan, self._constants, self._size).check(self._graph)

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        found = self._file.read(size)
        if len(found) != size:
            raise DamagedError(f"its {self._size} bytes are too few")
        return found

    def _segment(self, index: int) -> tuple[int, int]:
        if index >= len(self._segments):
            raise DamagedError(f"it has no segment {index}")
        return self._segments[index]

    def _graph(self, delegate: Table, arguments: Sequence[Argument]) -> set[int]:
        """The places among the arguments of a delegate's call that it writes."""
        where = delegate["processed"]
        if delegate["id"] != "XnnpackBackend" or where is None or where["location"] != 1:
            raise DamagedError("it has a delegate that is none of XNNPACK's")
        if delegate["compile_specs"]:
            raise DamagedError("it has a delegate with options, which no export writes")
        start, size = self._segment(where["index"])
        return check_graph(
            lambda offset, count: self._read(start + offset, count), size, self._named, arguments
        )


class _Plan:
    """One method: its values, and the instructions that compute with them."""

    def __init__(self, plan: Table, constants: list[tuple[int, int]], file_size: int) -> None:
        self._plan = plan
        self._constants = constants
        self._file_size = file_size
        self._values: list[Table] = []

    def check(self, graph: Callable[[Table, Sequence[Argument]], set[int]]) -> None:
        """graph: `_Program._graph`. Raises DamagedError."""
        plan = self._plan
        sizes = plan["non_const_buffer_sizes"] or ()
        most = 4 * self._file_size + _PLANNED_BYTES
        if plan["non_const_buffer_device"] or min(sizes, default=0) < 0 or sum(sizes) > most:
            raise DamagedError(f"its memory plan takes other memory than {most} bytes of this CPU")
        for value in plan["values"] or []:
            if value["val"] is None:
                raise DamagedError("it has a value of no kind")
            self._values.append(value["val"])
        for value in self._values:
            if value[TYPE] == "Tensor":
                self._check_tensor(value, sizes)
            elif value[TYPE] in _LISTS:
                self._check_list(value)
        inputs, outputs = plan["inputs"] or (), plan["outputs"] or ()
        if len(set(inputs)) != len(inputs) or any(not self._writable(n) for n in inputs):
            raise DamagedError("it has inputs that cannot be written to")
        found = [self._value(n)[TYPE] for n in outputs]
        if plan["name"] == METHOD and any(kind != "Tensor" for kind in found):
            raise DamagedError("it has outputs that are no tensors")
        operators = [_signature(operator) for operator in plan["operators"] or []]
        delegates = plan["delegates"] or []
        called: list[set[int] | None] = [None] * len(delegates)
        for chain in plan["chains"] or []:
            for instruction in chain["instructions"] or []:
                call = instruction["instr_args"]
                kind = None if call is None else call[TYPE]
                if kind == "KernelCall" and 0 <= call["op_index"] < len(operators):
                    self._check_call(operators[call["op_index"]], call["args"] or ())
                elif kind == "DelegateCall" and 0 <= call["delegate_index"] < len(delegates):
                    index, places = call["delegate_index"], call["args"] or ()
                    if called[index] is not None:
                        raise DamagedError("it calls a delegate twice, which no export does")
                    written = graph(delegates[index], [self._argument(n) for n in places])
                    if any(not self._writable(places[n]) for n in written):
                        raise DamagedError("a delegate of its writes into what is constant")
                    called[index] = written
                else:
                    raise DamagedError("it has an instruction that no export writes")
        if None in called:
            raise DamagedError("it has a delegate that nothing calls")

    def _value(self, index: int) -> Table:
        if not 0 <= index < len(self._values):
            raise DamagedError(f"it has no value {index}")
        return self._values[index]

    def _writable(self, index: int) -> bool:
        value = self._value(index)
        return bool(value[TYPE] == "Tensor" and value["data_buffer_idx"] == 0)

    def _argument(self, index: int) -> Argument:
        value = self._value(index)
        if value[TYPE] != "Tensor" or value["scalar_type"] not in _TO_XNN:
            raise DamagedError("it gives a delegate what is no tensor of numbers that it takes")
        # XNNPACK's graphs have a dimension where a number has none
        return _TO_XNN[value["scalar_type"]], value["sizes"] or (1,)

    def _check_tensor(self, tensor: Table, planned: Sequence[int]) -> None:
        sizes, order = tensor["sizes"] or (), tensor["dim_order"] or ()
        width = _BYTES.get(tensor["scalar_type"])
        if width is None or len(sizes) > _MOST_DIMENSIONS or min(sizes, default=0) < 0:
            raise DamagedError("it has a tensor of no known type or size")
        if sorted(order) != [*range(len(sizes))]:
            raise DamagedError("it has a tensor with no order of its dimensions")
        extra = tensor["extra_tensor_info"]
        odd = [tensor[name] for name in ("storage_offset", "layout", "shape_dynamism")]
        if any(odd) or (extra and (extra["location"] or extra["device_type"])):
            raise DamagedError("it has a tensor of a kind that no export writes")
        taken = math.prod(sizes) * width
        index, place = tensor["data_buffer_idx"], tensor["allocation_info"]
        if (index == 0) != (place is not None):
            raise DamagedError("it has a tensor without data, or with two kinds of it")
        if place is None:
            start, left = self._constants[index] if index < len(self._constants) else (0, -1)
        else:
            start = place["memory_offset_low"] | place["memory_offset_high"] << 32
            memory = place["memory_id"]
            left = planned[memory] - start if 0 < memory < len(planned) else -1
        if taken > left or start % width:
            raise DamagedError("it has a tensor that lies beyond its data")

    def _check_list(self, value: Table) -> None:
        """Lists whose items are values by their numbers."""
        for item in value["items"] or ():
            if item == -1 and value[TYPE] == "OptionalTensorList":
                continue
            if self._value(item)[TYPE] != _LISTS[value[TYPE]]:
                raise DamagedError("it has a list of values of another kind")

    def _check_call(self, signature: list[tuple[str, bool]], places: Sequence[int]) -> None:
        """A kernel takes its arguments as the kinds that it expects, without a question."""
        values = [self._value(n) for n in places]
        # the result stands behind the arguments once more
        if len(values) != len(signature) + 1 or places[-1] != places[-2]:
            raise DamagedError("it gives an operator more or fewer values than it takes")
        for value, (kind, optional) in zip(values, signature, strict=False):
            if value[TYPE] not in _KINDS.get(kind, ()) and not (optional and value[TYPE] == "Null"):
                raise DamagedError(f"it gives an operator a {value[TYPE]} for a {kind}")
        if not self._writable(places[-1]):
            raise DamagedError("an operator of its writes into what is constant")


def _signature(operator: Table) -> list[tuple[str, bool]]:
    """(kind, may be left out) of each argument of an operator, its one result among them."""
    name, overload = operator["name"] or "", operator["overload"] or ""
    known = _OWN_SCHEMAS.get(f"{name}.{overload}")
    if known is not None:
        return list(known)
    try:
        found = torch._C._get_schema(name, overload)
    except RuntimeError:
        raise DamagedError("it needs an operator that nobody knows") from None
    if [argument.is_out for argument in found.arguments].count(True) != 1:
        raise DamagedError(f"it needs {name}, which does not write one result")
    kinds = []
    for argument in found.arguments:
        text = str(argument.type)
        if optional := text.startswith("Optional["):
            text = text[len("Optional[") : -1]
        kinds.append((text, optional))
    return kinds
