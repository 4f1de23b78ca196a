"""The corpus of the edge-15m checkpoint, from pinned packages: `python -m benchmarks.corpus`."""
