"""The search for a mixed recipe: what it chooses, what it writes, where it goes on."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from micro_checkpoint import Exported, exported_once

from retnet_edge.cli import main
from retnet_edge.errors import InputError
from retnet_edge.quantize.quantize import quantize
from retnet_edge.quantize.recipes.toml_file import read_recipe
from retnet_edge.quantize.search import (
    CANDIDATES,
    EMBEDDING_CANDIDATES,
    Budget,
    Matrix,
    choose_schemes,
    read_cache,
    search,
)
from retnet_edge.runtime.bundle.bundle import Bundle

TEXT = "The cat sat on the mat, and the dog sat by the door of the old house. " * 60


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported_once(tmp_path_factory.getbasetemp(), "base")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


@pytest.mark.parametrize(
    ("given", "budget"),
    [
        ("5.2", Budget(5.2, "bits")),
        ("5.2bits", Budget(5.2, "bits")),
        ("12MB", Budget(12e6, "bytes")),
        ("900KB", Budget(900e3, "bytes")),
        ("77B", Budget(77, "bytes")),
    ],
)
def test_a_budget_is_bits_or_bytes(given: str, budget: Budget) -> None:
    assert Budget.parse(given) == budget


@pytest.mark.parametrize("given", ["", "five", "-1", "0", "nan", "inf", "5GB", "MB"])
def test_what_is_no_budget_is_refused(given: str) -> None:
    with pytest.raises(InputError, match=r"--budget is '.*'; give bits a weight"):
        Budget.parse(given)


def test_the_choice_is_as_good_as_the_best_of_all() -> None:
    """What trying everything finds, on random costs that at times fall with the bits."""
    rng = np.random.default_rng(0)
    matrices = [Matrix(f"blocks.{i}", (64, 256)) for i in range(5)]
    for _ in range(20):
        costs: dict[tuple[str, str], float] = {}
        for m in matrices:
            steps = np.cumsum(rng.random(5) * [0.01, 0.2, 1, 0.3, 0.3] - [0, 0, 0.1, 0.1, 0.1])
            costs |= {(m.name, s.name): float(c) for s, c in zip(CANDIDATES, steps, strict=True)}
        bits = [matrices[0].bits(scheme) for scheme in CANDIDATES]
        allowed = sum(bits) / len(bits) * len(matrices)

        def kl(rungs: dict[str, int], costs: dict[tuple[str, str], float] = costs) -> float:
            return sum(costs[name, CANDIDATES[rung].name] for name, rung in rungs.items())

        every = (
            dict(zip((m.name for m in matrices), rungs, strict=True))
            for rungs in itertools.product(range(len(CANDIDATES)), repeat=5)
            if sum(bits[rung] for rung in rungs) <= allowed
        )
        best = min(every, key=kl)
        found = choose_schemes(matrices, costs, allowed)
        assert sum(bits[rung] for rung in found.values()) <= allowed
        assert kl(found) == pytest.approx(kl(best))


def test_a_budget_of_the_fewest_bits_can_be_kept() -> None:
    """Of shapes that have no common measure, whose bits are rounded up to units."""
    matrices = [Matrix(f"blocks.{i}", (rows, 100)) for i, rows in enumerate((997, 1009, 1013))]
    costs = {(m.name, s.name): 1.0 / s.block for m in matrices for s in m.ladder}
    least = sum(min(m.bits(s) for s in m.ladder) for m in matrices)
    for allowed in (least, 1.001 * least, 1.5 * least):
        found = choose_schemes(matrices, costs, allowed)
        assert sum(m.bits(m.ladder[found[m.name]]) for m in matrices) <= allowed


def test_what_is_looked_up_in_has_rungs_without_zero_points() -> None:
    matrices = [Matrix("embedding.weight", (64, 256)), Matrix("blocks.0.m", (64, 256))]
    assert all(scheme.symmetric and not scheme.gptq for scheme in matrices[0].ladder)
    costs = {(m.name, s.name): 1.0 for m in matrices for s in m.ladder}
    costs["blocks.0.m", CANDIDATES[-1].name] = 0.5
    allowed = sum(m.bits(m.ladder[-1]) for m in matrices)
    assert choose_schemes(matrices, costs, allowed) == {"embedding.weight": 3, "blocks.0.m": 4}
    allowed = matrices[0].bits(matrices[0].ladder[0]) + matrices[1].bits(CANDIDATES[-1])
    costs["embedding.weight", EMBEDDING_CANDIDATES[0].name] = 0.5
    assert choose_schemes(matrices, costs, allowed) == {"embedding.weight": 0, "blocks.0.m": 4}


def test_bits_are_those_of_the_file(exported: Exported, tmp_path: Path, text: Path) -> None:
    recipe = search(
        exported.bundle, tmp_path / "r.toml", budget="12.5", calibration=text, say=lambda _: None
    )
    out = quantize(exported.bundle, tmp_path / "q.edge", recipe=str(recipe), calibration=text)
    bundle = Bundle.open(out)
    tensors = bundle.manifest.quantization.tensors
    rungs = {scheme.name: scheme for scheme in (*CANDIDATES, *EMBEDDING_CANDIDATES)}
    bits = sum(
        Matrix(t.weight, t.shape).bits(rungs[t.scheme.removesuffix("-tail2")]) for t in tensors
    )
    assert len({t.scheme.removesuffix("-tail2") for t in tensors}) > 1
    assert bits <= 12.5 * sum(np.prod(t.shape) for t in tensors)
    # the file holds them, vectors, small constants and alignment
    assert bits / 8 <= (out / "weights.bin").stat().st_size


def test_an_interrupted_search_goes_on(exported: Exported, tmp_path: Path, text: Path) -> None:
    """Or another one on the same text in rows."""
    recipe, cache = tmp_path / "r.toml", tmp_path / "r.toml.cache.jsonl"

    def run(text: Path = text, text_field: str = "text") -> list[str]:
        said: list[str] = []
        search(
            exported.bundle,
            recipe,
            budget="12.5",
            calibration=text,
            text_field=text_field,
            say=said.append,
        )
        return said

    whole = run()
    assert any(line.startswith("0 of 44 measurements are in") for line in whole)
    found, lines = recipe.read_text(), cache.read_bytes()
    recipe.unlink()
    cut = lines[: lines.rfind(b"\n", 0, len(lines) // 2) + 20]  # in the middle of a line
    cache.write_bytes(cut)
    kept = cut.count(b"\n")
    assert any(line.startswith(f"{kept} of 44 measurements are in") for line in run())
    assert recipe.read_text() == found
    assert sorted(cache.read_bytes().split()) == sorted(lines.split())
    recipe.unlink()
    rows = tmp_path / "rows.ndjson"
    rows.write_text(json.dumps({"body": TEXT.strip()}))
    assert any(line.startswith("44 of 44 measurements are in") for line in run(rows, "body"))
    assert recipe.read_text() == found


def test_a_cache_of_other_weights_is_not_used(tmp_path: Path) -> None:
    cache = tmp_path / "c.jsonl"
    cache.write_text('{"about":"a","weight":"w","scheme":"s","kl":1.0}\n')
    assert len(read_cache(cache, "a")) == 1
    assert read_cache(cache, "b") == []
    cache.write_text("nonsense\n\n")
    with pytest.raises(InputError, match="line 1: not a search's cache"):
        read_cache(cache, "a")
    cache.write_bytes(b'{"about": "\xff"}\n{}\n')
    with pytest.raises(InputError, match="line 1: not a search's cache"):
        read_cache(cache, "a")


def test_a_search_from_the_command_line(
    exported: Exported, tmp_path: Path, text: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, recipe = tmp_path / "q.edge", tmp_path / "mine.toml"
    given = ["quantize", str(exported.bundle), str(out), "--calibration", str(text)]
    assert main([*given, "--search", str(recipe), "--budget", "12.5"]) == 0
    assert Bundle.open(out).manifest.quantization.recipe == "mine"
    assert read_recipe(recipe).name == "mine"
    capfd.readouterr()
    for arguments, sentence in (
        (["--search", str(recipe)], "--search and --budget go together"),
        (["--budget", "5"], "--search and --budget go together"),
        (["--search", str(recipe), "--budget", "5", "--recipe", "int4"], "leave --recipe out"),
        (["--search", str(recipe), "--budget", "15"], "exists already"),
    ):
        assert main([*given, *arguments]) == 2
        assert sentence in capfd.readouterr().err
    other = [*given[:2], str(tmp_path / "p.edge"), "--calibration", str(text)]
    for name, budget, sentence in (
        ("x.txt", "5", "name a .toml file"),
        ("x.toml", "1", "the smallest recipe of this model has"),
        ("mine.toml", "15", "mine.toml: exists already"),
    ):
        assert main([*other, "--search", str(tmp_path / name), "--budget", budget]) == 2
        said = capfd.readouterr().err
        assert sentence in said
        assert not (tmp_path / "p.edge").exists()
    nowhere = [*given[:2], str(tmp_path / "none" / "p.edge"), "--search", str(tmp_path / "y.toml")]
    assert main([*nowhere, "--budget", "15"]) == 2
    assert "none is not a directory: p.edge cannot be made in it" in capfd.readouterr().err
    assert not (tmp_path / "y.toml.cache.jsonl").exists()
    again = ["quantize", str(out), str(tmp_path / "p.edge"), "--search", str(tmp_path / "y.toml")]
    assert main([*again, "--budget", "15"]) == 2
    assert "is quantized already (mine)" in capfd.readouterr().err
