"""The public names, for type checkers and for the lazy loading in `__init__.py`."""

from .model import MiniformerLM as MiniformerLM
