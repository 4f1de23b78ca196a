"""RetNet in transformers: the loss, dropout and Trainer.

Runs on transformers 5 (`make test`) and 4.57 (`make test-hf4`).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers_checkpoints
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers_checkpoints import BASE, exact, padded, random_tokens

from retnet_edge.model.checkpoint import load_checkpoint

checkpoints = transformers_checkpoints.checkpoints
base = transformers_checkpoints.base


def test_the_loss_is_of_the_next_token(base: Path) -> None:
    model, net = exact(base)
    tokens, mask, _ = padded("right", pad=0)
    labels = torch.where(mask == 1, tokens, -100)
    wanted = F.cross_entropy(
        net(tokens)[0][:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100
    )
    model.train()
    found = model(tokens, attention_mask=mask, labels=labels)
    assert found.past_key_values is None
    torch.testing.assert_close(found.loss.float(), wanted, rtol=0, atol=1e-6)
    found.loss.backward()
    on_the_right = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    tokens, mask, _ = padded("left", pad=0)
    labels = torch.where(mask == 1, tokens, -100)
    labels[mask.cumsum(1) == 1] = -100  # what follows the padding is no prediction
    model(tokens, attention_mask=mask, labels=labels).loss.backward()
    for p, grad in zip(model.parameters(), on_the_right, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=0, atol=1e-6)


def test_dropout_is_a_matter_of_training(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dropout=0.5)
    tokens = random_tokens(1, 13)
    assert torch.equal(model(tokens).logits, model(tokens).logits)
    model.train()
    assert not torch.equal(model(tokens).logits, model(tokens).logits)
    assert "dropout" not in model.config.to_json_string()


class Texts(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = (torch.arange(12) * 7 + index % 4 * 3) % 200 + 1
        return {"input_ids": tokens, "labels": tokens.clone()}


def test_trainer_learns_and_resumes(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="Trainer needs it: pip install 'retnet-edge[hf]'")
    from transformers import Trainer, TrainingArguments

    def trained(out: Path, resume: Path | None = None) -> Any:
        arguments = TrainingArguments(
            output_dir=str(out),
            max_steps=12,
            save_steps=8,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            report_to=[],
            use_cpu=True,
            logging_steps=4,
            disable_tqdm=True,
        )
        model = AutoModelForCausalLM.from_pretrained(base)
        trainer = Trainer(model, arguments, train_dataset=Texts(), eval_dataset=Texts())
        before = trainer.evaluate()["eval_loss"]
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return model, before, trainer.evaluate()["eval_loss"]

    model, before, after = trained(tmp_path / "a")
    assert after < 0.7 * before
    halfway = tmp_path / "a" / "checkpoint-8"
    shutil.copyfile(base / "tokenizer.json", halfway / "tokenizer.json")
    assert load_checkpoint(halfway).config == BASE
    resumed, _, _ = trained(tmp_path / "b", resume=halfway)
    for a, b in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
