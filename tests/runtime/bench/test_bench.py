"""bench: what is measured is there, adds up, and comes out in every form."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from conftest import Tiny
from micro_checkpoint import VARIANTS, exported_once, write_variant
from rich.console import Console

from retnet_edge import cli
from retnet_edge.errors import InputError
from retnet_edge.export.export import export
from retnet_edge.runtime.backends.ort.profile import OVERHEAD, by_operator
from retnet_edge.runtime.backends.profile import profile
from retnet_edge.runtime.bench.bench import bench
from retnet_edge.runtime.bench.output import (
    print_bench,
    print_profile,
    to_csv,
    to_markdown,
)
from retnet_edge.runtime.bench.read_bandwidth import ReadBandwidth
from retnet_edge.runtime.bench.records import Bench, quartiles
from retnet_edge.runtime.bench.traffic import step_bytes, step_weight_bytes
from retnet_edge.runtime.memory.memory import memory_supported
from retnet_edge.runtime.session.huge_pages import huge_pages, large_regions
from retnet_edge.runtime.session.machine import OtherLoad, processor
from retnet_edge.runtime.session.operators import OperatorTime


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_once(tmp_path_factory.getbasetemp(), "base").bundle


@pytest.fixture(scope="module")
def measured(tiny: Tiny) -> Bench:
    return bench(tiny.path, prompt=[5, 9], generate=[4], depth=[0, 7], threads=[1], repetitions=3)


def test_every_combination_is_a_row(measured: Bench) -> None:
    assert [(row.test, row.tokens, row.depth) for row in measured.rows] == [
        ("prompt", 5, 0),
        ("prompt", 9, 0),
        ("generate", 4, 0),
        ("prompt", 5, 7),
        ("prompt", 9, 7),
        ("generate", 4, 7),
    ]
    assert {(row.threads, row.batch) for row in measured.rows} == {(1, 1)}


def test_rates_times_and_bytes_agree(measured: Bench, tiny: Tiny) -> None:
    for row in measured.rows:
        assert row.rate.low <= row.rate.median <= row.rate.high
        tokens = row.tokens if row.test == "prompt" else 1
        assert row.rate.median == pytest.approx(1e3 * tokens / row.milliseconds.median)
        assert (row.gigabytes is None) == (row.share is None) == (row.test == "prompt")
        if row.gigabytes is not None:
            moved = measured.weights_bytes + 2 * measured.state_bytes
            assert row.gigabytes == pytest.approx(moved / row.milliseconds.median / 1e6)
    assert measured.bandwidth[1].median > 0.1
    assert measured.load.first > 0
    assert measured.load.later.median > 0


@pytest.mark.skipif(not memory_supported(), reason="memory is read on Linux")
def test_memory_adds_up(measured: Bench) -> None:
    used = measured.memory
    assert used is not None
    assert used.steady == used.anonymous + used.file_backed
    assert used.base < used.steady <= used.peak + 4096 * 64
    assert used.anonymous > 1 << 20


def test_weights_are_counted_once_and_an_untied_embedding_not(tiny: Tiny) -> None:
    weights = tiny.model.weights
    total = sum(w.nbytes for w in weights.values() if w.ndim == 2)
    # the tiny manifest has no d_model, so nothing is known of an embedding
    assert step_weight_bytes(tiny.open(), "onnxruntime") == total
    state = 2 * 4 * 6 * 4
    read = step_weight_bytes(tiny.open(), "onnxruntime")
    assert step_bytes(tiny.open(), read, position=3, batch=5) == total + 2 * 5 * state


def test_forms(measured: Bench) -> None:
    markdown = to_markdown(measured)
    assert markdown.count("| generate 4 |") == 2
    rows = list(csv.DictReader(io.StringIO(to_csv(measured))))
    assert len(rows) == 6
    assert float(rows[2]["rate_median"]) == measured.rows[2].rate.median
    assert rows[0]["gigabytes"] == ""
    assert msgspec.json.decode(msgspec.json.encode(measured), type=Bench) == measured
    out = io.StringIO()
    print_bench(msgspec.structs.replace(measured, warnings=["so it is"]), Console(file=out))
    assert "warning: so it is" in out.getvalue()


def test_a_batch_counts_all_its_tokens(exported: Path) -> None:
    found = bench(
        exported, prompt=[], generate=[4], depth=[5], batch=[1, 3], repetitions=1, memory=False
    )
    one, three = found.rows
    assert (one.batch, three.batch) == (1, 3)
    assert three.rate.median == pytest.approx(3e3 / three.milliseconds.median)
    moved = found.weights_bytes + 3 * 2 * found.state_bytes
    assert three.gigabytes == pytest.approx(moved / three.milliseconds.median / 1e6)


@pytest.mark.slow
def test_executorch_is_measured_too(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    checkpoint = write_variant("base", tmp_path)
    out = export(checkpoint, tmp_path / "e.edge", to=("executorch",), say=lambda _: None)
    found = bench(out, prompt=[70], generate=[4], threads=[1], repetitions=2)
    assert found.backend == "executorch"
    assert [row.test for row in found.rows] == ["prompt", "generate"]
    config = VARIANTS["base"]
    embedding = 4 * config.vocab_size * config.d_model
    size = (out / "step.pte").stat().st_size
    assert found.weights_bytes == size - embedding
    with pytest.raises(InputError, match="batch is 2; executorch runs one sequence"):
        bench(out, batch=[2])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt": [0]}, "prompt is 0; at least 1"),
        ({"depth": [-1]}, "depth is -1; at least 0"),
        ({"threads": [0]}, "threads is 0"),
        ({"batch": [0]}, "batch is 0"),
        ({"batch": [2], "memory": False}, "no graph that takes both prompts and steps"),
        ({"repetitions": 0}, "repetitions is 0"),
        ({"prompt": [], "generate": []}, "nothing to measure"),
        ({"backend": "executorch"}, "no graphs for executorch"),
    ],
)
def test_bad_values(changes: dict[str, Any], sentence: str, tiny: Tiny) -> None:
    with pytest.raises(InputError, match=sentence):
        bench(tiny.path, **changes)


def test_the_command_prints_json(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prompt", "3", "--generate", "2", "--repetitions", "1", "--no-memory", "--json"]
    assert cli.main(["bench", str(tiny.path), *options]) == 0
    result = msgspec.json.decode(capsys.readouterr().out, type=Bench)
    assert len(result.rows) == 2
    assert result.memory is None


def test_the_command_refuses_what_is_no_list(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", str(tiny.path), "--depth", "many"]) == 2
    assert "'many' is not a list of whole numbers" in capsys.readouterr().err


def test_a_profile_names_the_operators_of_a_step(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {operator.name: operator for operator in profile(tiny.open(), steps=7, threads=1)}
    assert found["MatMul"].calls % 7 == 0
    assert found["MatMul"].calls > 0
    assert found[OVERHEAD].calls == 7
    assert all(operator.microseconds >= 0 for operator in found.values())
    assert cli.main(["bench", str(tiny.path), "--profile", "--generate", "3", "--json"]) == 0
    names = {operator["name"] for operator in json.loads(capsys.readouterr().out)}
    assert {"MatMul", OVERHEAD} <= names


def test_a_trace_is_summed_without_the_warm_up() -> None:
    def node(at: int, took: int, name: str, event: str = "x_kernel_time") -> dict[str, Any]:
        return {"cat": "Node", "name": event, "ts": at, "dur": took, "args": {"op_name": name}}

    trace = [
        {"cat": "Session", "name": "model_run", "ts": 0, "dur": 50},
        node(1, 40, "MatMul"),
        {"cat": "Session", "name": "model_run", "ts": 100, "dur": 20},
        node(101, 10, "MatMul"),
        node(112, 3, "Add"),
        node(111, 9, "Add", "x_fence_before"),
    ]
    assert by_operator(trace, skip=1) == [
        OperatorTime("MatMul", 1, 10),
        OperatorTime("Add", 1, 3),
        OperatorTime(OVERHEAD, 1, 7),
    ]
    out = io.StringIO()
    print_profile(by_operator(trace, skip=1), 1, Console(file=out))
    assert "50.0 %" in out.getvalue()


def test_spreads() -> None:
    assert quartiles([3.0]).median == 3.0
    found = quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)


def test_the_machine_is_looked_at() -> None:
    assert processor()
    assert ReadBandwidth(2, size=1 << 20).gigabytes() > 0
    watch = OtherLoad()
    time.sleep(0.5)  # the kernel counts in hundredths of a second
    cores = watch.cores()
    assert cores is None or 0 <= cores <= (os.cpu_count() or 1) + 1


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux only")
def test_huge_pages_keep_what_is_in_memory() -> None:
    before = set(large_regions())
    with huge_pages():
        array = np.arange(6 << 20, dtype=np.uint64)
    assert set(large_regions()) != before
    assert np.array_equal(array, np.arange(6 << 20, dtype=np.uint64))
