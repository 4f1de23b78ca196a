"""The bundle's manifest: the one place where graphs, states, tokenizer and files are described.

The exporter writes it; the quantizer, the runtimes and the reports read it. Nothing that it holds
is written down a second time anywhere else.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

import msgspec

from retnet_edge.errors import InputError
from retnet_edge.files import FileEntry, Sha256

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
DIGEST_FIELD = "manifest_sha256"
_DEPTH = 32
_TOO_DEEP = f"its values are nested deeper than {_DEPTH}"

Count = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Version = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Dtype = Literal["float32", "float16", "int64", "int8", "uint8"]

Backend = Literal["onnxruntime", "executorch", "native"]

DTYPE_BYTES: dict[Dtype, int] = {"float32": 4, "float16": 2, "int64": 8, "int8": 1, "uint8": 1}


class _Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """Base of every record: immutable, and a key that the schema does not know is refused."""


class TensorSpec(_Frozen, frozen=True):
    """One input or output of a graph. A dimension is a number or the name of a dynamic axis."""

    name: Name
    dtype: Dtype
    shape: Annotated[tuple[Count | Name, ...], msgspec.Meta(max_length=8)]


class Delegation(_Frozen, frozen=True):
    """Where an ExecuTorch program's operators run.

    subgraphs: pieces that XNNPACK runs; delegated: operators in them; rest: how many of each
    operator run outside.
    """

    subgraphs: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
    delegated: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
    rest: dict[str, Count]

    @property
    def share(self) -> float:
        """Delegated operators of all."""
        return self.delegated / max(1, self.delegated + sum(self.rest.values()))


class GraphSpec(_Frozen, frozen=True):
    """One graph file of the step contract; `kind` "step" takes T = 1, "prefill" more.

    For ONNX Runtime, batch and a prefill's T are dynamic. An ExecuTorch program runs one sequence,
    and its prefill exactly the T of its `tokens`; a native plan, which is the same file for both
    kinds, runs one sequence and any T. planned_bytes: what an ExecuTorch program's own memory plan
    takes for inputs, outputs and what lies between (None: the file has no such plan).

    operators: of an ONNX graph, sorted, those outside ONNX itself with their domain. needs: the
    oldest ONNX Runtime that runs the graph ("onnxruntime 1.32").
    serves_step: a prefill graph that takes T = 1 as well, as fast as the step graph does, so that a
    session needs no other and holds the weights once.
    states_in_place: a next state may be written over the past one, in the same memory.
    """

    file: Name
    kind: Literal["step", "prefill"]
    backend: Backend
    inputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(max_length=1024)]
    outputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(max_length=1024)]
    external_data: tuple[Name, ...]
    operator_sets: dict[str, Version]
    delegation: Delegation | None = None
    planned_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**40)] | None = None
    operators: tuple[Name, ...] = ()
    needs: str | None = None
    serves_step: bool = False
    states_in_place: bool = False


class StateSpec(_Frozen, frozen=True):
    """One recurrent state: a graph's `input` becomes its `output` after every call.

    `shape` is [batch, heads, key_head_dim, value_head_dim] for retention, and
    [batch, heads, past, head_dim] (a named, growing axis) for the key-value baseline.
    """

    input: Name
    output: Name
    dtype: Dtype
    shape: Annotated[tuple[Count | Name, ...], msgspec.Meta(max_length=8)]

    @property
    def growing_axis(self) -> int | None:
        """Index of the axis that grows by one a token (None for a constant-size state)."""
        for axis, dim in enumerate(self.shape):
            if dim == "past":
                return axis
        return None

    def bytes_at(self, position: int) -> int:
        """Bytes that one sequence's state takes after `position` tokens."""
        total = DTYPE_BYTES[self.dtype]
        for dim in self.shape:
            total *= 1 if dim == "batch" else position if dim == "past" else int(dim)
        return total


class QuantizedTensor(_Frozen, frozen=True):
    """What a rule did to one weight matrix; `rule` is the pattern that matched."""

    weight: Name
    rule: Name
    scheme: Name
    shape: tuple[Count, ...]


class Quantization(_Frozen, frozen=True):
    """The recipe as applied. `recipe` is "fp32" and `tensors` is empty for an exported bundle."""

    recipe: Name
    tensors: tuple[QuantizedTensor, ...] = ()


class Tolerance(_Frozen, frozen=True):
    """What `verify` accepts, relative to the float64 reference. None: not judged."""

    max_abs_logit_error: float | None
    perplexity_ratio: float
    mean_kl: float
    top1_agreement: float
    memory_bytes_per_token: float = 1.0


class ModelSpec(_Frozen, frozen=True):
    """The model that the graphs compute; `config` is the checkpoint's config.json as it was."""

    kind: Literal["retnet", "transformer"]
    vocab_size: Count
    parameters: Count
    config: dict[str, Any]


class TokenizerSpec(_Frozen, frozen=True, omit_defaults=True):
    """The tokenizer's file and the ids that stand for no text.

    end_of_text: the id that ends a document (None: the model has none). Fields with a default are
    written where they have another value: other_ends are further ids at which generation ends,
    begin_of_text what a text begins with, padding what fills up a batch (None: nothing does).
    """

    file: Name
    end_of_text: TokenId | None
    other_ends: Annotated[tuple[TokenId, ...], msgspec.Meta(max_length=1024)] = ()
    begin_of_text: TokenId | None = None
    padding: TokenId | None = None

    @property
    def ends(self) -> tuple[int, ...]:
        """Every id at which generation ends."""
        first = () if self.end_of_text is None else (self.end_of_text,)
        return (*first, *self.other_ends)


class Provenance(_Frozen, frozen=True):
    """Where the bundle came from: hash of the checkpoint's weights, and versions of the tools."""

    checkpoint_sha256: Sha256
    versions: dict[str, str]


class Verification(_Frozen, frozen=True):
    """The verdict of the last `verify`: "unverified" until one ran and passed."""

    status: Literal["verified", "unverified"]
    reasons: tuple[str, ...] = ()
    report: str | None = None


NOT_VERIFIED = Verification("unverified", ("verify has not run",))


class Manifest(_Frozen, frozen=True):
    """The whole manifest (`manifest.json`).

    tolerances: of a backend that is held to other figures than `tolerance`.
    manifest_sha256: `digest` of the manifest itself; None in bundles of older versions, of which a
    changed digit cannot be told.
    """

    schema_version: int
    model: ModelSpec
    graphs: Annotated[tuple[GraphSpec, ...], msgspec.Meta(max_length=16)]
    states: Annotated[tuple[StateSpec, ...], msgspec.Meta(max_length=1024)]
    tokenizer: TokenizerSpec
    quantization: Quantization
    tolerance: Tolerance
    provenance: Provenance
    verification: Verification
    files: Annotated[dict[str, FileEntry], msgspec.Meta(max_length=256)]
    tolerances: dict[Backend, Tolerance] = {}
    manifest_sha256: Sha256 | None = None

    @property
    def backends(self) -> tuple[Backend, ...]:
        """The backends that the bundle has graphs for, in the order of the graphs."""
        return tuple(dict.fromkeys(graph.backend for graph in self.graphs))

    def tolerance_of(self, backend: Backend) -> Tolerance:
        """What `verify` accepts of a backend."""
        return self.tolerances.get(backend, self.tolerance)

    def files_of(self, backend: Backend) -> tuple[str, ...]:
        """The graph files of a backend and the weights that they read, each once."""
        graphs = [graph for graph in self.graphs if graph.backend == backend]
        names = [name for graph in graphs for name in (graph.file, *graph.external_data)]
        return tuple(dict.fromkeys(names))

    def graph_for(self, backend: Backend, kind: Literal["step", "prefill"]) -> GraphSpec | None:
        """The backend's graph of that kind, if the bundle has one."""
        for graph in self.graphs:
            if graph.backend == backend and graph.kind == kind:
                return graph
        return None

    def graph(self, kind: Literal["step", "prefill"]) -> GraphSpec:
        """The graph of that kind. Raises InputError where the bundle has none."""
        for graph in self.graphs:
            if graph.kind == kind:
                return graph
        kinds = ", ".join(g.kind for g in self.graphs) or "none"
        raise InputError(f"the bundle has no {kind} graph (it has: {kinds})")

    def state_bytes(self, position: int) -> int:
        """Bytes of all states of one sequence after `position` tokens."""
        return sum(state.bytes_at(position) for state in self.states)


def with_digest(manifest: Manifest) -> Manifest:
    """The manifest with its `manifest_sha256` made anew."""
    record = json.loads(msgspec.json.encode(manifest))
    return msgspec.structs.replace(manifest, manifest_sha256=digest(record))


def encode(manifest: Manifest) -> bytes:
    """The manifest as indented JSON, ending in a newline, with its digest."""
    return msgspec.json.format(msgspec.json.encode(with_digest(manifest)), indent=2) + b"\n"


def digest(record: dict[str, Any]) -> str:
    """SHA-256 (hex) of a manifest as parsed JSON, its own `manifest_sha256` left out.

    Of what stands in the file and not of what a version of the schema makes of it: UTF-8, keys
    sorted, no white space, numbers in their shortest form (`json.dumps` of Python).
    """
    rest = {name: value for name, value in record.items() if name != DIGEST_FIELD}
    return _canonical_sha256(rest)


def model_digest(manifest: Manifest) -> str:
    """SHA-256 (hex) of what the manifest, beside its files, says about what is computed.

    The model's kind, vocabulary and config (decays, angles, eps), the states, and the scheme of
    every quantized matrix.
    """
    model, quantization = manifest.model, manifest.quantization
    return _canonical_sha256(
        {
            "kind": model.kind,
            "vocab_size": model.vocab_size,
            "config": model.config,
            "states": [[s.input, s.output, s.dtype, list(s.shape)] for s in manifest.states],
            "schemes": [[t.weight, t.scheme] for t in quantization.tensors],
        }
    )


def _canonical_sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def decode(raw: bytes, where: str) -> Manifest:
    """Parse and validate, the digest included.

    Raises InputError naming `where`, the offending field and the rule.
    """
    try:
        text = raw.decode()
        version = msgspec.json.decode(text, type=dict[str, Any]).get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{where}: schema_version is {version!r}, this version of retnet-edge reads "
                f"{SCHEMA_VERSION}"
            )
        manifest = msgspec.json.decode(text, type=Manifest)
        record = json.loads(text, object_pairs_hook=_unique_keys)
        _check_depth(record)
    except RecursionError:  # of a parser, long before ours is asked
        raise InputError(f"{where}: not a valid manifest: {_TOO_DEEP}") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise _not_valid(where, error) from error
    if manifest.manifest_sha256 not in (None, found := digest(record)):
        raise InputError(
            f"{where} was changed since it was written: its SHA-256 is {found}; its "
            f"{DIGEST_FIELD} says {manifest.manifest_sha256}"
        )
    return manifest


def _not_valid(where: str, error: ValueError) -> InputError:
    if isinstance(error, InputError):
        return error
    if isinstance(error, UnicodeDecodeError):
        return InputError(
            f"{where}: not a valid manifest: byte {error.object[error.start]:#04x} at byte "
            f"{error.start} is not UTF-8"
        )
    return InputError(f"{where}: not a valid manifest: {error}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two equal keys, every reader would pick its own."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _check_depth(record: dict[str, Any]) -> None:
    """Everything that walks the record later may do so by recursion."""
    level: list[Any] = [record]
    for _ in range(_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)
