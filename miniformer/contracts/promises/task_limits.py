"""Promises of a task about limits: how long a batch is, and what examples teach that are cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

import torch
from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor

from miniformer.contracts.kit.case import Case, require, seeded
from miniformer.contracts.kit.properties import contract
from miniformer.contracts.kit.task_harness import (
    CUT,
    LIMIT,
    TaskHarness,
    loss_tolerance,
    plain_example,
    require_equal_data,
    tensors_of,
)
from miniformer.data.packing import PackedRows
from miniformer.kernel.interfaces import Head
from miniformer.kernel.layout import Layout
from miniformer.kernel.task import Batch, Example, LossTerm, Task, shortened

LONGEST, TOO_SHORT = 96, 4
"""The largest limit that is drawn, and the smallest that no task may refuse."""


@contract("task", examples=0.5)
def keeps_to_the_limit(case: Case) -> None:
    """The inputs and the source of a batch are no longer than the limit that examples were cut to, with labels and without.

    In training: in the middle of a run, the model refuses a text that is longer than its positions.
    """
    harness = TaskHarness.drawn(case)
    task, record = harness.task, harness.draw_record(case)
    limit = _limit(case, task.encode(record, harness.tokenizer))
    try:
        examples = list(task.examples(record, harness.tokenizer, None if task.packs else limit))
    except ValueError:
        if limit >= TOO_SHORT:
            raise
        reject()
    require(bool(examples), "a record has no example")
    if task.packs:
        examples = [PackedRows([task.cut(example, CUT) for example in examples], limit)[0]]
    batches = [task.collate(examples[:4])]
    if not task.packs and task.Input is not None:
        batches.append(task.collate([shortened(task, task.question(record, harness.tokenizer), limit)]))
    for batch, made in zip(batches, ("", " of a question"), strict=False):
        for name, layout in (("inputs", batch.layout), ("source", batch.source and batch.source.layout)):
            require(layout is None or layout.shape[1] <= limit,
                    f"{name}{made} of {layout and layout.shape[1]} tokens; at most {limit}")


def _limit(case: Case, example: Example) -> int:
    """Draw a limit from 1 to the example's length and one; many are next to the length, or to that of its source or target."""
    ends = sorted({min(LONGEST, 1 + len(tokens)) for tokens in (example.tokens, example.source) if tokens is not None})
    near = [st.integers(max(1, end - 2), end) for end in ends]
    return int(case.draw("limit", st.one_of(st.integers(1, ends[-1]), *near)))


@contract("task", examples=0.5)
def a_cut_keeps_the_targets(case: Case) -> None:
    """An example that fits the limit, to the last token, is not changed by cutting it; of a source and a target, the one that
    fits keeps its length. In one that does not fit, what is kept has the targets that it has in the whole one: its losses are
    the same, no other token takes a loss over, and where the text was cut off, no token is predicted that is not the next.

    In training: labels of other words are learnt for long texts, or texts end where they were cut.
    """
    harness = TaskHarness.drawn(case)
    task, record = harness.task, harness.draw_record(case)
    whole = task.encode(record, harness.tokenizer)
    if task.packs:  # its rows are cut from a stream of texts, so any length will do
        counts = whole.byte_counts
        whole = replace(whole, tokens=whole.tokens[:CUT], byte_counts=None if counts is None else counts[:CUT])
    limit, before = _limit(case, whole), plain_example(whole)
    try:
        cut = task.cut(whole, limit)
    except ValueError:
        if limit >= TOO_SHORT:
            raise
        reject()
    require(plain_example(whole) == before, "cutting an example changes the example")
    require(len(cut.tokens) > 0, f"cut to {limit}, an example of {len(whole.tokens)} tokens has none left")
    whole_batch, batch = _collated(task, whole), _collated(task, cut)
    size = len(whole.tokens) if task.packs else max(layout.shape[1] for layout in _layouts(whole_batch))
    if limit >= size:
        _require_same(batch, whole_batch, f"an example of {size} tokens, cut to {limit}")
        if not task.packs and type(task).examples is Task.examples:
            made = task.examples(record, harness.tokenizer, limit)
            _require_same(_collated(task, made[0]), whole_batch, f"the example of a record of {size} tokens, made for {limit}")
            require(not made[0].uncut, f"an example of {size} tokens, made for {limit}, says that {made[0].uncut} were cut")
        return
    for what, one, other in zip(("inputs", "source"), _layouts(batch), _layouts(whole_batch), strict=False):
        length, kept = other.shape[1], one.shape[1]
        require(task.packs or length > limit or kept == length,
                f"its {what} of {length} tokens, which fit the limit {limit}, are cut to {kept} where others do not fit")
    if len(batch.inputs) == 1 and not _is_drawn(task, whole):
        _require_same_losses(case, harness, batch, whole_batch)


def _collated(task: Task, example: Example) -> Batch:
    """The batch of one example."""
    return task.collate([PackedRows([example], LIMIT)[0] if task.packs else example])


def _layouts(batch: Batch) -> list[Layout]:
    return [batch.layout, *([batch.source.layout] if batch.source else [])]


def _is_drawn(task: Task, example: Example) -> bool:
    """Whether the targets of an example are drawn, as hidden tokens are."""
    row = PackedRows([example], LIMIT)[0] if task.packs else example
    draws = [tensors_of(task.collate([replace(row, draw=draw)])) for draw in range(6)]
    return any(not torch.equal(value, draw[name]) for draw in draws for name, value in draws[0].items())


def _require_same(actual: Batch, expected: Batch, what: str) -> None:
    tensors, others = tensors_of(expected), tensors_of(actual)
    require(tensors.keys() == others.keys(), f"{what}, has {', '.join(others)}; whole it has {', '.join(tensors)}")
    different = [name for name, value in tensors.items() if not torch.equal(value, others[name])]
    require(not different, f"{what}, has other {', '.join(different)} than the whole one")


def _require_same_losses(case: Case, harness: TaskHarness, batch: Batch, whole: Batch) -> None:
    """Require that the tokens that a cut example keeps have the losses that they have in the whole one.

    Which loss a token has is seen by the gradient of its hidden state. Where a row has one loss, all hidden states are equal,
    so that only its label counts.
    """
    task, (_, head) = harness.task, harness.read(batch)
    with seeded(case.draw("seed", st.integers(0, 2**16))):
        hidden = torch.randn(1, whole.inputs.shape[1], harness.model.config.d_model, dtype=torch.float64)
        kept = torch.randn(1, batch.inputs.shape[1], hidden.shape[-1], dtype=torch.float64)
    term, gradient = loss_and_gradient(task, hidden, head, whole)
    tolerance = loss_tolerance(term.sum) * max(1.0, float(gradient.abs().max()))
    if not _by_token(task, hidden, head, whole, gradient, tolerance):
        _require_same_label(task, hidden[:, :1], head, batch, whole)
        return
    columns, cut_columns = (_real_columns(each) for each in (whole, batch))
    found = SequenceMatcher(None, columns, cut_columns, autojunk=False).find_longest_match()
    size, last = found.size, found.b + found.size - 1
    block = cut_columns[found.b:found.b + size]
    places = [n for n in range(len(columns) - size + 1) if columns[n:n + size] == block]
    why = []
    for place in places:
        kept[:, found.b:found.b + size] = hidden[:, place:place + size]
        _, of_cut = loss_and_gradient(task, kept, head, batch)
        change = of_cut[0, found.b:found.b + size] - gradient[0, place:place + size]
        differs = change.abs().amax(dim=-1) > tolerance
        if size and not of_cut[0, last].any():
            differs[-1] = False  # what followed the last token may be cut off, and then nothing is predicted there
        why += [f"the loss at token {int(differs.nonzero()[0])} of the {size} that are kept from token {place} on is not "
                "that of the whole example"] if bool(differs.any()) else []
    require(len(why) < len(places) or not places, why[0] if why else "")
    if not (task.causal or task.has_source):  # of next tokens, that after a cut is another
        beside = [t for t in range(len(cut_columns)) if not found.b <= t <= last]
        whole_states, states = (hidden, gradient, columns), (kept, cut_columns)
        _require_losses_of_the_same_tokens(task, whole_states, states, head, batch, beside, tolerance)


def _require_losses_of_the_same_tokens(task: Task, whole: tuple[Tensor, Tensor, list[Any]], cut: tuple[Tensor, list[Any]],
                                       head: Head, batch: Batch, beside: Sequence[int], tolerance: float) -> None:
    """Require that a kept token that stands apart, as one of the end of a text may, has a loss that it has in the whole one.

    Args:
        task, head, batch, tolerance: the cut example's batch, and what its losses are computed with.
        whole: of the whole example: hidden states, their gradient, and tokens.
        cut: of the cut one: hidden states and tokens.
        beside: the columns of the kept tokens that stand apart.
    """
    (hidden, gradient, columns), (kept, cut_columns) = whole, cut
    _, of_cut = loss_and_gradient(task, kept, head, batch)
    places = {t: [n for n, column in enumerate(columns) if column == cut_columns[t]]
              for t in beside if bool((of_cut[0, t].abs() > tolerance).any())}
    for attempt in range(max(map(len, places.values()), default=0)):
        tried = {t: where[attempt % len(where)] for t, where in places.items() if where}
        for t, place in tried.items():
            kept[:, t] = hidden[:, place]
        _, of_cut = loss_and_gradient(task, kept, head, batch)
        right = [t for t, place in tried.items() if float((of_cut[0, t] - gradient[0, place]).abs().max()) <= tolerance]
        places = {t: where for t, where in places.items() if t not in right}
    require(not places, f"token {min(places, default=0)} of the {len(cut_columns)} that are kept has a loss that it has "
                        "nowhere in the whole example")


def loss_and_gradient(task: Task, hidden: Tensor, head: Head, batch: Batch) -> tuple[LossTerm, Tensor]:
    """The loss, and its gradient for the hidden states; zeros if it does not depend on them."""
    hidden = hidden.clone().requires_grad_()
    term = task.loss(hidden, head, batch)
    if not term.sum.requires_grad:
        return term, torch.zeros_like(hidden)
    gradient, = torch.autograd.grad(term.sum, hidden, allow_unused=True)
    return LossTerm(*(part.detach() for part in term)), torch.zeros_like(hidden) if gradient is None else gradient


def _by_token(task: Task, hidden: Tensor, head: Head, batch: Batch, gradient: Tensor, tolerance: float) -> bool:
    """Whether each of several tokens has a loss of its own: its gradient changes with its own hidden state and no other."""
    reached = gradient[0].abs().amax(dim=-1) > 0
    if int(reached.sum()) < 2:
        return False
    for column in (int(reached.nonzero()[0]), int(reached.nonzero()[-1])):
        changed, others = hidden.clone(), torch.arange(hidden.shape[1]) != column
        changed[:, column] += 1.0
        _, again = loss_and_gradient(task, changed, head, batch)
        change = (again - gradient)[0].abs().amax(dim=-1)
        if float(change[others].max()) > tolerance or float(change[column]) <= tolerance:
            return False
    return True


def _require_same_label(task: Task, hidden: Tensor, head: Head, batch: Batch, whole: Batch) -> None:
    """Require the loss of the whole example where all hidden states are equal, if the number of its tokens does not matter."""
    def loss(batch: Batch) -> LossTerm:
        return loss_and_gradient(task, hidden.expand(-1, batch.inputs.shape[1], -1), head, batch)[0]

    width, length = batch.inputs.shape[1], whole.inputs.shape[1]
    targets = {name: value[:, :width] if value.ndim > 1 and value.shape[1] == length else value
               for name, value in whole.targets.items()}
    expected, actual = loss(whole), loss(batch)
    shorter = loss(Batch(whole.inputs[:, :width], Layout.full(1, width), targets, whole.source))
    tolerance = loss_tolerance(expected.sum)
    weights = {float(term.weight) for term in (shorter, expected, actual)}
    if len(weights) == 1 and math.isclose(float(shorter.sum), float(expected.sum), rel_tol=tolerance, abs_tol=tolerance):
        require_equal_data(float(actual.sum), float(expected.sum), "its label's loss, cut and whole", tolerance)


def _real_columns(batch: Batch) -> list[Any]:
    """The tokens or features of the one row, without padding."""
    return [tuple(column) if isinstance(column, list) else column for column in batch.inputs[0][batch.layout.real[0]].tolist()]
