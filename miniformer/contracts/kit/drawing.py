"""Strategies of hypothesis: layouts that are small enough to reason about, and options by the component's own schema."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from functools import reduce
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

FULL, LEFT, RIGHT, HOLES, PACKED, MIXED = "full", "left", "right", "holes", "packed", "mixed"
LONG = 300
"""The largest number of columns in a long row: more than the blocks, chunks and windows that a component may use."""
JUST_OVER = (17, 33, 65, 129, 257)
"""Numbers of columns that leave one column for the last block, where blocks have 16, 32, 64, 128 or 256."""
seeds = st.integers(0, 2**16)


@st.composite
def lengths(draw: st.DrawFn, short: st.SearchStrategy[int], at_most: int = LONG) -> int:
    """Mostly a short length, and at times a long one, which may be one column over a multiple of usual block sizes."""
    long = st.sampled_from([n for n in JUST_OVER if n <= at_most]) | st.integers(17, at_most)
    return draw(long) if draw(st.sampled_from([False, False, True])) else draw(short)


@st.composite
def layouts(draw: st.DrawFn, kinds: Sequence[str] = (FULL, LEFT, RIGHT, HOLES, PACKED, MIXED), max_rows: int = 3,
            max_length: int = 7, rows: int | None = None, long: bool = False) -> Layout:
    """A layout in which every row has at least one token that is not padding.

    Args:
        kinds: where padding may stand, `packed`, or `mixed`: one row full, one packed and one padded, in any order.
        max_rows: the largest number of rows, but for mixed ones, which are three.
        max_length: the largest number of columns, but for long rows.
        rows: the number of rows; without it, it is drawn.
        long: whether a layout may have up to `LONG` columns; one in three then has at least 17.
    """
    kind = draw(st.sampled_from(list(kinds)))
    if rows is None:
        rows = 3 if kind == MIXED else draw(st.integers(1, max_rows))
    short = st.integers(min(2, max_length) if kind == MIXED else 1, max_length)
    length = draw(lengths(short) if long else short)
    if kind != MIXED:
        return draw(few_columns(kind, rows, length)) if length <= max_length else many_columns(kind, rows, length, draw(seeds))
    order = draw(st.permutations([FULL, PACKED, draw(st.sampled_from([LEFT, RIGHT, HOLES]))]))
    mixed = [draw(few_columns(order[n % 3], 1, length, true_to_kind=True)) if length <= max_length
             else many_columns(order[n % 3], 1, length, draw(seeds)) for n in range(rows)]
    return reduce(lambda above, below: above.stack_rows(below, length), mixed)


@st.composite
def few_columns(draw: st.DrawFn, kind: str, rows: int, length: int, true_to_kind: bool = False) -> Layout:
    """A layout of a kind, drawn column by column.

    With `true_to_kind`, a padded row has padding and a packed row two documents, where there are columns enough for it.
    """
    most = max(1, length - 1) if true_to_kind else length
    if kind == FULL:
        return Layout.full(rows, length)
    if kind == PACKED:
        numbers = [draw(documents(length, several=most < length)) for _ in range(rows)]
        layout = Layout.from_documents(torch.tensor(numbers))
        # the constructor assumes padding; code that builds a batch may know that there is none
        return replace(layout, padded=not bool(layout.real.all())) if draw(st.booleans()) else layout
    if kind == HOLES:  # as in a batch of prompts that is padded on the right, after new tokens were appended
        real = torch.tensor([draw(st.lists(st.booleans(), min_size=length, max_size=length)) for _ in range(rows)])
        real[:, 0] |= ~real.any(dim=1)
        real[:, most:] &= ~real.all(dim=1, keepdim=True)
        return Layout(torch.where(real, real.long().cumsum(dim=1) - 1, 0), real.long(), packed=False)
    return Layout.from_lengths(draw(st.lists(st.integers(1, most), min_size=rows, max_size=rows)), length,
                               "left" if kind == LEFT else "right")


def many_columns(kind: str, rows: int, length: int, seed: int) -> Layout:
    """A layout of a kind with many columns, made from one seed, since drawing them one by one would be slow."""
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
def documents(draw: st.DrawFn, length: int, several: bool = False) -> list[int]:
    """A row of document numbers: a run of 1, a run of 2, and so on, then padding. With `several`, there are at least two."""
    real = draw(st.just(length) | st.integers(1 + several, length))
    row = [1] * draw(st.integers(1, real - several))
    while len(row) < real:
        row += [row[-1] + 1] * draw(st.integers(1, real - len(row)))
    return row + [0] * (length - real)


def whole(batch: int, length: int, padding: bool = False) -> Layout:
    """Rows of one document each without padding, or with `padding`, rows of padding only."""
    layout = Layout.full(batch, length)
    return replace(layout, documents=torch.zeros_like(layout.documents), padded=True) if padding else layout


@st.composite
def cuts(draw: st.DrawFn, length: int) -> list[int]:
    """The ends of the pieces in which `length` columns are fed; the last one is `length`."""
    return [*sorted(draw(st.sets(st.integers(1, max(1, length - 1)), max_size=4)) - {length}), length]


def options(cls: type) -> st.SearchStrategy[dict[str, Any]]:
    """Options of a component class by its own schema. Any of them may be left at its default.

    Each value is valid by itself; the class may still refuse a combination.
    """
    fields = options_of(cls).model_fields
    required, optional = dict[str, st.SearchStrategy[Any]](), dict[str, st.SearchStrategy[Any]]()
    for name, values in choices_of(cls).items():
        strategies = required if fields[name].is_required() else optional
        strategies[name] = st.sampled_from(values)
    return st.fixed_dictionaries(required, optional=optional)


def choices_of(cls: type) -> dict[str, list[Any]]:
    """A few values of each option; the default comes first, if the option has one."""
    choices = {}
    for name, field in options_of(cls).model_fields.items():
        default = None if field.default is PydanticUndefined else field.default
        values = _values(field.annotation, field.metadata, default)
        choices[name] = values if field.is_required() else [default, *(value for value in values if value != default)]
    return choices


def _values(annotation: Any, metadata: Sequence[Any], default: Any) -> list[Any]:
    """A few values that an annotation allows, near the default."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(args[0], [*metadata, *args[1:]], default)
    if origin in (Union, types.UnionType):
        return [value for arg in args for value in _values(arg, metadata, default)]
    if annotation == KernelName:  # only those that train on every device; the property kernels-agree compares the others
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
        interface = next((constraint.interface for constraint in metadata if hasattr(constraint, "interface")), None)
        return [default] if interface is None else _built_in(interface)
    return [default]


def _numbers(number: type, metadata: Sequence[Any], default: Any) -> list[Any]:
    """A few numbers that the annotation allows: the default first, then others near it."""
    constraints = _flat(metadata)
    low, high = _bound(constraints, "ge", "gt"), _bound(constraints, "le", "lt")
    near = default or low or 1
    candidates: list[Any] = [] if default is None else [default]
    if number is int:
        first = int(low or 0)
        candidates += [*range(first, first + 9), near // 2, near + 1, 2 * near, *([] if default else [50])]
    elif low is not None and high is not None:
        candidates += [low + part * (high - low) for part in (0.0, 0.25, 0.5, 0.75, 1.0)]
    else:
        candidates += [near, near * 1.5, near * 2, near * 4, near / 2]
    allowed: TypeAdapter[Any] = TypeAdapter(Annotated[(number, *metadata)] if metadata else number)  # type: ignore[arg-type]
    return [value for value in dict.fromkeys(candidates) if _accepts(allowed, value)]


def _bound(constraints: Sequence[Any], inclusive: str, exclusive: str) -> Any:
    """The first bound among the constraints, by either name; None without a bound."""
    for constraint in constraints:
        for name in (inclusive, exclusive):
            if (bound := getattr(constraint, name, None)) is not None:
                return bound
    return None


def _accepts(adapter: TypeAdapter[Any], value: Any) -> bool:
    try:
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True


def _flat(metadata: Sequence[Any]) -> list[Any]:
    """The constraints, including those inside pydantic's `Field`."""
    return [inner for outer in metadata for inner in (outer.metadata if hasattr(outer, "metadata") else [outer])]


def _built_in(interface: type) -> list[ComponentSpec]:
    """The built-in components that can fill a slot, with their default options."""
    kind, registry = kind_of(interface), current_registry()
    return [resolve(kind, entry.qualified) for entry in registry.entries(kind)
            if entry.state is Availability.AVAILABLE and entry.distribution == "miniformer"]
