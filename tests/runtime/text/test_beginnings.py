"""What a tokenizer adds at the start of a text is there, once, and never in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import Tiny
from tiny_bundle import train_tokenizer
from tokenizers import Tokenizer, processors

from retnet_edge.data.contexts import text_contexts
from retnet_edge.data.encoding import encode
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.text.generate import generate
from retnet_edge.runtime.text.sampling import Sampling
from retnet_edge.runtime.text.snapshot import Snapshot
from retnet_edge.tokenizing.texts import TextEncoder

BEGIN = 7


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Puts token 7 before every text, as a model's `<s>`."""
    made = train_tokenizer()
    name = made.id_to_token(BEGIN)
    made.post_processor = processors.TemplateProcessing(
        single=f"{name} $A", special_tokens=[(name, BEGIN)]
    )
    assert made.encode("The cat").ids.count(BEGIN) == 1
    assert BEGIN not in made.encode("The cat", add_special_tokens=False).ids
    return made


class Fed:
    """A session that notes what it is fed."""

    def __init__(self, tiny: Tiny) -> None:
        self.session = open_session(tiny.open(), threads=1)
        self.tokens: list[int] = []
        prefill, step = self.session.prefill, self.session.step

        def noted_prefill(tokens: Sequence[int]) -> np.ndarray:
            self.tokens += tokens
            return prefill(tokens)

        def noted_step(token: int) -> np.ndarray:
            self.tokens.append(token)
            return step(token)

        self.session.prefill = noted_prefill  # type: ignore[method-assign]
        self.session.step = noted_step  # type: ignore[method-assign]

    def prompt(self, tokenizer: Tokenizer, text: str, *, control_tokens: bool) -> list[int]:
        """The ids that a prompt is fed as, without what is answered."""
        before = len(self.tokens)
        options = {"max_tokens": 1, "sampling": Sampling(temperature=0)}
        list(generate(self.session, tokenizer, text, control_tokens=control_tokens, **options))  # type: ignore[arg-type]
        return self.tokens[before:-1]


@pytest.mark.parametrize("control_tokens", [True, False])
def test_only_the_first_prompt_of_a_text_begins_it(
    tokenizer: Tokenizer, tiny: Tiny, control_tokens: bool
) -> None:
    fed = Fed(tiny)
    plain = tokenizer.encode(" and a dog", add_special_tokens=False).ids
    asked = [fed.prompt(tokenizer, " and a dog", control_tokens=control_tokens) for _ in range(3)]
    assert asked == [[BEGIN, *plain], plain, plain]
    state = Snapshot.of(fed.session)
    fed.session.reset()
    assert fed.prompt(tokenizer, " and a dog", control_tokens=control_tokens)[0] == BEGIN
    other = Fed(tiny)
    state.restore(other.session)
    assert other.prompt(tokenizer, " and a dog", control_tokens=control_tokens) == plain


def test_each_document_begins_once(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """One that is cut in pieces, for the name of a control token in it, as well."""
    texts = ["The cat sat", "A dog saw the cat, and the cat the dog", "And so on"]
    controls = [tokenizer.id_to_token(tokenizer.encode("at", add_special_tokens=False).ids[0])]
    for encoder in (TextEncoder(tokenizer), TextEncoder(tokenizer, controls)):
        tokens, ends, _ = encode(texts, encoder, "uint16", 0)
        rows = [row.tolist() for row in np.split(tokens, ends[:-1])]
        assert [row[0] for row in rows] == [BEGIN] * 3
        assert [row.count(BEGIN) for row in rows] == [1] * 3
        assert [tokenizer.decode(row[1:-1]) for row in rows] == texts
    path = tmp_path / "text.txt"
    path.write_text("\n<|endoftext|>\n".join(texts))
    whole, _, _ = encode(texts, TextEncoder(tokenizer), "uint16", 0)
    (context,) = text_contexts(tokenizer, path, len(whole), len(whole))
    assert context.tolist() == whole.tolist()
