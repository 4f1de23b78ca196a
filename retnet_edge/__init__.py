"""retnet-edge: Retentive Network language models (arXiv 2307.08621) from training to a phone.

Importing this package loads neither torch nor a backend; each sub-module says what it needs.
"""

import os

from retnet_edge.version import __version__ as __version__

# ONNX Runtime 1.29 and newer report use to Microsoft from Linux, macOS, Android and iOS, from three
# threads of their own, and keep a device id on disk. This must be set before it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
