"""metrics.jsonl of a run that goes on, where it is no such file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from retnet_edge.errors import InputError
from retnet_edge.training.metrics import METRICS_FILE, MetricsLog

ROW = b'{"step":1,"train_loss":2.5}\n'


def refused(out: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        MetricsLog(out, from_step=5, tensorboard=False)
    said = str(caught.value)
    assert "\n" not in said
    assert all(word in said for word in (METRICS_FILE, *words)), said


@pytest.mark.parametrize(
    "line",
    [
        b"{nothing",
        b"\xff",
        b"",
        b"3",
        b"[]",
        b"{}",
        b'{"step": null}',
        b'{"step": "1"}',
        b'{"step": -1}',
        b'{"step": 1, "a\x80": 2}',
        b'{"step": 1, "a": ' + b"[" * 100_000,
    ],
)
def test_a_line_that_is_no_row_is_named_and_nothing_lost(line: bytes, tmp_path: Path) -> None:
    content = ROW + line + b"\n" + ROW
    (tmp_path / METRICS_FILE).write_bytes(content)
    refused(tmp_path, "line 2 is no row of metrics")
    assert (tmp_path / METRICS_FILE).read_bytes() == content


def test_what_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    os.mkfifo(path)
    refused(tmp_path, "not a regular file")
    path.unlink()
    path.symlink_to("/dev/zero")
    refused(tmp_path, "not a regular file")
    path.unlink()
    path.symlink_to(METRICS_FILE)
    refused(tmp_path, "cannot be read")


def test_rows_past_the_step_are_dropped_and_the_others_kept(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    path.write_bytes(ROW + b'{"step":9}\n' + b'{"step":')
    with MetricsLog(tmp_path, from_step=5, tensorboard=False) as log:
        log.write(6, train_loss=1.0)
    assert path.read_bytes() == ROW + b'{"step":6,"train_loss":1.0}\n'
