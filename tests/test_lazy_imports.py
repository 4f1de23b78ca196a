"""What must start without torch does: the package, the runtime and every `--help`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RUNTIME_MODULES = [
    ".".join(("retnet_edge", *path.relative_to(ROOT).with_suffix("").parts))
    for path in sorted((ROOT / "runtime").rglob("*.py"))
    if path.stem != "__init__"
]

NOT_IN_BASE_INSTALL = {
    "accelerate",
    "executorch",
    "jinja2",
    "matplotlib",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "tensorboard",
    "torch",
    "torchao",
    "transformers",
}

PROBE = """
import importlib, json, runpy, sys
kind, *args = sys.argv[1:]
sys.argv = args
try:
    if kind == "import":
        for module in args:
            importlib.import_module(module)
    elif kind == "module":
        runpy.run_module(args[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(args[0], run_name="__main__")
except SystemExit as stop:
    if stop.code not in (None, 0):
        raise
print()
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def packages_loaded_by(*probe: str, cwd: Path) -> set[str]:
    """Top-level packages in sys.modules of a fresh interpreter after `probe`."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *probe],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_package_loads_no_backend(tmp_path: Path) -> None:
    loaded = packages_loaded_by("import", "retnet_edge", cwd=tmp_path)
    assert "retnet_edge" in loaded
    assert not loaded & (NOT_IN_BASE_INSTALL | {"numpy", "onnxruntime", "tokenizers"})


# ExecuTorch's own Python runtime hands over torch tensors; these load only when it is asked for.
ON_EXECUTORCH = {
    "retnet_edge.runtime.backends.executorch.checked",
    "retnet_edge.runtime.backends.executorch.program",
    "retnet_edge.runtime.backends.executorch.profile",
    "retnet_edge.runtime.backends.executorch.session",
}


@pytest.mark.parametrize(
    "module", ["retnet_edge.runtime", *(m for m in RUNTIME_MODULES if m not in ON_EXECUTORCH)]
)
def test_the_runtime_needs_the_base_install_only(module: str, tmp_path: Path) -> None:
    assert not packages_loaded_by("import", module, cwd=tmp_path) & NOT_IN_BASE_INSTALL


def test_help_of_the_module_loads_no_torch(tmp_path: Path) -> None:
    loaded = packages_loaded_by("module", "retnet_edge.cli", "--help", cwd=tmp_path)
    assert "retnet_edge" in loaded
    assert not loaded & NOT_IN_BASE_INSTALL


def test_help_of_the_command_loads_no_torch(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("retnet-edge")
    loaded = packages_loaded_by("script", str(command), "--help", cwd=tmp_path)
    assert "retnet_edge" in loaded
    assert not loaded & NOT_IN_BASE_INSTALL
