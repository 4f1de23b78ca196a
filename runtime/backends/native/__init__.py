"""Sessions on our C library: its binding, its plan of the weights, time by stage."""
