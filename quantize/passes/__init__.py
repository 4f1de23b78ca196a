"""Passes over an ONNX graph, one a scheme: each puts quantized nodes in the place of others."""
