"""Other projects' RetNet checkpoints: found, read, and laid out as ours."""
