"""`python -m retnet_edge.lm_eval`: a short name of `integrations.lm_eval`."""

from retnet_edge.integrations.lm_eval import main

if __name__ == "__main__":
    main()
