"""The maths: retention in its forms, RetNet, the Transformer baseline, checkpoints. Needs torch."""
