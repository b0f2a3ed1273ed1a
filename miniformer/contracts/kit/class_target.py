"""Classes to check that need not be registered, written `module:Class`; and the kind that a class is of."""

from __future__ import annotations

import importlib
import inspect
import re
from importlib.util import find_spec

from miniformer.kernel.errors import SpecError, did_you_mean, in_one_line
from miniformer.kernel.kinds import KINDS
from miniformer.kernel.registry import canonical, current_registry


def names_a_class(text: str) -> bool:
    """Whether `text` is `module:Class` of a module that can be found. A registered name of that spelling is meant first."""
    parts = re.fullmatch(r"([A-Za-z_]\w*(?:\.\w+)*):[A-Za-z_]\w*", text)
    if parts is None or any(entry.qualified == canonical(text) for entry in current_registry().entries()):
        return False
    try:
        return find_spec(parts[1]) is not None
    except (ImportError, ValueError):  # the package around it is none, or has no spec
        return False


def load_class(text: str) -> type:
    """The class that `module:Class` names; its module is imported.

    Raises:
        SpecError: the module cannot be imported, or has no such class.
    """
    module, _, name = text.partition(":")
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # a module may fail in any way
        raise SpecError(f"module {module} cannot be imported: {in_one_line(error)}") from error
    found = getattr(loaded, name, None)
    if not isinstance(found, type):
        own = [each for each, value in vars(loaded).items() if inspect.isclass(value) and value.__module__ == module]
        raise SpecError(f"module {module} has no class {name!r}{did_you_mean(name, own)}"
                        + (f"; it defines {', '.join(own)}" if own else ""))
    return found


def kind_of_class(cls: type) -> str:
    """The kind whose interface a class implements.

    Raises:
        SpecError: it implements none.
    """
    for kind in KINDS.values():
        if kind.interface is not None and issubclass(cls, kind.base()):
            return kind.name
    raise SpecError(f"{cls.__qualname__} implements no interface of miniformer.kernel, so its kind has to be said; "
                    f"kinds: {', '.join(KINDS)}")
