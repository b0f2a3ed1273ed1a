"""A device that is not there: its tensors are computed on the CPU, and can no more be mixed with the CPU's than a GPU's can.

So what would stop a model on a GPU stops it here: a tensor made on the wrong device, a look at values by NumPy, and, as on
Apple's GPUs, float64. It goes by the name of `meta`, the one device that every build of torch lets tensors say they are on.
"""

from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

FAKE = torch.device("meta")
MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
INDEXES = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}


class Away(torch.Tensor):
    """A tensor there, with its values here."""

    @staticmethod
    def __new__(cls, held):
        if held.dtype == torch.float64:
            raise TypeError("this device has no float64")
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=FAKE, strides=held.stride(),
                                                   storage_offset=held.storage_offset())

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"Away({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def computed(func, args, kwargs):
    """What an operator gives, where its tensors are, or where it is told to make one."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    away = [t for t in tensors if isinstance(t, Away)]
    strangers = [t for t in tensors if t.ndim and not isinstance(t, Away)]  # a number of the CPU's may go along
    if func in INDEXES and isinstance(args[0], Away):  # and so may its indices
        strangers = [t for t in tree_leaves(args[2:]) if isinstance(t, torch.Tensor) and t.ndim and not isinstance(t, Away)]
    if away and strangers and func not in MOVES:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device")
    named = next((device for device in tree_leaves(args) if isinstance(device, torch.device)), None)
    made = kwargs.get("device", named)
    args = tree_map_only(torch.device, lambda device: torch.device("cpu"), args)
    if func is torch.ops.aten.copy_.default:
        there = isinstance(args[0], Away)
    else:
        there = bool(away) if made is None else torch.device(made) == FAKE
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": "cpu"}
    here, named = tree_map_only(Away, lambda t: t.held, (args, kwargs))
    found = func(*here, **named)
    if not there:
        return found
    given = {id(t.held): t for t in away}  # what an operator changed in place is what it was given
    return tree_map_only(torch.Tensor, lambda t: given[id(t)] if id(t) in given else Away(t), found)


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What torch does with tensors of numbers before operators are asked."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return func(*args, **{**kwargs, "device": None}).to(kwargs["device"])
        if func is torch.Tensor.new_tensor and isinstance(args[0], Away):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(FAKE)
        if func is torch.Tensor.tolist and isinstance(args[0], Away):
            return args[0].held.tolist()
        return func(*args, **kwargs)


@contextmanager
def device():
    """The device, for as long as it is needed."""
    asked = torch.is_autocast_enabled  # which does not know the name
    with _Dispatch(), _Functions(), patch.object(torch, "is_autocast_enabled", lambda name: name != "meta" and asked(name)):
        yield FAKE


def move(model):
    """Put a model there; what shares a parameter goes on sharing it."""
    moved = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    there = moved.setdefault(id(tensor), tensor.detach().to(FAKE))
                    tensors[name] = moved[id(tensor)] = (
                        torch.nn.Parameter(there, tensor.requires_grad)
                        if isinstance(tensor, torch.nn.Parameter) and not isinstance(there, torch.nn.Parameter) else there)
    return model
