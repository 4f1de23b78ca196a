"""What runs a bundle: ONNX Runtime, ExecuTorch, our C library; one of them is chosen here."""
