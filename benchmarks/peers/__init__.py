"""Our bundles beside llama.cpp, every contender a process: `python -m benchmarks.peers`."""
