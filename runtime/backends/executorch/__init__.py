"""Sessions on ExecuTorch, and time by operator."""
