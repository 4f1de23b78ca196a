"""Text out: generation, sampling, state files, prompt caches, batches."""
