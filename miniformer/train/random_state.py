"""The state of all random generators of this process, so that a run's randomness is its own."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RandomState:
    """The generators that a training step may draw from: torch's, those of its GPUs, numpy's and Python's.

    A run takes the state when it pauses and restores it when it continues, so that dropout is what it would have been without
    the pause, whatever drew numbers in between.
    """

    torch: Tensor
    cuda: list[Tensor]
    numpy: dict[str, Any]
    python: tuple[Any, ...]

    @classmethod
    def now(cls) -> RandomState:
        """The state at this moment."""
        # asking for GPUs' states initialises CUDA, which a run on the CPU does without
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
        numpy = np.random.get_state(legacy=False)
        assert isinstance(numpy, dict)
        return cls(torch.get_rng_state(), cuda, numpy, random.getstate())

    def restore(self) -> None:
        """Set the generators back to this state."""
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        np.random.set_state(self.numpy)
        random.setstate(self.python)
