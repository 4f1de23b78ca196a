"""retnet-edge: Retentive Network language models (arXiv 2307.08621) from training to a phone.

The names below are the public interface; each is imported when it is first used, so importing this
package loads neither torch nor a backend. `load`, `Model`, `Bundle`, `Sampling`, `Snapshot`,
`bench` and `pack` need the base install alone; `train`, `export`, `quantize`, `verify` and `build`
the extras that README names.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from retnet_edge.errors import CheckFailed, InputError
from retnet_edge.version import __version__

if TYPE_CHECKING:
    from retnet_edge.export.export import export
    from retnet_edge.pipeline.build import build
    from retnet_edge.pipeline.verify import verify
    from retnet_edge.quantize.quantize import quantize
    from retnet_edge.runtime.bench.bench import bench
    from retnet_edge.runtime.bundle.bundle import Bundle
    from retnet_edge.runtime.packed.pack import pack
    from retnet_edge.runtime.text.model import Model, load
    from retnet_edge.runtime.text.sampling import Sampling
    from retnet_edge.runtime.text.snapshot import Snapshot
    from retnet_edge.training.train import train
    from retnet_edge.training.trainer import TrainOptions

__all__ = [
    "Bundle",
    "CheckFailed",
    "InputError",
    "Model",
    "Sampling",
    "Snapshot",
    "TrainOptions",
    "__version__",
    "bench",
    "build",
    "export",
    "load",
    "pack",
    "quantize",
    "train",
    "verify",
]

# ONNX Runtime 1.29 and newer report use to Microsoft from Linux, macOS, Android and iOS, from three
# threads of their own, and keep a device id on disk. This must be set before it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_MODULES = {
    "Bundle": "runtime.bundle.bundle",
    "Model": "runtime.text.model",
    "Sampling": "runtime.text.sampling",
    "Snapshot": "runtime.text.snapshot",
    "TrainOptions": "training.trainer",
    "bench": "runtime.bench.bench",
    "build": "pipeline.build",
    "load": "runtime.text.model",
    "pack": "runtime.packed.pack",
    "train": "training.train",
    "verify": "pipeline.verify",
}
# Folders of these names are packages too; each can be called (callable_package.py).
_PACKAGES = ("export", "quantize")


if not TYPE_CHECKING:  # a type checker sees the names above, and no others

    def __getattr__(name: str) -> object:
        """The public name, imported now."""
        if name in _PACKAGES:
            return import_module(f"retnet_edge.{name}")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"retnet_edge.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
