"""Room for what a layer computes, made without its weights: they may be whole numbers, or of a tensor class of their own."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn


def float_type(module: nn.Module) -> torch.dtype:
    """The dtype in which a module computes, as far as its parameters and buffers tell; otherwise torch's default."""
    return next((tensor.dtype for tensor in _tensors(module) if tensor.is_floating_point()), torch.get_default_dtype())


def empty_room(module: nn.Module, *shape: int) -> Tensor:
    """An empty tensor of that dtype, on the module's device. What is put into it decides in the end; see `BufferState`."""
    device = next((tensor.device for tensor in _tensors(module)), None)
    return torch.empty(shape, dtype=float_type(module), device=device)


def _tensors(module: nn.Module) -> chain[Tensor]:
    return chain(module.parameters(), module.buffers())
