"""`python -m miniformer_lm_eval`: the command line of the harness, which then knows the model `miniformer`.

The harness knows its own models and those that were imported before it starts, so this module imports ours first.
"""

from lm_eval.__main__ import cli_evaluate

from .model import MiniformerLM as MiniformerLM

if __name__ == "__main__":
    cli_evaluate()
