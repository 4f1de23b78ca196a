"""docs/results.md, from the committed figures: `python -m benchmarks.results_page`."""
