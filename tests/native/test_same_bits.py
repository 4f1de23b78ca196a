"""A C program on a packed file gives the bits that Python gives on the bundle."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import native_bundles
import numpy as np
import pytest
from conftest import native_extension
from native_bundles import TOKENS, Quantized, silent
from numpy.typing import NDArray

from retnet_edge.pipeline.build import build
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.packed.pack import pack

pytestmark = [
    native_bundles.NEEDS_THE_LIBRARY,
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler: apt install gcc"),
]
exported = native_bundles.exported
quantized = native_bundles.quantized
ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "checkpoints" / "edge-15m"
HELD_OUT = 24_576


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Over the library's sources, with the flags of the package."""
    path = tmp_path_factory.mktemp("c") / "feed_tokens"
    sources = [*sorted((ROOT / "native").glob("*.c")), ROOT / "tests/native/feed_tokens.c"]
    command = ["cc", *native_extension()["extra-compile-args"], *map(str, sources), "-o", str(path)]
    subprocess.run([*command, "-lm", "-lpthread"], check=True)
    return path


def logits_of(
    program: Path, packed: Path, tokens: NDArray[np.int32], prompt: int = 1
) -> NDArray[np.float32]:
    """[outputs, vocabulary]."""
    done = subprocess.run(
        [str(program), str(packed), str(prompt)], input=tokens.tobytes(), capture_output=True,
        check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    outputs = 1 + tokens.size - prompt
    return np.frombuffer(done.stdout, dtype=np.float32).reshape(outputs, -1)


@pytest.mark.parametrize("recipe", ["int8", "int4-weight", "4 asymmetric"])
def test_steps_and_prompts(
    quantized: Quantized, program: Path, tmp_path: Path, recipe: str
) -> None:
    bundle = quantized("base", recipe)
    packed = pack(bundle.path, tmp_path / "a.retnet", say=silent)
    tokens = np.array(TOKENS, dtype=np.int32)
    session = open_session(bundle, threads=1, backend="native")
    expected = np.stack([session.step(int(token)).copy() for token in tokens])
    np.testing.assert_array_equal(logits_of(program, packed, tokens), expected)
    together = logits_of(program, packed, tokens, prompt=200)
    np.testing.assert_array_equal(together, expected[199:])


@pytest.mark.slow
def test_the_shipped_model_over_all_held_out_tokens(program: Path, tmp_path: Path) -> None:
    made, packed = tmp_path / "a.edge", tmp_path / "a.retnet"
    text = CHECKPOINT / "heldout.txt"
    build(
        CHECKPOINT,
        made,
        text=text,
        native=True,
        pack=packed,
        tokens=512,
        context=256,
        memory_steps=0,
        baseline=False,
        say=silent,
    )
    bundle = Bundle.open(made)
    ids = bundle.tokenizer().encode(text.read_text()).ids[:HELD_OUT]
    assert len(ids) == HELD_OUT
    stored = tmp_path / "tokens"
    stored.write_bytes(np.array(ids, dtype=np.int32).tobytes())
    session = open_session(bundle, threads=1, backend="native")
    with (
        stored.open("rb") as tokens,
        subprocess.Popen([program, packed], stdin=tokens, stdout=subprocess.PIPE) as running,
    ):
        assert running.stdout is not None
        for token in ids:
            expected = session.step(token).tobytes()
            assert running.stdout.read(len(expected)) == expected
        assert running.stdout.read() == b""
    assert running.returncode == 0
