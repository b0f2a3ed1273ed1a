"""The tensors and plain attributes inside an attention's state, and the memory that they take."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from miniformer.kernel.state import State

from .case import require


def snapshot(state: State) -> list[object]:
    """The identities of a state's tensors, and the values of its plain attributes."""
    plain = [(name, value) for name, value in vars(state).items() if isinstance(value, (int, float, str))]
    return [*map(id, _tensors(state)), *plain]


def bytes_held(state: State) -> int:
    """The bytes of the tensors that a state holds; a storage that several share is counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(state)}
    return sum(storages.values())


def require_true_size(state: State) -> None:
    """Require that the `nbytes` of a state are those of its tensors.

    They may lie between what its tensors show and what they keep in memory: a view keeps all of the tensor that it was cut
    from, and does not know of it. Numbers of an expanded tensor may count as often as it shows them.

    Raises:
        Broken: they are other.
    """
    by_storage: dict[int, list[Tensor]] = {}
    for tensor in _tensors(state):
        by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    least = sum(map(_bytes_shown, by_storage.values()))
    most = sum(max(tensors[0].untyped_storage().nbytes(), sum(tensor.nbytes for tensor in tensors))
               for tensors in by_storage.values())
    held = f"{least}" if least == most else f"{least} to {most}"
    require(least <= state.nbytes <= most, f"it says {state.nbytes} bytes and holds {held}, after {state.length} columns")


def _bytes_shown(tensors: list[Tensor]) -> int:
    """The bytes of one storage that some of the tensors in it show."""
    whole = tensors[0].untyped_storage().nbytes()
    if any(tensor.nbytes == whole and tensor.is_contiguous() for tensor in tensors):
        return whole
    shown = torch.zeros(whole, dtype=torch.bool)
    for tensor in tensors:
        size = tensor.element_size()
        for byte in range(size):
            strides = [stride * size for stride in tensor.stride()]
            shown.as_strided(tensor.shape, strides, tensor.storage_offset() * size + byte).fill_(True)
    return int(shown.sum())


def _tensors(value: object, seen: set[int] | None = None) -> list[Tensor]:
    """The tensors in a value: in collections, and in attributes of objects, such as a table of pages. Those of a module, to
    which a state may refer, are not the state's."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, (type, nn.Module, nn.Parameter, str, bytes, int, float)):
        return []
    seen.add(id(value))
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, Collection):
        inner = list(value)
    else:
        slots = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ())]
        inner = [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots)]
    return [tensor for item in inner for tensor in _tensors(item, seen)]
