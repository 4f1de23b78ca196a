"""retnet-edge: Retentive Network language models (arXiv 2307.08621) from training to a phone.

Importing this package loads neither torch nor a backend; each sub-module says what it needs.
"""

__version__ = "0.1.0"
