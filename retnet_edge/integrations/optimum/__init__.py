"""optimum: its exporter, its quantizer and its generating model, on ours."""
