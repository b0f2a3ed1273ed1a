"""Covering arrays: few rows in which every pair of choices occurs."""

from itertools import combinations, product

from allpairspy import AllPairs


def covering(choices, possible):
    """Rows, each a value for every choice, in which each pair of values occurs that can.

    A row that cannot be is left out, and what else was in it gets rows of its own.

    Args:
        choices: the values of each choice, by name.
        possible: whether a row can be, which is given as a dict of some or all choices.
    """
    whole = lambda row: dict(zip(choices, row, strict=True))  # noqa: E731
    rows = [row for row in map(tuple, AllPairs(list(choices.values()))) if possible(whole(row))]
    for (one, ones), (other, others) in combinations(choices.items(), 2):
        for a, b in product(ones, others):
            if not any((whole(row)[one], whole(row)[other]) == (a, b) for row in rows) and possible({one: a, other: b}):
                rest = product(*({one: [a], other: [b]}.get(name, values) for name, values in choices.items()))
                rows.append(next(row for row in rest if possible(whole(row))))
    return rows
