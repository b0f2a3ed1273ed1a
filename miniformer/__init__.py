"""Miniformer: build, compare and ship small transformers from parts that prove they work together."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("miniformer")
except PackageNotFoundError as error:
    raise ImportError("miniformer finds its own components through its installed metadata; "
                      "run `pip install .` (or `pip install -e .`) in its folder first") from error
