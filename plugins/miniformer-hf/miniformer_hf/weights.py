"""The weights of both sides: which tensors hold the same numbers, and how they are laid out.

miniformer keeps keys and values, or gate and up, in one matrix; transformers keeps them apart, or all three of queries, keys
and values together, or transposed (GPT-2). So a row joins its tensors on one side and cuts them up on the other.
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
TOLD = 8


@dataclass(frozen=True)
class Row:
    """Tensors of both sides that hold the same numbers, joined along their first dimension.

    `{i}` in a name stands for each layer, `{p}` for weight and bias. A row whose tensors the model has not is passed over.

    Attributes:
        ours, theirs: names, in the order in which they are joined; theirs are of equal size.
        transposed: their matrices are `[in, out]`.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transposed: bool = False


def rows(table: Table, *, transposed: Iterable[str] = ()) -> tuple[Row, ...]:
    """Rows from a table of ours and theirs; `transposed` are names of theirs."""
    def names(value: Names) -> tuple[str, ...]:
        return (value,) if isinstance(value, str) else value

    turned = set(transposed)
    return tuple(Row(names(ours), names(theirs), bool(turned & set(names(theirs)))) for ours, theirs in table.items())


def expand(table: Sequence[Row], present: Mapping[str, Tensor], n_layers: int) -> list[Row]:
    """The rows of a model with the tensors `present`, one for each layer and part."""
    found = []
    for row in table:
        text = "".join(row.ours)
        for i in range(n_layers if "{i}" in text else 1):
            for p in PARTS if "{p}" in text else PARTS[:1]:
                ours, theirs = (tuple(name.format(i=i, p=p) for name in side) for side in (row.ours, row.theirs))
                one = Row(ours, theirs, row.transposed)
                if all(name in present for name in one.ours):
                    found.append(one)
    return found


def to_theirs(table: Sequence[Row], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors, from expanded rows and ours."""
    found = {}
    for row in table:
        joined = torch.cat([ours[name] for name in row.ours])
        for name, part in zip(row.theirs, joined.chunk(len(row.theirs)), strict=True):
            found[name] = (part.T if row.transposed and part.ndim == 2 else part).contiguous()
    return found


def to_ours(table: Sequence[Row], theirs: Mapping[str, Tensor], like: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Our tensors, from expanded rows and theirs.

    Args:
        table: rows for each tensor of `like`.
        theirs: tensors by name.
        like: tensors of the right shapes by our names.
        where: the file, for errors.

    Raises:
        UserError: tensors are missing, unknown or of another shape, told in both directions.
    """
    expected = {name: tensor for row in table for name, tensor in to_theirs([row], like).items()}
    problems = [f"missing in the file: {name}" for name in expected if name not in theirs]
    problems += [f"unknown to the architecture: {name} {list(theirs[name].shape)}" for name in theirs if name not in expected]
    problems += [f"{name}: {list(theirs[name].shape)} in the file, {list(tensor.shape)} by config.json"
                 for name, tensor in expected.items() if name in theirs and theirs[name].shape != tensor.shape]
    if problems:
        more = [f"and {len(problems) - TOLD} more"] if len(problems) > TOLD else []
        raise UserError("\n  ".join([f"{where}: the weights do not fit config.json:", *problems[:TOLD], *more]))
    found = {}
    for row in table:
        turned = [theirs[name].T if row.transposed and theirs[name].ndim == 2 else theirs[name] for name in row.theirs]
        parts = torch.split(torch.cat(turned), [like[name].shape[0] for name in row.ours])
        found.update({name: part.contiguous() for name, part in zip(row.ours, parts, strict=True)})
    return found
