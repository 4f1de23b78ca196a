"""Recipes on ExecuTorch: torchao weights and PT2E ranges, lowered anew from the checkpoint."""
