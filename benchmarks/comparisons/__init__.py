"""RetNet, its ablations and the Transformer, trained alike: `python -m benchmarks.comparisons`."""
