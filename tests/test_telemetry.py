"""ONNX Runtime's own telemetry stays off: nothing is sent, and no device id lands on the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RUN = """
import os
from retnet_edge.runtime.backends.ort.graph import onnxruntime
onnxruntime.get_available_providers()
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


def run(home: Path, **variables: str) -> str:
    # In CI, ONNX Runtime suppresses its telemetry by itself, and the test would prove nothing.
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_CACHE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_no_device_id_is_written(tmp_path: Path) -> None:
    assert run(tmp_path) == "1"
    assert list(tmp_path.iterdir()) == []


def test_a_user_may_turn_it_on(tmp_path: Path) -> None:
    assert run(tmp_path, ORT_DISABLE_TELEMETRY="0") == "0"
