"""Weight matrices of an ONNX graph: found, read and replaced."""
