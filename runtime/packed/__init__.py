"""Packed models: one file that the C library maps and runs (native/format.h)."""
