"""optimum's exporter on our checkpoints: the graph of `retnet-edge export`, by plain optimum-cli.

`make test-optimum` runs these on optimum-onnx 0.1 and transformers 4.57.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optimum_parts import INSTALLED, TIED, UNTIED, run_tokens, session, write

from retnet_edge.config import transformer_like
from retnet_edge.errors import InputError
from retnet_edge.export.export import export
from retnet_edge.integrations.optimum.cli import install, is_ours
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.model.retnet import RetNet

if not INSTALLED:
    pytest.skip("optimum is not installed: make test-optimum", allow_module_level=True)

CONFIGS = {"tied": TIED, "untied": UNTIED}
LAYERS = TIED.layers


def optimum_cli(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """The installed command, from a folder that is not ours."""
    command = Path(sys.executable).with_name("optimum-cli")
    return subprocess.run(
        [str(command), "export", "onnx", *map(str, words)],
        cwd="/",
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module", params=CONFIGS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """A checkpoint, what optimum-cli makes of it, and our bundle of it."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = write(folder / "checkpoint", CONFIGS[request.param])
    done = optimum_cli("--model", checkpoint, folder / "optimum")
    assert done.returncode == 0, done.stderr
    assert "not within the set tolerance" not in done.stderr, done.stderr
    return (
        checkpoint,
        folder / "optimum",
        export(checkpoint, folder / "own.edge", say=lambda _: None),
    )


def test_names_and_shapes_are_the_step_contract(pair: tuple[Path, Path, Path]) -> None:
    _, exported, own = pair
    theirs, ours = session(exported / "model.onnx"), session(own / "step.onnx")

    def described(values: Any) -> list[tuple[str, str, list[Any]]]:
        return [(value.name, value.type, value.shape) for value in values]

    assert described(theirs.get_inputs()) == described(ours.get_inputs())
    assert described(theirs.get_outputs()) == described(ours.get_outputs())
    assert [v.name for v in theirs.get_inputs()] == [
        "tokens",
        "position",
        *(f"state_{i}" for i in range(LAYERS)),
    ]


def test_graph_computes_what_our_export_does(pair: tuple[Path, Path, Path]) -> None:
    _, exported, own = pair
    tokens = np.random.default_rng(0).integers(1, 270, (3, 67))
    both = zip(
        run_tokens(exported / "model.onnx", tokens),
        run_tokens(own / "step.onnx", tokens),
        strict=True,
    )
    for theirs, ours in both:
        assert theirs.keys() == ours.keys()
        for name, value in ours.items():
            np.testing.assert_array_equal(theirs[name], value, err_msg=name)


def test_graph_agrees_with_float64(pair: tuple[Path, Path, Path]) -> None:
    checkpoint, exported, _ = pair
    net = load_checkpoint(checkpoint).model.double()
    assert isinstance(net, RetNet)
    tokens = np.random.default_rng(1).integers(1, 270, (2, 51))
    (*_, last) = run_tokens(exported / "model.onnx", tokens)
    with torch.no_grad():
        logits, states = net(torch.from_numpy(tokens), form="recurrent")
    scale = logits.abs().max()
    np.testing.assert_allclose(last["logits"], logits[:, -1], atol=float(1e-5 * scale))
    for i, state in enumerate(states):
        bound = float(1e-5 * state.abs().max())
        np.testing.assert_allclose(last[f"next_state_{i}"], state, atol=bound)


def test_folder_holds_the_configuration_and_the_tokenizer(pair: tuple[Path, Path, Path]) -> None:
    checkpoint, exported, _ = pair
    for name in ("config.json", "tokenizer.json"):
        saved, given = (json.loads((path / name).read_text()) for path in (exported, checkpoint))
        assert saved == given, name
    assert {p.name for p in exported.glob("*.onnx*")} == {"model.onnx", "model.onnx_data"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--task", "text-generation"], "--task is text-generation"),
        (["--optimize", "O2"], "--optimize was given"),
        (["--no-post-process"], "--no-post-process was given"),
        (["--opset", "18"], "--opset was given"),
        (["--dtype", "fp16"], "--dtype asks for torch.float16"),
    ],
)
def test_what_a_step_graph_cannot_be_is_refused(
    tmp_path: Path, words: list[str], sentence: str
) -> None:
    checkpoint = write(tmp_path / "checkpoint", TIED)
    done = optimum_cli("--model", checkpoint, *words, tmp_path / "out")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("optimum-cli: ")
    assert sentence in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_baseline_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "checkpoint", transformer_like(TIED))
    done = optimum_cli("--model", checkpoint, tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert "is a Transformer" in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_other_models_are_left_alone(tmp_path: Path) -> None:
    from optimum.commands.export.onnx import ONNXExportCommand

    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert not is_ours(tmp_path)
    assert not is_ours(tmp_path / "absent")
    install(ONNXExportCommand)
    once = ONNXExportCommand.run
    install(ONNXExportCommand)
    assert ONNXExportCommand.run is once


def test_the_placeholder_never_passes_for_the_graph(tmp_path: Path) -> None:
    from optimum.exporters.error_utils import ShapeError
    from optimum.exporters.onnx import main_export

    import retnet_edge.integrations.optimum.export  # noqa: F401 - registers

    checkpoint = write(tmp_path / "checkpoint", TIED)
    with pytest.raises(ShapeError):
        main_export(
            checkpoint.as_posix(),
            tmp_path / "out",
            task="text-generation-with-past",
            no_post_process=True,
        )


def test_dtype_other_than_fp32_is_refused(tmp_path: Path) -> None:
    from retnet_edge.integrations.optimum.export import RetNetEdgeStep

    checkpoint = write(tmp_path / "checkpoint", TIED)
    with pytest.raises(InputError, match="exported in fp32"):
        RetNetEdgeStep.from_pretrained(checkpoint, torch_dtype=torch.bfloat16)
