"""A mixture of experts as a feed-forward of miniformer: `ffn: moe`."""

from .mixture import MixtureOfExperts

__all__ = ["MixtureOfExperts"]
