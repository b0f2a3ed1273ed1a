"""Strategies of hypothesis: layouts small enough to reason about, and options by the component's own schema."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticUndefined

from miniformer.kernel.kinds import kind_of
from miniformer.kernel.layout import Layout
from miniformer.kernel.options import options_of
from miniformer.kernel.registry import Availability, current_registry
from miniformer.kernel.spec import ComponentSpec, resolve
from miniformer.ops.attention_kernels import KERNELS, KernelName

FULL, LEFT, RIGHT, HOLES, PACKED = "full", "left", "right", "holes", "packed"
LONG = 300
"""Columns of a long row: more than the blocks, chunks and windows that a component may work by."""
seeds = st.integers(0, 2**16)


@st.composite
def lengths(draw: st.DrawFn, short: st.SearchStrategy[int], at_most: int = LONG) -> int:
    """Mostly a short length, and at times a long one."""
    return draw(st.integers(17, at_most)) if draw(st.sampled_from([False, False, True])) else draw(short)


@st.composite
def layouts(draw: st.DrawFn, kinds: Sequence[str] = (FULL, LEFT, RIGHT, HOLES, PACKED), max_rows: int = 3,
            max_length: int = 7, rows: int | None = None, long: bool = False) -> Layout:
    """A layout whose every row has a token that is not padding; `long`: at times one of many columns."""
    rows = draw(st.integers(1, max_rows)) if rows is None else rows
    short = st.integers(1, max_length)
    kind, length = draw(st.sampled_from(list(kinds))), draw(lengths(short) if long else short)
    if length > max_length:
        return many_columns(kind, rows, length, draw(seeds))
    if kind == FULL:
        return Layout.full(rows, length)
    if kind == PACKED:
        layout = Layout.from_documents(torch.tensor([draw(documents(length)) for _ in range(rows)]))
        # whoever builds the batch may know more than the constructor
        return replace(layout, padded=not bool(layout.real.all())) if draw(st.booleans()) else layout
    if kind == HOLES:  # as in a batch of texts of different lengths, padded on the right, that were written on
        real = torch.tensor([draw(st.lists(st.booleans(), min_size=length, max_size=length)) for _ in range(rows)])
        real[:, 0] |= ~real.any(dim=1)
        return Layout(torch.where(real, real.long().cumsum(dim=1) - 1, 0), real.long(), packed=False)
    return Layout.from_lengths(draw(st.lists(st.integers(1, length), min_size=rows, max_size=rows)), length,
                               "left" if kind == LEFT else "right")


def many_columns(kind: str, rows: int, length: int, seed: int) -> Layout:
    """A layout of a kind with so many columns that they are not worth drawing one by one."""
    generator = torch.Generator().manual_seed(seed)
    if kind == FULL:
        return Layout.full(rows, length)
    numbers = torch.rand(rows, length, generator=generator)
    counts = torch.randint(1, length + 1, (rows,), generator=generator)
    if kind == PACKED:
        starts = numbers < 0.1
        starts[:, 0] = True
        return Layout.from_documents(torch.where(torch.arange(length) < counts[:, None], starts.cumsum(dim=1), 0))
    if kind == HOLES:
        real = numbers < 0.8
        real[:, 0] |= ~real.any(dim=1)
        return Layout(torch.where(real, real.cumsum(dim=1) - 1, 0), real.long(), packed=False)
    return Layout.from_lengths(counts.tolist(), length, "left" if kind == LEFT else "right")


@st.composite
def documents(draw: st.DrawFn, length: int) -> list[int]:
    """A row of document numbers: runs 1, 2, ... and padding at its end."""
    real = draw(st.just(length) | st.integers(1, length))
    row: list[int] = []
    while len(row) < real:
        row += [row[-1] + 1 if row else 1] * draw(st.integers(1, real - len(row)))
    return row + [0] * (length - real)


def whole(batch: int, length: int, padding: bool = False) -> Layout:
    """Unpadded rows of one document each, or nothing but padding."""
    layout = Layout.full(batch, length)
    return replace(layout, documents=torch.zeros_like(layout.documents), padded=True) if padding else layout


@st.composite
def cuts(draw: st.DrawFn, length: int) -> list[int]:
    """Ends of the pieces in which `length` columns are fed, the last one's included."""
    return [*sorted(draw(st.sets(st.integers(1, max(1, length - 1)), max_size=4)) - {length}), length]


def options(cls: type) -> st.SearchStrategy[dict[str, Any]]:
    """Options of a component class by its own schema; any of them may be left at its default; some may be refused."""
    fields, drawn = options_of(cls).model_fields, {name: st.sampled_from(found) for name, found in choices_of(cls).items()}
    required = {name: one for name, one in drawn.items() if fields[name].is_required()}
    return st.fixed_dictionaries(required, optional={name: one for name, one in drawn.items() if name not in required})


def choices_of(cls: type) -> dict[str, list[Any]]:
    """A few values of each option, the default first where there is one."""
    found = {}
    for name, field in options_of(cls).model_fields.items():
        default = None if field.default is PydanticUndefined else field.default
        values = _values(field.annotation, field.metadata, default)
        found[name] = values if field.is_required() else [default, *(value for value in values if value != default)]
    return found


def _values(annotation: Any, metadata: Sequence[Any], default: Any) -> list[Any]:
    """Values that an annotation allows: few, and near the default."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(args[0], [*metadata, *args[1:]], default)
    if origin in (Union, types.UnionType):
        return [value for arg in args for value in _values(arg, metadata, default)]
    if annotation == KernelName:  # those that train everywhere; the others are compared with them by a property of its own
        return ["auto", *(name for name, kernel in KERNELS.items() if kernel.trains_on is None)]
    if origin is Literal:
        return list(args)
    if annotation is type(None):
        return [None]
    if annotation is bool:
        return [False, True]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return list(annotation)
    if annotation in (int, float):
        return _numbers(annotation, metadata, default)
    if annotation is ComponentSpec:
        kind = next((one.interface for one in metadata if hasattr(one, "interface")), None)
        return [default] if kind is None else _usable(kind)
    return [default]


def _numbers(number: type, metadata: Sequence[Any], default: Any) -> list[Any]:
    """A few numbers that the annotation allows, the default first and then others near it."""
    limits = _flat(metadata)
    low = next((limit for one in limits for limit in (getattr(one, "ge", None), getattr(one, "gt", None))
                if limit is not None), None)
    high = next((limit for one in limits for limit in (getattr(one, "le", None), getattr(one, "lt", None))
                 if limit is not None), None)
    near = default or low or 1
    if number is int:
        found: list[Any] = [*range(int(low or 0), int(low or 0) + 9), near // 2, near + 1, 2 * near,
                            *([] if default else [50])]
    elif low is not None and high is not None:
        found = [low + part * (high - low) for part in (0.0, 0.25, 0.5, 0.75, 1.0)]
    else:
        found = [near, near * 1.5, near * 2, near * 4, near / 2]
    allowed: TypeAdapter[Any] = TypeAdapter(Annotated[(number, *metadata)] if metadata else number)  # type: ignore[arg-type]
    return [x for x in dict.fromkeys([*([] if default is None else [default]), *found]) if _accepts(allowed, x)]


def _accepts(adapter: TypeAdapter[Any], value: Any) -> bool:
    try:
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True


def _flat(metadata: Sequence[Any]) -> list[Any]:
    """Constraints, those inside of pydantic's `Field` too."""
    return [inner for one in metadata for inner in (one.metadata if hasattr(one, "metadata") else [one])]


def _usable(interface: type) -> list[ComponentSpec]:
    """The components that can fill a slot, with their defaults."""
    kind, registry = kind_of(interface), current_registry()
    return [resolve(kind, entry.qualified) for entry in registry.entries(kind)
            if entry.state is Availability.AVAILABLE and entry.distribution == "miniformer"]
