"""Covering arrays: few rows in which every pair of choices occurs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

from allpairspy import AllPairs

Row = tuple[int, ...]
"""For each choice the index of its value."""
Pair = tuple[tuple[int, int], tuple[int, int]]
"""Two choices, each with the index of its value."""


def covering(choices: Mapping[str, Sequence[Any]], possible: Callable[[dict[str, Any]], bool]) -> list[tuple[Any, ...]]:
    """Rows, each a value for every choice, in which each pair of values occurs that can.

    A row that cannot be is left out, and what else was in it gets rows of its own.

    Args:
        choices: the values of each choice, by name.
        possible: whether a row can be, which is given as a dict of some or all choices. It may be slow: a pair that is
            refused by itself is learnt, and no other row with it is tried.
    """
    names, sizes = list(choices), [range(len(values)) for values in choices.values()]
    refused: set[Pair] = set()

    def named(cells: Sequence[tuple[int, int]]) -> dict[str, Any]:
        return {names[choice]: choices[names[choice]][value] for choice, value in cells}

    def allowed(row: Row) -> bool:
        cells = list(enumerate(row))
        pairs = list(combinations(cells, 2))
        if not refused.isdisjoint(pairs):
            return False
        if possible(named(cells)):
            return True
        refused.update(pair for pair in pairs if not possible(named(pair)))
        return False

    def rows_with(pair: Pair) -> Iterator[Row]:
        fixed = dict(pair)
        return product(*([fixed[choice]] if choice in fixed else values for choice, values in enumerate(sizes)))

    rows = [row for row in map(tuple, AllPairs([list(values) for values in sizes])) if allowed(row)]
    covered = {pair for row in rows for pair in combinations(enumerate(row), 2)}
    for first, second in combinations(range(len(sizes)), 2):
        for pair in product([(first, value) for value in sizes[first]], [(second, value) for value in sizes[second]]):
            if pair not in covered and pair not in refused and possible(named(pair)):
                rows.append(next(row for row in rows_with(pair) if allowed(row)))
                covered.update(combinations(enumerate(rows[-1]), 2))
    return [tuple(named(list(enumerate(row))).values()) for row in rows]
