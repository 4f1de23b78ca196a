"""What the tokenizers library raises is one sentence; Ctrl-C stays what it is."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from retnet_edge.errors import InputError
from retnet_edge.tokenizing.library import calling


class PanicException(BaseException):
    """By name the class of the library's panics, which cannot be imported."""


def test_its_errors_are_bare_exceptions() -> None:
    with (
        pytest.raises(InputError, match=r"^a\.json: expected value at line 1") as caught,
        calling("a.json"),
    ):
        Tokenizer.from_str("x")
    assert type(caught.value.__cause__) is Exception


def test_a_panic_is_a_sentence() -> None:
    with pytest.raises(InputError, match=r"^a\.json: no luck today$"), calling("a.json"):
        raise PanicException("no luck\n  today")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, InputError("as it is")])
def test_what_is_not_the_library_s_passes(error: BaseException | type[BaseException]) -> None:
    with pytest.raises((KeyboardInterrupt, SystemExit, InputError)) as caught, calling("a.json"):
        raise error
    assert "a.json" not in str(caught.value)
