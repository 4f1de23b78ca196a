"""How public RetNets lay out what ours holds: exact rewritings, each one equation.

Letters: H heads, K key head dim, D d_model, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar

import msgspec
import torch
from torch import Tensor

from retnet_edge.config import MOST_WIDE, RetNetConfig
from retnet_edge.errors import InputError
from retnet_edge.importing.files import SourceWeights

Fields = TypeVar("Fields", bound=msgspec.Struct)


class Imported(NamedTuple):
    """A configuration of ours, and float32 weights under the names of `model.RetNet`."""

    config: RetNetConfig
    weights: dict[str, Tensor]


class EmbeddingAndHead(NamedTuple):
    """The table [V, D] that tokens are looked up in, and the head's [V, D], None where tied."""

    embedding: Tensor
    head: Tensor | None


def typed_fields(fields: dict[str, Any], kind: type[Fields], where: str) -> Fields:
    """The fields that `kind` names, its defaults being the source project's.

    Raises InputError naming the field and what is allowed.
    """
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {error}") from error


def require_fields(where: str, fields: msgspec.Struct, **wanted: Any) -> None:
    """Raise InputError for the first field that is not as our model computes."""
    for name, value in wanted.items():
        found = getattr(fields, name)
        if found != value:
            raise InputError(
                f"{where}: {name} is {found!r}; only {value!r} computes what a RetNet here does"
            )


def exact_quotient(where: str, name: str, value: float, parts: int) -> int:
    """`value` / `parts`, before a list is made as long as it says.

    Raises InputError where that is no positive whole number, or more than MOST_WIDE.
    """
    width = int(value) if math.isfinite(value) else 0
    if width != value or width <= 0 or parts <= 0 or width % parts:
        raise InputError(f"{where}: {name} is {value}, which {parts} heads do not divide")
    if (share := width // parts) > MOST_WIDE:
        raise InputError(f"{where}: {name} is {value}: {share} a head, where {MOST_WIDE} are most")
    return share


def half_split(weight: Tensor, heads: int) -> Tensor:
    """Rows of W_Q or W_K [H·K, D]: channel pairs (2i, 2i+1) become (i, i + K/2).

    Queries and keys are permuted alike, so q·k is what it was.
    """
    rows, d_model = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, d_model)
    return pairs.transpose(1, 2).reshape(rows, d_model)


def repeat_heads(weight: Tensor, groups: int, times: int) -> Tensor:
    """Rows [G·W, D] of G shared heads -> [G·times·W, D], each head `times` times in a row."""
    rows, d_model = weight.shape
    shared = weight.reshape(groups, rows // groups, d_model)
    return shared.repeat_interleave(times, dim=0).reshape(rows * times, d_model)


def fold_embedding(
    embedding: Tensor, head: Tensor | None, *, scale: float, norm: Tensor | None, eps: float
) -> EmbeddingAndHead:
    """Fold what happens between look-up and first block into the table [V, D].

    x_t = norm ⊙ (s·E_t) / sqrt(mean((s·E_t)²) + eps) depends on the token t alone, so it is a
    table as well. A head that was tied to E keeps E, and is tied no more.
    """
    if scale == 1.0 and norm is None:
        return EmbeddingAndHead(embedding, head)
    table = embedding.double() * scale
    if norm is not None:
        table = table * torch.rsqrt(table.square().mean(-1, keepdim=True) + eps) * norm
    return EmbeddingAndHead(table.float(), embedding if head is None else head)


def tied_head(weights: SourceWeights, name: str, embedding: Tensor, tied: bool) -> Tensor | None:
    """The head [V, D], or None where it is the embedding.

    Raises InputError where a head that the configuration ties is another matrix.
    """
    if tied and name not in weights:
        return None
    head = weights.take(name, *embedding.shape)
    if not tied:
        return head
    if not torch.equal(head, embedding):
        raise InputError(
            f"{weights.where}: the configuration ties {name} to the embedding, but they differ"
        )
    return None
