"""Training codes and scales of a quantized bundle to predict what its float model predicts."""
