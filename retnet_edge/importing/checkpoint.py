"""`retnet-edge import`: another project's RetNet checkpoint becomes one of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from tokenizers import Tokenizer
from torch import Tensor

from retnet_edge.atomic import check_target, new_folder
from retnet_edge.config import RetNetConfig, checked_config
from retnet_edge.errors import InputError
from retnet_edge.importing.files import (
    CONFIG_FILE,
    SourceWeights,
    read_fields,
    read_source_weights,
    source_folder,
)
from retnet_edge.importing.fla import import_fla
from retnet_edge.importing.layout import Imported
from retnet_edge.importing.torchscale import import_syncdoth, import_torchscale
from retnet_edge.model.checkpoint import TOKENIZER_FILE, check_tokens_fit, write_checkpoint
from retnet_edge.model.retnet import RetNet
from retnet_edge.progress import working
from retnet_edge.tokenizer import load_tokenizer, used_vocabulary
from retnet_edge.tokenizing.special_tokens import find_special_tokens

PADDED_TO = 1024
WRITTEN_A_SECOND = 3e8  # bytes, to the disk itself, roughly

FORMATS: dict[str, Callable[[dict[str, Any], SourceWeights, str], Imported]] = {
    "torchscale": import_torchscale,
    "fla": import_fla,
    "syncdoth": import_syncdoth,
}


def import_checkpoint(
    source: str | Path,
    out: str | Path,
    *,
    source_format: str = "auto",
    tokenizer: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the RetNet in `source`, a folder or a hub id, as a checkpoint directory `out`.

    `source_format` is a key of FORMATS, or "auto": the names of the weights tell. `tokenizer` is a
    tokenizer.json for a source that has none. Weights are stored in float32. Raises InputError
    naming what is unknown, missing or does not fit; nothing is written then. Rows that pad the
    vocabulary are left out, and the tokens at which a text ends are taken along.
    """
    folder = source_folder(str(source))
    out = Path(out)
    check_target(out)
    tokenizer_file = folder / TOKENIZER_FILE if tokenizer is None else Path(tokenizer)
    if tokenizer is None and not tokenizer_file.is_file():
        raise InputError(f"{folder}: has no {TOKENIZER_FILE}; name one with --tokenizer")
    words = load_tokenizer(tokenizer_file)
    fields = read_fields(folder)
    weights = read_source_weights(folder)
    if source_format == "auto":
        source_format = detect_format(weights)
    if source_format not in FORMATS:
        raise InputError(f"unknown format {source_format!r}; known: auto, {', '.join(FORMATS)}")
    config, tensors = FORMATS[source_format](fields, weights, str(folder / CONFIG_FILE))
    weights.finish()
    config = checked_config(config, folder / CONFIG_FILE)
    check_tokens_fit(words, config.vocab_size, tokenizer_file)
    special = find_special_tokens(folder, words, say)
    if tokenizer is not None and not special.ends:
        special = find_special_tokens(tokenizer_file.parent, words, say)
    config, tensors, cut = without_padding(Imported(config, tensors), words, tokenizer_file)
    with torch.device("meta"):
        model = RetNet(config)
    model.load_state_dict(tensors, strict=not config.tie_embeddings, assign=True)
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    parameters = sum(parameter.numel() for parameter in model.parameters())
    seconds = parameters * torch.float32.itemsize / WRITTEN_A_SECOND
    with working(f"writing {out}", seconds), new_folder(out) as target:
        write_checkpoint(target, model, words, special=special)
    if cut:
        say(f"left out {cut} rows of the vocabulary, whose ids are no tokens")
    ends = ", ".join(repr(words.id_to_token(token)) for token in special.ends)
    say(f"a text ends at {ends}" if ends else "no token ends a text: none is named")
    say(
        f"{source_format}: {parameters:,} parameters, {config.layers} layers of {config.heads} "
        f"heads ({config.key_head_dim} × {config.value_head_dim}), vocabulary {config.vocab_size}"
    )
    return out


class _Cut(NamedTuple):
    """What an import is without its padding, and how many rows that were."""

    config: RetNetConfig
    weights: dict[str, Tensor]
    rows: int


def without_padding(found: Imported, tokenizer: Tokenizer, where: Path) -> _Cut:
    """Leave out the last rows of embedding and head, of ids that the tokenizer does not have.

    A vocabulary is padded to a multiple of a number such as 64, 256 or 1,024, or to a power of two,
    for the speed of a GPU; what stands in these rows was never trained, and could be drawn. Raises
    InputError for more rows than any of these, of which the tokenizer is another model's.
    """
    config, weights = found
    used, rows = used_vocabulary(tokenizer), config.vocab_size
    most = max(-(-used // PADDED_TO) * PADDED_TO, 1 << max(used - 1, 0).bit_length())
    if not 0 < used <= rows <= most:
        raise InputError(
            f"{where}: has ids up to {used - 1} where the model has a vocabulary of {rows}; a "
            f"padded one has at most {most}"
        )
    if used == rows:
        return _Cut(config, weights, 0)
    shorter: dict[str, Tensor] = {
        name: weights[name][:used].clone()
        for name in ("embedding.weight", "head.weight")
        if name in weights
    }
    config = msgspec.structs.replace(config, vocab_size=used)
    return _Cut(config, {**weights, **shorter}, rows - used)


def detect_format(weights: SourceWeights) -> str:
    """The project whose names the weights carry. Raises InputError where none is known."""
    names = weights.names()
    if not names:
        raise InputError(f"{weights.where}: holds no weights at all")
    if "model.embeddings.weight" in weights:
        return "fla"
    if any(".retention.q_proj." in name for name in names):
        return "syncdoth" if "model.embed_tokens.weight" in weights else "torchscale"
    raise InputError(
        f"{weights.where}: not the names of a RetNet of {', '.join(FORMATS)}; the first weight is "
        f"{names[0]}"
    )
