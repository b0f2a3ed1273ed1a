"""The contract kit: it checks that a component keeps the promises of its kind, on examples that hypothesis draws.

Three doors lead to it: `check_component` from Python, `contract_suite` under pytest, `miniformer check` on the command line.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
