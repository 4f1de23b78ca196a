"""What products see on text is what the recurrent step gives them, position after position."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from micro_checkpoint import random_tokens, write_variant
from torch import Tensor

from retnet_edge.data.contexts import CONTEXTS
from retnet_edge.errors import InputError
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.model.retnet import RetNet
from retnet_edge.quantize.executorch.calibration import CHUNK, calibration_text, collect_statistics

WANTED = {"blocks.1.retention.qkvg": "blocks.1.retention_norm", "blocks.1.ffn.out": ""}
"""What is asked for, and the module whose output is its input, where the model skips the map."""


def test_chunks_see_what_the_recurrent_form_sees(tmp_path: Path) -> None:
    """Second moments and ranges, against the float64 model token after token."""
    model = load_checkpoint(write_variant("base", tmp_path)).model
    assert isinstance(model, RetNet)
    ids = torch.from_numpy(random_tokens(1, 5 * CHUNK))
    contexts = [torch.cat((ids, ids[:, :3]), 1), ids[:, :CHUNK]]  # three tokens are left over
    seen = collect_statistics(model, contexts, wanted=WANTED, grams={"blocks.1.ffn.out"})
    assert seen.keys() == WANTED.keys()
    assert seen["blocks.1.retention.qkvg"].gram is None

    exact = model.double()
    inputs: dict[str, list[Tensor]] = {name: [] for name in WANTED}
    for name, before in WANTED.items():
        module = exact.get_submodule(before or name)
        module.register_forward_hook(
            lambda _, x, y, name=name, before=before: inputs[name].append(y if before else x[0])
        )
    with torch.no_grad():
        for length in (5 * CHUNK, CHUNK):
            exact(ids[:, :length], form="recurrent")
    for name in WANTED:
        x = torch.cat(inputs[name], 1)[0]
        assert len(x) == 6 * CHUNK
        y = x @ exact.get_parameter(f"{name}.weight").detach().T
        for found, wanted in ((seen[name].inputs, x), (seen[name].outputs, y)):
            assert found[0] == pytest.approx(min(0.0, float(wanted.min())), rel=1e-4)
            assert found[1] == pytest.approx(max(0.0, float(wanted.max())), rel=1e-4)
    gram = seen["blocks.1.ffn.out"].gram
    assert gram is not None
    assert (gram - x.T @ x).abs().max() < 1e-4 * (x.T @ x).abs().max()


def test_contexts_are_spread_over_the_text(tmp_path: Path) -> None:
    tokenizer = load_checkpoint(write_variant("base", tmp_path)).tokenizer
    path = tmp_path / "text.txt"
    path.write_text("".join(f"the sea of the {n}th year\n" for n in range(6000)), encoding="utf-8")
    contexts = calibration_text(tokenizer, path)
    assert len(contexts) == CONTEXTS
    assert {tuple(ids.shape) for ids in contexts} == {(1, 2048)}
    assert len({tuple(ids[0, :50].tolist()) for ids in contexts}) == CONTEXTS
    path.write_text("the sea of the people and the year\n" * 60, encoding="utf-8")
    assert {tuple(ids.shape) for ids in calibration_text(tokenizer, path)} == {(1, 256)}
    path.write_text("the sea\n", encoding="utf-8")
    with pytest.raises(InputError, match="fewer than one context of 256"):
        calibration_text(tokenizer, path)
