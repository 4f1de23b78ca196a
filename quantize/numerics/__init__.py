"""Rounding as NumPy formulas: codes and scales, GPTQ, ranges, what the kernels compute."""
