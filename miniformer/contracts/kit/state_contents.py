"""The tensors and plain attributes inside an attention's state."""

from __future__ import annotations

from torch import Tensor

from miniformer.kernel.state import State


def snapshot(state: State) -> list[object]:
    """The identities of a state's tensors, and the values of its plain attributes."""
    plain = [(name, value) for name, value in vars(state).items() if isinstance(value, (int, float, str))]
    return [*map(id, _tensors(vars(state))), *plain]


def bytes_held(state: State) -> int:
    """The bytes of the tensors that a state holds; a storage that several share is counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(vars(state))}
    return sum(storages.values())


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    if isinstance(value, State):
        inner = vars(value).values()
    return [tensor for item in inner for tensor in _tensors(item)]
