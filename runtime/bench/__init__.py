"""Speed and memory of a bundle on this machine."""
