"""lm-eval's own command on the shipped checkpoint, against likelihoods computed by hand.

`make test-lm-eval` runs it in a venv that has lm-eval. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from retnet_edge.data.sources import find_sources, read_texts
from retnet_edge.model.checkpoint import Checkpoint, load_checkpoint
from retnet_edge.model.retnet import RetNet
from retnet_edge.tokenizer import END_OF_TEXT

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "checkpoints" / "edge-15m"
ANSWER_TOKENS = 12

TASK = """
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{{{{target}}}}"
target_delimiter: ""
metric_list:
  - metric: {metric}
    aggregation: {aggregation}
    higher_is_better: true
metadata:
  version: 1
"""
GENERATION = f"""
generation_kwargs:
  do_sample: false
  max_gen_toks: {ANSWER_TOKENS}
  until: ["<|never|>"]
"""


def documents() -> list[dict[str, str]]:
    """Contexts of many lengths, one of them empty, each with what follows it in the text."""
    text = "\n\n".join(read_texts(find_sources([SHIPPED / "heldout.txt"]), "text"))
    words = re.findall(r"\s*\S+", text)
    found, at = [], 100
    for context, target in ((1, 3), (40, 1), (7, 12), (0, 5), (90, 2), (23, 30), (5, 1)):
        found.append(
            {
                "context": "".join(words[at : at + context]).strip(),
                "target": "".join(words[at + context : at + context + target]),
            }
        )
        at += 997
    found[3]["target"] = found[3]["target"].strip()
    return found


def likelihood(source: Checkpoint, context: str, target: str) -> tuple[float, bool]:
    """log p(target | context) in nats, float64, and whether greedy decoding would write it."""
    whole = source.tokenizer.encode(context + target).ids
    known = len(source.tokenizer.encode(context).ids)
    if not known:  # lm-eval conditions on the end of the text before
        whole, known = [*source.tokenizer.encode(END_OF_TEXT).ids, *whole], 1
    with torch.no_grad():
        logits = source.model(torch.tensor([whole]))[0][0].log_softmax(-1)
    rows = logits[known - 1 : len(whole) - 1]
    wanted = torch.tensor(whole[known:])
    return float(rows.gather(1, wanted[:, None]).sum()), bool((rows.argmax(1) == wanted).all())


def continuation(source: Checkpoint, context: str) -> str:
    """Greedy text after the context, one recurrent step at a time."""
    model = source.model
    assert isinstance(model, RetNet)
    ids = source.tokenizer.encode(context).ids
    states = model.initial_states(1)
    chosen: list[int] = []
    for n in range(len(ids) + ANSWER_TOKENS - 1):
        token = (ids + chosen)[n]
        with torch.no_grad():
            logits, states = model(
                torch.tensor([[token]]),
                states=states,
                position=torch.tensor([n]),
                form="recurrent",
            )
        if n + 1 >= len(ids):
            chosen.append(int(logits[0, -1].argmax()))
            if chosen[-1] == source.tokenizer.token_to_id(END_OF_TEXT):
                break
    return source.tokenizer.decode(chosen)


def lm_eval(folder: Path, *arguments: str) -> dict[str, list[dict[str, Any]]]:
    """Run the command as a user does; the samples of each task, in the documents' order."""
    command = [sys.executable, "-m", "retnet_edge.integrations.lm_eval", "run", "--model", "hf"]
    command += ["--model_args", f"pretrained={SHIPPED}", "--include_path", str(folder)]
    command += ["--output_path", str(folder / "out"), "--log_samples", "--device", "cpu"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *arguments],
        env={**os.environ, **offline, "HF_HOME": str(folder / "hf")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    samples = {}
    for path in (folder / "out").rglob("samples_*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        task = re.sub(r"^samples_(.*)_\d{4}-.*$", r"\1", path.name)
        samples[task] = sorted(rows, key=lambda row: int(row["doc_id"]))
    return samples


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-eval is not installed here; `make test-lm-eval` has it",
)
@pytest.mark.parametrize("batch", [1, 4])
def test_lm_eval_agrees_with_likelihoods_by_hand(batch: int, tmp_path: Path) -> None:
    rows = documents()
    prompts = [row for row in rows if row["context"]]
    files = {"cloze": rows, "rolling": rows, "writing": prompts}
    tasks = {
        "cloze": ("loglikelihood", "{{context}}", "acc", "mean", ""),
        "rolling": ("loglikelihood_rolling", "", "word_perplexity", "weighted_perplexity", ""),
        "writing": ("generate_until", "{{context}}", "exact_match", "mean", GENERATION),
    }
    for task, (kind, text, metric, aggregation, more) in tasks.items():
        data = tmp_path / f"{task}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in files[task]))
        task_yaml = TASK.format(
            task=task, data=data, kind=kind, text=text, metric=metric, aggregation=aggregation
        )
        (tmp_path / f"{task}.yaml").write_text(task_yaml + more)
    found = lm_eval(tmp_path, "--tasks", ",".join(tasks), "--batch_size", str(batch))

    source = load_checkpoint(SHIPPED)
    exact = load_checkpoint(SHIPPED)
    exact.model.double()
    for row, cloze, rolling in zip(rows, found["cloze"], found["rolling"], strict=True):
        nats, is_greedy = likelihood(exact, row["context"], row["target"])
        assert float(cloze["resps"][0][0][0]) == pytest.approx(nats, abs=1e-3, rel=1e-5)
        assert (str(cloze["resps"][0][0][1]) == "True") == is_greedy
        nats, _ = likelihood(exact, "", row["target"])
        assert float(rolling["resps"][0][0]) == pytest.approx(nats, abs=1e-3, rel=1e-5)
    for row, writing in zip(prompts, found["writing"], strict=True):
        assert writing["resps"][0][0] == continuation(source, row["context"])


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is not None,
    reason="lm-eval is installed here; `make test-slow` runs this without it",
)
def test_without_lm_eval_it_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "retnet_edge.integrations.lm_eval"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "lm-eval is not installed: pip install 'lm-eval[hf]'"
