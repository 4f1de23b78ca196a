"""Tokens a second and memory of training, beside peers and over several GPUs."""
