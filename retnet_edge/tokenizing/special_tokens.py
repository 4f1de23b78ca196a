"""Which tokens end, begin and pad a text: what the files beside a tokenizer.json say.

transformers keeps them in four places, which need not agree. Of these the first counts that names a
token marked special; where none does, the first that names any (docs/decisions/0054):

    generation_config.json   eos_token_id, one or several, bos_token_id, pad_token_id
    config.json              the same
    tokenizer_config.json    eos_token, bos_token, pad_token: texts
    special_tokens_map.json  the same

and last, for the end, the token `<|endoftext|>`. A class of models writes its own default ids into
config.json, whatever tokenizer comes with it, so an id alone is not trusted; in a
generation_config.json that was not made from config.json, it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from tokenizers import Tokenizer

from retnet_edge.errors import InputError
from retnet_edge.files import read_input

END_OF_TEXT = "<|endoftext|>"
GENERATION_FILE = "generation_config.json"

CONFIG_FILE = "config.json"

_ID_FILES = (GENERATION_FILE, CONFIG_FILE)
_NAME_FILES = ("tokenizer_config.json", "special_tokens_map.json")
_LARGEST_FILE = 64 << 20  # bytes; tokenizer_config.json repeats every added token


class SpecialTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Token ids that stand for no text.

    ends: those at which a text ends, the first of which stands between documents. begin: what a
    text begins with, padding: what fills a batch up; None where there is none.
    """

    ends: tuple[int, ...] = ()
    begin: int | None = None
    padding: int | None = None

    @property
    def end(self) -> int | None:
        """The id between documents, None where no token ends a text."""
        return self.ends[0] if self.ends else None


def find_special_tokens(
    folder: Path, tokenizer: Tokenizer, say: Callable[[str], None] = lambda text: None
) -> SpecialTokens:
    """What the files in `folder`, that of tokenizer.json, say of the tokenizer's tokens.

    say: told of ids and names that the tokenizer does not have, which are left out. Raises
    InputError naming a file that cannot be read, or a field that is neither an id nor a text.
    """
    marked = {
        token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special
    }

    def chosen(role: str, default: str | None = None) -> tuple[int, ...]:
        found = list(_named(folder, tokenizer, role, say))
        last = None if default is None else tokenizer.token_to_id(default)
        if last is not None:
            found.append(_Named((last,)))
        sure = [ids for ids, stated in found if stated or marked.intersection(ids)]
        return next(iter(sure), found[0].ids if found else ())

    begin, padding = chosen("bos"), chosen("pad")
    return SpecialTokens(
        ends=chosen("eos", END_OF_TEXT),
        begin=begin[0] if begin else None,
        padding=padding[0] if padding else None,
    )


def write_special_tokens(folder: Path, special: SpecialTokens, tokenizer: Tokenizer) -> None:
    """Leave in `folder` what `find_special_tokens` reads there as `special`.

    That is generation_config.json, and no such file where `<|endoftext|>` alone ends a text, which
    needs none to be found.
    """
    path = folder / GENERATION_FILE
    end = tokenizer.token_to_id(END_OF_TEXT)
    if special == SpecialTokens(ends=() if end is None else (end,)):
        path.unlink(missing_ok=True)
        return
    fields = generation_fields(special)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n")


def generation_fields(special: SpecialTokens) -> dict[str, int | list[int]]:
    """The tokens under transformers' names; one end is a number, several are a list."""
    ends = list(special.ends)
    fields = {
        "bos_token_id": special.begin,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": special.padding,
    }
    return {name: value for name, value in fields.items() if value is not None}


class _Named(NamedTuple):
    """Ids that a file names; stated: by somebody, and not by a class of models."""

    ids: tuple[int, ...]
    stated: bool = False


def _named(
    folder: Path, tokenizer: Tokenizer, role: str, say: Callable[[str], None]
) -> Iterator[_Named]:
    """What each file names as `role` (eos, bos or pad), by their rank, where it names any."""
    for file in _ID_FILES:
        field, path = f"{role}_token_id", folder / file
        fields = _fields(path)
        value = fields.get(field)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(token) is not int for token in ids):
            raise InputError(
                f"{path}: {field} is {value!r}; it is the number of a token, or a list"
            )
        known = [t for t in dict.fromkeys(ids) if 0 <= t < 2**31 and tokenizer.id_to_token(t)]
        if unknown := [token for token in ids if token not in known]:
            say(f"{path}: {field} {unknown[0]} is no token of the tokenizer: left out")
        if known:
            stated = file == GENERATION_FILE and not fields.get("from_model_config")
            yield _Named(tuple(known), stated)
    for file in _NAME_FILES:
        field, path = f"{role}_token", folder / file
        value = _fields(path).get(field)
        name = value.get("content") if isinstance(value, dict) else value
        if name is None:
            continue
        if not isinstance(name, str):
            raise InputError(f"{path}: {field} is {value!r}; it is the text of a token")
        token = tokenizer.token_to_id(name)
        if token is None:
            say(f"{path}: {field} {name!r} is no token of the tokenizer: left out")
        else:
            yield _Named((token,))


def _fields(path: Path) -> dict[str, Any]:
    """The object in a file, empty where there is no file.

    A config.json that is none is somebody else's, or refused by who reads the model.
    """
    if not os.path.lexists(path):
        return {}
    raw = read_input(path, _LARGEST_FILE, "such a file")
    try:
        fields = msgspec.json.decode(raw, type=_Fields)
    except (ValueError, RecursionError) as error:
        if path.name == CONFIG_FILE:
            return {}
        kind = "holds no JSON object" if isinstance(error, msgspec.ValidationError) else "not JSON"
        raise InputError(f"{path}: {kind}: {error}") from error
    return msgspec.structs.asdict(fields)


class _Fields(msgspec.Struct, rename={"from_model_config": "_from_model_config"}):
    """What is looked for in all these files; of the rest no objects are made."""

    eos_token_id: Any = None
    bos_token_id: Any = None
    pad_token_id: Any = None
    eos_token: Any = None
    bos_token: Any = None
    pad_token: Any = None
    from_model_config: Any = None
