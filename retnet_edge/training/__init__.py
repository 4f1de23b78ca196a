"""Training: the run, its optimizer and schedule, step checkpoints, several processes."""
