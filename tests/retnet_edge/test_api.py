"""The public names: what they are, what they load, and one model from file to text and back."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import Tiny

import retnet_edge
from retnet_edge.runtime.text.generate import generate

PROMPT = "the cat sat on"

if TYPE_CHECKING:  # `make lint` holds what a user's type checker sees
    from collections.abc import Iterator
    from typing import assert_type

    from retnet_edge.runtime.report.verdict import Verdict

    assert_type(retnet_edge.load("a.edge").generate("x"), Iterator[str])
    assert_type(retnet_edge.export("checkpoint", "a.edge"), Path)
    assert_type(retnet_edge.quantize("a.edge", "b.edge", recipe="int8"), Path)
    assert_type(retnet_edge.verify("a.edge", checkpoint="checkpoint", text="a.txt"), Verdict)


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_is_there_and_documented() -> None:
    assert set(retnet_edge.__all__) <= set(dir(retnet_edge))
    for name in retnet_edge.__all__:
        if name != "__version__":
            assert inspect.getdoc(getattr(retnet_edge, name)), name


def test_a_name_that_is_none() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = retnet_edge.nothing  # type: ignore[attr-defined]


def test_text_from_a_bundle_needs_no_torch(tiny: Tiny) -> None:
    said = run(
        "import json, sys, retnet_edge\n"
        f"model = retnet_edge.load({str(tiny.path)!r}, threads=1)\n"
        f"text = ''.join(model.generate({PROMPT!r}, max_tokens=5))\n"
        "print(json.dumps([text, model.position, sorted(sys.modules)]))"
    )
    text, position, modules = json.loads(said)
    assert isinstance(text, str)
    assert position > 5
    assert not {"torch", "onnx", "transformers", "matplotlib"} & set(modules)


@pytest.mark.parametrize(
    "first", ["", "import retnet_edge.export.step, retnet_edge.quantize.graphs"]
)
def test_folders_of_the_same_name_are_functions_too(first: str) -> None:
    said = run(
        f"{first}\n"
        "import inspect, retnet_edge\n"
        "from retnet_edge.export.export import export\n"
        "from retnet_edge.quantize.quantize import quantize\n"
        "assert inspect.signature(retnet_edge.export) == inspect.signature(export)\n"
        "assert inspect.signature(retnet_edge.quantize) == inspect.signature(quantize)\n"
        "for call in (retnet_edge.export, retnet_edge.quantize):\n"
        "    try:\n"
        "        call('nowhere', 'out')\n"
        "    except retnet_edge.InputError as error:\n"
        "        print(error)\n"
    )
    assert said.count("nowhere") == 2


def test_generate_is_the_same_as_below(tiny: Tiny) -> None:
    model = retnet_edge.load(tiny.path, threads=1)
    text = "".join(model.generate(PROMPT, max_tokens=12, temperature=0.9, seed=3))
    other = retnet_edge.load(tiny.path, threads=1)
    below = generate(
        other.session,
        other.tokenizer,
        PROMPT,
        max_tokens=12,
        sampling=retnet_edge.Sampling(temperature=0.9, seed=3),
        end_of_text=other.bundle.manifest.tokenizer.end_of_text,
    )
    assert text == "".join(below)
    assert model.position == other.position


def test_state_files_forks_and_snapshots(tiny: Tiny, tmp_path: Path) -> None:
    model = retnet_edge.load(tiny.path, threads=1)
    list(model.generate(PROMPT, max_tokens=4, temperature=0))
    model.save_state(tmp_path / "chat.state")
    fork, kept = model.fork(), model.snapshot()
    then = "".join(model.generate(" and", max_tokens=6, temperature=0))
    assert fork.position == kept.position < model.position
    assert "".join(fork.generate(" and", max_tokens=6, temperature=0)) == then
    again = retnet_edge.load(tiny.path, threads=1)
    again.load_state(tmp_path / "chat.state")
    assert "".join(again.generate(" and", max_tokens=6, temperature=0)) == then
    model.restore(kept)
    assert "".join(model.generate(" and", max_tokens=6, temperature=0)) == then
    model.reset()
    assert model.position == 0
    assert model.state_bytes == fork.state_bytes


def test_bad_input_is_one_sentence(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(retnet_edge.InputError, match="does not exist"):
        retnet_edge.load(tmp_path / "none.edge")
    with pytest.raises(retnet_edge.InputError, match="has no graphs for gpu"):
        retnet_edge.load(tiny.path, backend="gpu")
    with pytest.raises(retnet_edge.InputError, match="threads is 0"):
        retnet_edge.load(tiny.path, threads=0)
    model = retnet_edge.load(tiny.path, threads=1)
    with pytest.raises(retnet_edge.InputError, match="temperature is -1"):
        model.generate(PROMPT, temperature=-1)
    with pytest.raises(retnet_edge.InputError, match="is not a file"):
        model.load_state(tmp_path / "none.state")
