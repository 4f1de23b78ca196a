"""What recipes cost on held-out text, ours and other projects'."""
