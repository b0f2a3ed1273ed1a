"""`python -m miniformer_lm_eval`: the harness's own command line, to which the model `miniformer` is known.

The harness finds models only in its own list, and in what was imported before.
"""

from lm_eval.__main__ import cli_evaluate

from .model import MiniformerLM as MiniformerLM

if __name__ == "__main__":
    cli_evaluate()
