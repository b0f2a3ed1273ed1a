"""Tasks of the LM Evaluation Harness (`lm-eval`) on models of miniformer."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
