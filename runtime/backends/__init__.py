"""One session protocol, and its backends: ONNX Runtime, ExecuTorch, the native library."""
