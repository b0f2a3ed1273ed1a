"""What a plugin author imports: interfaces, layout and mask rules, state, registry, options, hooks, errors.

No component lives here, and nothing is imported from the rest of miniformer. The names, listed in `__init__.pyi`, load
when they are first used, so that looking up a component by name needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
