"""Sessions on ONNX Runtime, weights packed for this machine, time by operator."""
