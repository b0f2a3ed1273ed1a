"""Attentions with states of many designs. Those whose state has one fault say what finds it; the others are correct."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from miniformer.kernel import Attention, State, StateError, Window
from miniformer.kernel.layout import latest

from .attention import Cache, Plain, Still


class Concatenating(Plain):
    """Correct: its state is two tensors that are concatenated with each call's; it has no capacity."""

    def init_state(self, batch, capacity):
        return Concatenated()


class Concatenated(State):
    """Keys and values as they come; no tensor before the first."""

    def __init__(self):
        self.pair = None

    @property
    def length(self):
        return 0 if self.pair is None else self.pair[0].shape[2]

    @property
    def nbytes(self):
        return 0 if self.pair is None else sum(one.nbytes for one in self.pair)

    def append(self, k, v):
        self.pair = (k, v) if self.pair is None else tuple(torch.cat(two, dim=2) for two in zip(self.pair, (k, v)))
        return self.pair

    def reorder(self, index):
        self.pair = tuple(one[index] for one in self.pair)

    def truncate(self, length):
        self.pair = tuple(one[:, :, :length] for one in self.pair) if length else None


class Doubled(Cache):
    """Takes memory when it is needed, at least twice as much as before; the capacity is a bound."""

    def __init__(self, batch, heads, capacity, width, dtype):
        super().__init__(batch, heads, 0, width, dtype)
        self.capacity = capacity

    def append(self, k, v):
        if (needed := self.columns + k.shape[2]) > self.capacity:
            raise StateError("it is full")
        if needed > (room := self.k.shape[2]):
            self.k, self.v = (latest(one.flip(2), 2, max(needed, 2 * room)).flip(2) for one in (self.k, self.v))
        return super().append(k, v)

    def join(self, other, columns, capacity):
        super().join(other, columns, columns)
        self.capacity = capacity

    def as_static(self, column, columns):
        if columns > (room := self.k.shape[2]):
            self.k, self.v = (latest(one.flip(2), 2, columns).flip(2) for one in (self.k, self.v))
        assert room <= columns or self.k.shape[2] == room
        return super().as_static(column, columns)


class Doubling(Plain):
    """Correct: buffers that grow as they are fed."""

    remembers = Doubled


class Pages:
    """Pages `[H, P, E]` of keys and values, which rows of a batch may share until one of them writes."""

    size = 4

    def __init__(self, rows):
        self.of_row = [[] for _ in range(rows)]

    def write(self, row, column, k, v):
        """Put one column of a row into its page, which is copied before if others read it too."""
        pages, number = self.of_row[row], column // self.size
        if number == len(pages):
            pages.append(torch.zeros(2, k.shape[0], self.size, k.shape[1], dtype=k.dtype))
        elif sum(page is pages[number] for others in self.of_row for page in others) > 1:
            pages[number] = pages[number].clone()
        pages[number][0, :, column % self.size], pages[number][1, :, column % self.size] = k, v


class Paged(State):
    """A table of pages for each row. Pages are taken as the text grows, and shared by rows that are repeated."""

    joins = True
    table: ClassVar[type[Pages]] = Pages

    def __init__(self, batch, heads, capacity, width, dtype):
        self.pages, self.capacity, self.columns = self.table(batch), capacity, 0

    @property
    def length(self):
        return self.columns

    @property
    def nbytes(self):
        return sum({id(page): page.nbytes for pages in self.pages.of_row for page in pages}.values())

    def append(self, k, v):
        if self.columns + k.shape[2] > self.capacity:
            raise StateError("no page is left")
        for row in range(len(k)):
            for t in range(k.shape[2]):
                self.pages.write(row, self.columns + t, k[row, :, t], v[row, :, t])
        self.columns += k.shape[2]
        return torch.stack([torch.cat(pages, dim=2)[:, :, :self.columns] for pages in self.pages.of_row], dim=1)

    def reorder(self, index):
        self.pages.of_row = [list(self.pages.of_row[i]) for i in index.tolist()]

    def truncate(self, length):
        self.columns = min(length, self.columns)
        for pages in self.pages.of_row:
            del pages[-(-self.columns // Pages.size):]

    def join(self, other, columns, capacity):
        rows = [latest(torch.cat(pages, dim=2)[:, :, :state.columns], 2, columns)
                for state in (self, other) for pages in state.pages.of_row]
        self.pages, self.capacity = self.table(len(rows)), capacity
        for row, (k, v) in enumerate(rows):
            for t in range(columns):
                self.pages.write(row, t, k[:, t], v[:, t])
        self.columns = columns


class PagedAttention(Plain):
    """Correct: pages that repeated rows share until they are written to."""

    remembers = Paged


class SharedForGood(Pages):
    def write(self, row, column, k, v):
        number = column // self.size
        pages = self.of_row[row]
        if number < len(pages):
            pages[number][0, :, column % self.size], pages[number][1, :, column % self.size] = k, v
        else:
            super().write(row, column, k, v)


class PagedForGood(Paged):
    table = SharedForGood


class WritesIntoSharedPages(Plain):
    """Rows that were repeated go on writing into one page."""

    caught_by = "any-operations-go-on"

    remembers = PagedForGood


class Adopting(Paged):
    def join(self, other, columns, capacity):
        rows = len(self.pages.of_row)
        super().join(other, columns, capacity)
        if other.columns == columns:
            self.pages.of_row[rows:] = [list(pages) for pages in other.pages.of_row]


class JoinsWithoutCopying(Plain):
    """Rows that join are still in the pages of the state that they come from."""

    caught_by = "any-operations-go-on"

    remembers = Adopting


class Deferred(Cache):
    """Notes how its rows are reordered, and moves them when the next columns come."""

    pending = None

    def reorder(self, index):
        self.pending = self.after(self.pending, index)

    def after(self, pending, index):
        return index if pending is None else pending[index]

    def move(self):
        if self.pending is not None:
            self.k, self.v, self.pending = self.k[self.pending], self.v[self.pending], None

    def append(self, k, v):
        self.move()
        return super().append(k, v)

    def as_static(self, column, columns):
        self.move()
        return super().as_static(column, columns)

    def join(self, other, columns, capacity):
        self.move()
        other.move()
        super().join(other, columns, capacity)

    @property
    def nbytes(self):
        return self.k.nbytes + self.v.nbytes + (0 if self.pending is None else self.pending.nbytes)


class DefersReordering(Plain):
    """Correct: one move of the rows for any number of reorderings."""

    remembers = Deferred


class LatestOnly(Deferred):
    def after(self, pending, index):
        return index


class ForgetsTheFirstOfTwoReorderings(Plain):
    """A second reordering before the next column replaces the first."""

    caught_by = "any-operations-go-on"

    remembers = LatestOnly


class MovedWhereCountsDiffer(Cache):
    def reorder(self, index):
        if len(index) != len(self.k):
            super().reorder(index)


class ReordersOnlyWhereRowsLeave(Plain):
    """Takes a batch that keeps its number of rows for one that keeps its rows."""

    caught_by = "any-operations-go-on"

    remembers = MovedWhereCountsDiffer


class Tight(Cache):
    def reorder(self, index):
        self.k, self.v = self.k[index, :, :self.columns].clone(), self.v[index, :, :self.columns].clone()


class LosesItsRoomWhenReordered(Plain):
    """After rows are reordered, nothing more fits."""

    caught_by = "any-operations-go-on"

    remembers = Tight


class Regretful(Cache):
    """Undoes a cut by what it kept of the time before, whose rows were in another order."""

    before = None

    def append(self, k, v):
        self.before = (self.k.clone(), self.v.clone())
        return super().append(k, v)

    def truncate(self, length):
        if length < self.columns and self.before is not None and len(self.before[0]) == len(self.k):
            self.k, self.v = (one.clone() for one in self.before)
        self.before = None
        super().truncate(length)

    @property
    def nbytes(self):
        return super().nbytes + (0 if self.before is None else sum(one.nbytes for one in self.before))


class CutsBackToTheOldOrder(Plain):
    """After a reordering and a cut, rows are in the order that they had."""

    caught_by = "any-operations-go-on"

    remembers = Regretful


class HalfWritten(Cache):
    def append(self, k, v):
        start, room = self.columns, self.k.shape[2] - self.columns
        if k.shape[2] > room > 0:
            self.k[:, :, :room] = k[:, :, :room]
        self.columns = start
        return super().append(k, v)


class WritesBeforeItRefuses(Plain):
    """Columns that do not fit are refused after some of them have overwritten the first."""

    caught_by = "any-operations-go-on"

    remembers = HalfWritten


class StillAsOnce(Cache):
    view = None

    def as_static(self, column, columns):
        if self.view is None or self.view.k.shape[2] != columns or len(self.view.k) != len(self.k):
            self.view = Still(self.k[:, :, :columns], self.v[:, :, :columns], column)
        self.view.column = column
        return self.view


class KeepsAStaleStaticView(Plain):
    """A view for static steps is made once, and shows tensors that a reordering has replaced."""

    caught_by = "any-operations-go-on"

    remembers = StillAsOnce


class SizedOnce(Cache):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.bytes = self.k.nbytes + self.v.nbytes

    @property
    def nbytes(self):
        return self.bytes


class TellsTheSizeItHad(Plain):
    """Counts its bytes when it is made, and not after rows have left."""

    caught_by = "any-operations-go-on"

    remembers = SizedOnce


class Hoarding(Concatenated):
    """Keeps all that it ever concatenated."""

    def __init__(self):
        super().__init__()
        self.all = []

    @property
    def nbytes(self):
        return sum({id(one): one.nbytes for pair in self.all for one in pair}.values())

    def append(self, k, v):
        pair = super().append(k, v)
        self.all.append(pair)
        return pair


class NeverFreesAColumn(Plain):
    """Its memory grows with the square of a text's length."""

    caught_by = "a-state-tells-its-size"

    def init_state(self, batch, capacity):
        return Hoarding()


class Averages(State):
    """The running sum of each row, `[B, D]`, of any number of columns, and the document that it belongs to."""

    truncates = False
    joins = True
    grows = True

    def __init__(self, batch, width, dtype):
        self.sums, self.documents, self.columns = torch.zeros(batch, width, dtype=dtype), torch.zeros(batch).long(), 0

    @property
    def length(self):
        return self.columns

    @property
    def nbytes(self):
        return self.sums.nbytes + self.documents.nbytes

    def reorder(self, index):
        self.sums, self.documents = self.sums[index], self.documents[index]

    def truncate(self, length):
        if length < self.columns:
            raise StateError("a sum does not know its parts")

    def grow(self, capacity):
        pass

    def join(self, other, columns, capacity):
        self.sums, self.documents = torch.cat([self.sums, other.sums]), torch.cat([self.documents, other.documents])
        self.columns = columns


class Recurrent(Attention):
    """Correct: a sum of earlier tokens that decays, one column after the other; its state has a fixed size."""

    kind: ClassVar[str] = "attention"
    causal_only: ClassVar[bool] = True
    applies: ClassVar[frozenset[str]] = frozenset()
    masked: ClassVar[bool] = False
    keeps: ClassVar[type[Averages]] = Averages

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)
        self.value, self.gate, self.out = (nn.Linear(d_model, d_model) for _ in range(3))

    def init_state(self, batch, capacity):
        return self.keeps(batch, self.d_model, self.value.weight.dtype)

    def forward(self, x, context, state=None):
        values, documents, outputs = self.value(x), context.layout.documents, []
        before = Averages(len(x), self.d_model, values.dtype) if state is None else state
        sums, current = before.sums.to(values), before.documents.to(x.device)
        for t in range(x.shape[1]):
            column, real = documents[:, t], (documents[:, t] != 0)[:, None]
            added = torch.where((column == current)[:, None], 0.97 * sums, 0) + values[:, t]
            sums, current = torch.where(real, added, sums), torch.where(real[:, 0], column, current)
            outputs.append(sums)
        if state is not None:
            state.sums, state.documents, state.columns = sums, current, state.columns + x.shape[1]
        return self.out(torch.stack(outputs, dim=1) * self.gate(x).sigmoid())


class OneForAll(Averages):
    def reorder(self, index):
        self.sums, self.documents = self.sums[index], self.documents[:1].expand(len(index)).clone()


class ReordersSumsOnly(Recurrent):
    """The documents that its sums belong to are those of the first row after a reordering."""

    caught_by = "any-operations-go-on"

    keeps = OneForAll


class Ring(State):
    """The latest W - 1 tokens of each row, padding left out: keys and values `[2, B, H, W, E]`, and where they sit."""

    truncates = False

    def __init__(self, batch, heads, window, width, dtype):
        self.held = torch.zeros(2, batch, heads, window - 1, width, dtype=dtype)
        self.places = torch.zeros(2, batch, window - 1, dtype=torch.long)
        self.columns = 0

    @property
    def length(self):
        return self.columns

    @property
    def nbytes(self):
        return self.held.nbytes + self.places.nbytes

    def append(self, kv, places):
        """All columns that the queries may see, with their positions and documents."""
        kv, places = torch.cat([self.held, kv], dim=3), torch.cat([self.places, places], dim=2)
        slots = self.places.shape[2]
        newest = (places[1] != 0).long().argsort(dim=1, stable=True)[:, places.shape[2] - slots:]
        self.held = kv.take_along_dim(newest[None, :, None, :, None], dim=3)
        self.places = places.take_along_dim(newest[None], dim=2)
        self.columns += kv.shape[3] - slots
        return kv, places

    def reorder(self, index):
        self.held, self.places = self.held[:, index], self.places[:, index]

    def truncate(self, length):
        if length < self.columns:
            raise StateError("older tokens are gone")


class RingAttention(Plain):
    """Correct: a window whose state has room for the window, however long the text is."""

    cross: ClassVar[bool] = False
    applies: ClassVar[frozenset[str]] = frozenset({"rotate"})
    keeps: ClassVar[type[Ring]] = Ring

    def __init__(self, d_model: int, n_heads: int, *, window: Annotated[int, Field(ge=1)] = 4) -> None:
        super().__init__(d_model, n_heads, window=window)
        self.rule = Window(window)

    def init_state(self, batch, capacity):
        return self.keeps(batch, self.n_heads, self.rule.size, self.d_head, self.k.weight.dtype)

    def forward(self, x, context, state=None):
        if state is None:
            return super().forward(x, context)
        q, k = context.rotate(self.heads(self.q(x)), "q"), context.rotate(self.heads(self.k(x)), "k")
        here = torch.stack([context.layout.positions, context.layout.documents])
        (k, v), (positions, documents) = state.append(torch.stack([k, self.heads(self.v(x))]), here)
        back = here[0][:, :, None] - positions[:, None]
        allowed = (here[1][:, :, None] == documents[:, None]) & (back >= 0) & (back < self.rule.size)
        scores = (q @ k.transpose(-1, -2) * self.d_head ** -0.5).masked_fill(~allowed[:, None], -torch.inf)
        return self.out((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))


class ColumnsOnly(Ring):
    def reorder(self, index):
        self.held, self.places = self.held[:, index], self.places[:, :1].expand(-1, len(index), -1).clone()


class ReordersARingWithoutItsPlaces(RingAttention):
    """After a reordering, all rows of a ring are masked by the places of the first."""

    caught_by = "any-operations-go-on"

    keeps = ColumnsOnly
