"""Is the bundle the model? Parity, memory, the verdict and its report."""
