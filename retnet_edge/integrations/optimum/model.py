"""A bundle behind transformers' `generate()`, in the way of optimum's ORTModelForCausalLM.

That class feeds key-value caches whose shapes it works out from a list of model types, so a
recurrent state has no place in it. This one runs `retnet_edge.runtime`'s session instead, of any
bundle, quantized or not; torch holds the token ids and the logits only.

Letters: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from retnet_edge.errors import InputError
from retnet_edge.integrations.transformers.config import RetNetEdgeConfig
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.session.protocol import Session, State
from retnet_edge.tokenizer import padding_fields
from retnet_edge.tokenizing.special_tokens import SpecialTokens, generation_fields


@dataclass(frozen=True)
class SequenceState:
    """One sequence of a batch: its states, and how many tokens they have seen."""

    states: list[State]
    position: int


class BundleCache:
    """What generate() carries on: a `SequenceState` a sequence, and the input columns that were fed
    in.

    A forward pass makes a new cache and leaves the one it was given as it was.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, rows: Sequence[SequenceState], columns: int) -> None:
        """Hold the two as they are."""
        self.rows = list(rows)
        self.columns = columns

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns seen; transformers slices its inputs by it."""
        return self.columns

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row beam_idx[i] was (beam search)."""
        self.rows = [self.rows[i] for i in beam_idx.tolist()]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times, one after the other (several continuations of one prompt)."""
        self.rows = [row for row in self.rows for _ in range(repeats)]


class RetNetEdgeORTForCausalLM(GenerationMixin):
    """A bundle as a model for `generate()`: greedy, sampling, beam search, batches.

    The rows of a batch run one after another, as the session takes one sequence.
    """

    main_input_name = "input_ids"
    base_model_prefix = ""
    _is_stateful = True

    def __init__(self, bundle: Bundle, session: Session) -> None:
        """`from_pretrained` is the usual way."""
        self.bundle = bundle
        self.config = RetNetEdgeConfig(
            name_or_path=str(bundle.path),
            **{k: v for k, v in bundle.manifest.model.config.items() if k != "model_type"},
        )
        named = bundle.manifest.tokenizer
        special = SpecialTokens(ends=named.ends, begin=named.begin_of_text, padding=named.padding)
        self.generation_config = GenerationConfig(
            **generation_fields(special),
            **padding_fields(bundle.tokenizer(), bundle.manifest.model.vocab_size),
        )
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self._session = session
        self._held: SequenceState | None = None  # what the session stands at

    @classmethod
    def from_pretrained(
        cls, bundle: str | Path, *, threads: int | None = None, backend: str | None = None
    ) -> RetNetEdgeORTForCausalLM:
        """The bundle at a path; the two keywords are `open_session`'s.

        Raises InputError for a bundle that does not open, and for one of the Transformer baseline.
        """
        opened = Bundle.open(bundle)
        return cls(opened, open_session(opened, threads, backend))

    @classmethod
    def can_generate(cls) -> bool:
        """Always."""
        return True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `forward`."""
        return self.forward(*args, **kwargs)

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: BundleCache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Tokens [B, T] -> logits float32 [B, 1, vocab] after each row's last token, and the cache.

        `attention_mask` [B, T], or with the columns of the cache before it: a token where it is 0
        is treated as absent. Raises InputError for a row without a token, an id out of range and a
        mask or cache of another size.
        """
        batch, length = input_ids.shape
        if past_key_values is None:
            past_key_values = BundleCache([self._start()] * batch, 0)
        if not isinstance(past_key_values, BundleCache):
            raise InputError(
                f"past_key_values is a {type(past_key_values).__name__}, not a BundleCache"
            )
        if len(past_key_values.rows) != batch:
            raise InputError(
                f"past_key_values holds {len(past_key_values.rows)} rows; the input has {batch}"
            )
        columns = past_key_values.columns + length
        present = torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is not None:
            if attention_mask.shape not in ((batch, length), (batch, columns)):
                raise InputError(
                    f"attention_mask has shape {list(attention_mask.shape)}; allowed is "
                    f"[{batch}, {length}] or [{batch}, {columns}]"
                )
            present = attention_mask[:, -length:].bool()
        logits, rows = [], []
        for row, ids, kept in zip(past_key_values.rows, input_ids, present, strict=True):
            after, new = self._run(row, ids[kept].tolist())
            logits.append(after)
            rows.append(new)
        cache = BundleCache(rows, columns)
        out = CausalLMOutputWithPast(
            logits=torch.stack(logits)[:, None],
            past_key_values=None if use_cache is False else cache,
        )
        return out.to_tuple() if return_dict is False else out

    def _start(self) -> SequenceState:
        self._session.reset()
        self._held = SequenceState(self._session.states(), 0)
        return self._held

    def _run(self, row: SequenceState, tokens: list[int]) -> tuple[Tensor, SequenceState]:
        """The logits [vocab] after `tokens`, and the row that has seen them."""
        if row is not self._held:
            self._session.load_states(row.states, row.position)
        self._held = None
        session = self._session
        view = session.step(tokens[0]) if len(tokens) == 1 else session.prefill(tokens)
        logits = torch.from_numpy(view.copy())
        self._held = SequenceState(session.states(), session.position)
        return logits, self._held

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: BundleCache | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The columns that the cache has not seen."""
        seen = 0 if past_key_values is None else past_key_values.columns
        return {
            "input_ids": input_ids[:, seen:],
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
        }

    def get_experts_implementation(self) -> dict[str, str]:
        """None (transformers 5 asks every model that generates)."""
        return {}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False
