"""The fuzzer of the C engine runs, and would tell."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).with_name("native_fuzz.py")
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


def test_some_cases() -> None:
    done = subprocess.run(
        [sys.executable, str(FUZZER), "--cases", "1500", "--seed", "7"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cases, ran, refused = (int(word) for word in done.stdout.split() if word.isdecimal())
    assert cases == ran + refused == 1500
    assert min(ran, refused) > 300
