"""Tables of weights: which tensors of transformers and of miniformer hold the same numbers, and how they are laid out.

miniformer has keys and values, or gate and up, in one matrix. transformers has them in two, or queries, keys and values in one
matrix that is transposed (GPT-2). So a row of a table joins the tensors of one side and splits them for the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from miniformer.kernel import UserError

Names = str | tuple[str, ...]
Table = dict[Names, Names]
PARTS = ("weight", "bias")
MAX_LISTED = 8
"""How many problems an error lists."""


@dataclass(frozen=True)
class Row:
    """Tensors of both sides that hold the same numbers, joined along their first dimension.

    `{i}` in a name stands for the number of a layer, `{p}` for `weight` and `bias`. A row whose tensors a model does not have
    is ignored.

    Attributes:
        ours, theirs: names in the order in which the tensors are joined; tensors of transformers have equal sizes.
        transposed: whether matrices of transformers are `[in, out]`.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transposed: bool = False


def rows(table: Table, *, transposed: Iterable[str] = ()) -> tuple[Row, ...]:
    """Rows from a table of our names and theirs; `transposed` lists names of theirs."""
    def names(value: Names) -> tuple[str, ...]:
        return (value,) if isinstance(value, str) else value

    transposed_names = set(transposed)
    return tuple(Row(names(ours), names(theirs), bool(transposed_names & set(names(theirs))))
                 for ours, theirs in table.items())


def expand(table: Sequence[Row], present: Mapping[str, Tensor], n_layers: int) -> list[Row]:
    """The rows for a model that has the tensors `present`, one for each layer and each of weight and bias."""
    expanded = []
    for row in table:
        text = "".join(row.ours)
        for i in range(n_layers if "{i}" in text else 1):
            for p in PARTS if "{p}" in text else PARTS[:1]:
                ours, theirs = (tuple(name.format(i=i, p=p) for name in side) for side in (row.ours, row.theirs))
                if all(name in present for name in ours):
                    expanded.append(Row(ours, theirs, row.transposed))
    return expanded


def to_theirs(table: Sequence[Row], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of transformers, from expanded rows and the tensors of miniformer."""
    tensors = {}
    for row in table:
        joined = torch.cat([ours[name] for name in row.ours])
        for name, part in zip(row.theirs, joined.chunk(len(row.theirs)), strict=True):
            tensors[name] = (part.T if row.transposed and part.ndim == 2 else part).contiguous()
    return tensors


def to_ours(table: Sequence[Row], theirs: Mapping[str, Tensor], like: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of miniformer, from expanded rows and the tensors of transformers.

    Args:
        table: expanded rows, for all tensors of `like`.
        theirs: the tensors of transformers by name.
        like: tensors of the right shapes by their names in miniformer.
        where: the file, for messages.

    Raises:
        UserError: tensors are missing, unknown or of another shape; the message names both shapes.
    """
    expected = {name: tensor for row in table for name, tensor in to_theirs([row], like).items()}
    problems = [f"missing in the file: {name}" for name in expected if name not in theirs]
    problems += [f"unknown to the architecture: {name} {list(theirs[name].shape)}" for name in theirs if name not in expected]
    problems += [f"{name}: {list(theirs[name].shape)} in the file, {list(tensor.shape)} by config.json"
                 for name, tensor in expected.items() if name in theirs and theirs[name].shape != tensor.shape]
    if problems:
        more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
        raise UserError("\n  ".join([f"{where}: the weights do not fit config.json:", *problems[:MAX_LISTED], *more]))
    tensors = {}
    for row in table:
        pieces = [theirs[name].T if row.transposed and theirs[name].ndim == 2 else theirs[name] for name in row.theirs]
        parts = torch.split(torch.cat(pieces), [like[name].shape[0] for name in row.ours])
        tensors.update({name: part.contiguous() for name, part in zip(row.ours, parts, strict=True)})
    return tensors
