"""Is the bundle the model? Text through it and through the float64 reference, side by side."""
