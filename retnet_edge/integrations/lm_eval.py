"""lm-eval on a checkpoint: `python -m retnet_edge.lm_eval --model hf --model_args pretrained=DIR`.

lm-eval's own command with `retnet_edge.hf` imported first, since it has no option that imports a
module. All arguments are lm-eval's.
"""

from __future__ import annotations

import sys

import retnet_edge.integrations.transformers  # noqa: F401 - registers the Auto classes


def main() -> None:
    """Run lm-eval's command line; exit status 2 where lm-eval is not installed."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        print("lm-eval is not installed: pip install 'lm-eval[hf]'", file=sys.stderr)
        sys.exit(2)
    cli_evaluate()


if __name__ == "__main__":
    main()
