"""Decode and prefill of bundles on this machine, and what a token costs outside the backend."""
