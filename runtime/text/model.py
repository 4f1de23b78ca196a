"""A bundle ready to write text: its tokenizer, a session, and the state between two calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers

from retnet_edge.runtime.backends.select import choose_backend, open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.packed import open_bundle
from retnet_edge.runtime.session.protocol import Session
from retnet_edge.runtime.text.generate import generate
from retnet_edge.runtime.text.sampling import Sampling
from retnet_edge.runtime.text.snapshot import Snapshot, load_snapshot, save_snapshot


class Model:
    """A bundle, its tokenizer and one sequence, whose state carries on from call to call.

    What `retnet_edge.load` returns. The state has the same size however long the text gets. One
    object is one sequence: `fork` it for another one. A second thread in the same object gets
    SessionBusyError, an InputError.
    """

    def __init__(
        self, bundle: Bundle, *, backend: str | None = None, threads: int | None = None
    ) -> None:
        """See `load` for the arguments. Raises InputError as `open_session` does."""
        self.bundle = bundle
        self.backend = choose_backend(bundle, backend)
        self.tokenizer: tokenizers.Tokenizer = bundle.tokenizer()
        self.session: Session = open_session(bundle, threads, self.backend)
        self._threads = threads

    def __repr__(self) -> str:
        return f"<Model {self.bundle.path} on {self.backend}, {self.position} tokens>"

    @property
    def position(self) -> int:
        """Number of tokens that the state has seen."""
        return self.session.position

    @property
    def state_bytes(self) -> int:
        """Bytes of the state."""
        return self.session.state_bytes

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        control_tokens: bool = True,
    ) -> Iterator[str]:
        """Continue the text so far, and `prompt`, by at most `max_tokens` tokens.

        Yields pieces of text as they are settled, and ends at the bundle's end of text or before
        one of the strings `stop`. The state has then seen the prompt and the text, and the
        next call goes on from there, wherever you `break` off; the repetition penalty counts all
        that the state has seen. control_tokens: whether the name of a control token in the prompt
        stands for the token; False for text that somebody else wrote. The other options are those
        of `Sampling`.

        Raises InputError, before anything is fed, for a prompt without tokens, max_tokens below 1,
        an empty stop string and a sampling option out of its range.
        """
        sampling = Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        return generate(
            self.session,
            self.tokenizer,
            prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            end_of_text=self.bundle.manifest.tokenizer.ends,
            control_tokens=control_tokens,
        )

    def reset(self) -> None:
        """Back to position 0 and the empty state."""
        self.session.reset()

    def snapshot(self) -> Snapshot:
        """A copy of the state, to `restore` later or in a fork."""
        return Snapshot.of(self.session)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot. Raises InputError where it is not of this bundle's shapes."""
        snapshot.restore(self.session)

    def save_state(self, path: str | Path) -> None:
        """Write the state to a file that `load_state` reads; whole or not at all.

        Raises InputError where the folder of `path` is none.
        """
        save_snapshot(self.snapshot(), self.bundle, path)

    def load_state(self, path: str | Path) -> None:
        """Go on from a state file of this bundle, made on any backend.

        Raises InputError, and leaves the state as it is, where the file is missing, was changed or
        belongs to another bundle.
        """
        self.restore(load_snapshot(path, self.bundle))

    def fork(self) -> Model:
        """A second sequence that has seen what this one has; both go on by themselves.

        It opens another session on the same bundle: weights that are mapped from disk are shared.
        """
        other = Model(self.bundle, backend=self.backend, threads=self._threads)
        other.restore(self.snapshot())
        return other


def load(path: str | Path, *, backend: str | None = None, threads: int | None = None) -> Model:
    """Open a bundle for generation: every hash checked, a session made, no torch needed.

    backend: "onnxruntime", "executorch" or "native", of those that the bundle has (None: its
    first). threads: how many compute (None: one a free core, at most 4). Raises InputError, one
    sentence that names the file, the value and what is allowed, for a bundle that does not open,
    a backend that it lacks or that is not installed, and threads below 1.
    """
    return Model(open_bundle(path), backend=backend, threads=threads)
