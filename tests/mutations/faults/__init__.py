"""The faults, one file for each room of the package."""

from __future__ import annotations

import importlib
import pkgutil

from ..fault import Fault

ROOMS: dict[str, tuple[Fault, ...]] = {
    module.name: importlib.import_module(f"{__name__}.{module.name}").FAULTS for module in pkgutil.iter_modules(__path__)}
"""The faults of each room, by its name."""
FAULTS: tuple[Fault, ...] = tuple(fault for faults in ROOMS.values() for fault in faults)
