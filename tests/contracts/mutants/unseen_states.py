"""Attentions whose states were written before the properties that have to find their faults (number 3: states)."""

from typing import ClassVar

import torch
import torch.nn.functional as F

from miniformer.kernel import StateError

from .attention import Cache, Plain, Remembering, Source


class Deferring(Cache):
    order = None

    @property
    def nbytes(self):
        return super().nbytes + (0 if self.order is None else self.order.nbytes)

    def settle(self):
        if self.order is not None:
            self.k, self.v, self.order = self.k[self.order], self.v[self.order], None

    def reorder(self, index):
        self.order = index

    def append(self, k, v):
        self.settle()
        return super().append(k, v)

    def as_static(self, column, columns):
        self.settle()
        return super().as_static(column, columns)

    def join(self, other, columns, capacity):
        self.settle()
        other.settle()
        super().join(other, columns, capacity)


class ForgetsTheFirstOfTwoOrders(Plain):
    """An order waits for the next token, and of two orders in a row the first is lost (see transformers#48700)."""

    caught_by = "any-operations-go-on"
    remembers = Deferring


class Shrinking(Cache):
    def reorder(self, index):
        self.k, self.v = self.k[index, :, :self.columns], self.v[index, :, :self.columns]


class LosesItsRoomWhenReordered(Plain):
    """A reordered state holds the columns so far and has no room for more."""

    caught_by = "reordered-rows-go-on"
    remembers = Shrinking


class InPlace(Cache):
    def reorder(self, index):
        if len(index) > len(self.k):
            return super().reorder(index)
        for new, old in enumerate(index.tolist()):
            self.k[new], self.v[new] = self.k[old], self.v[old]
        self.k, self.v = self.k[:len(index)].clone(), self.v[:len(index)].clone()


class ReordersInPlace(Plain):
    """Rows are copied one after the other in place, so a row that was overwritten is copied on."""

    caught_by = "reordered-rows-go-on"
    remembers = InPlace


class Pointing(Cache):
    def __init__(self, batch, *sizes):
        super().__init__(batch, *sizes)
        self.rows = torch.arange(batch)

    @property
    def nbytes(self):
        return super().nbytes + self.rows.nbytes

    def settle(self):
        self.k, self.v, self.rows = self.k[self.rows], self.v[self.rows], torch.arange(len(self.rows))

    def append(self, k, v):
        start, end = self.columns, self.columns + k.shape[2]
        if end > self.k.shape[2]:
            raise StateError("it is full")
        self.k[self.rows, :, start:end], self.v[self.rows, :, start:end], self.columns = k, v, end
        return self.k[self.rows, :, :end], self.v[self.rows, :, :end]

    def reorder(self, index):
        self.rows = self.rows[index]

    def as_static(self, column, columns):
        self.settle()
        return super().as_static(column, columns)

    def join(self, other, columns, capacity):
        self.settle()
        other.settle()
        super().join(other, columns, capacity)
        self.rows = torch.arange(len(self.k))


class WritesIntoSharedRows(Plain):
    """Repeated rows share their memory and are not copied before one of them is written to, so beams overwrite each other."""

    caught_by = "reordered-rows-go-on"
    remembers = Pointing


class KeepsAView(Cache):
    still = None

    @property
    def nbytes(self):
        still = [] if self.still is None else [self.still.k, self.still.v, self.still.column]
        storages = [tensor.untyped_storage() for tensor in (self.k, self.v, *still)]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def as_static(self, column, columns):
        if self.still is None or self.still.k.shape[2] != columns:
            self.still = super().as_static(column, columns)
        self.still.column = column
        return self.still


class StepsOnTheRowsBeforeAnOrder(Plain):
    """The static view is made once: after static steps and an order, further static steps go on with the rows before it."""

    caught_by = "any-operations-go-on"
    remembers = KeepsAView


class NeverEmpty(Cache):
    def truncate(self, length):
        self.columns = min(self.columns, length or self.columns)


class CannotBeCutToNothing(Plain):
    """A length of 0 reads as no length, and nothing is cut."""

    caught_by = "cut-states-go-on"
    remembers = NeverEmpty


class Peaked(Cache):
    """Correct: a cache that knows the longest length that it has had."""

    peak = 0

    def append(self, k, v):
        both = super().append(k, v)
        self.peak = max(self.peak, self.columns)
        return both

    def advance_static(self):
        super().advance_static()
        self.peak = max(self.peak, self.columns)

    def join(self, other, columns, capacity):
        super().join(other, columns, capacity)
        self.peak = columns


class KeepingValues(Peaked):
    def append(self, k, v):
        kept = self.v[:, :, self.columns:self.peak].clone()[:, :, :v.shape[2]]
        return super().append(k, torch.cat([kept, v[:, :, kept.shape[2]:]], dim=2))


class KeepsTheValuesOfRejectedTokens(Plain):
    """After a cut, keys are written anew, and the values of the tokens that were taken back stay."""

    caught_by = "cut-states-go-on"
    remembers = KeepingValues


class CountingFromThePeak(Peaked):
    def advance_static(self):
        self.peak += 1
        self.columns = self.peak


class CountsStaticStepsFromTheLongestLength(Plain):
    """A static step after a cut counts on from the length before the cut."""

    caught_by = "any-operations-go-on"
    remembers = CountingFromThePeak


class Extending(Peaked):
    """Correct: a cache that makes room."""

    grows = True

    def grow(self, capacity):
        more = (0, 0, 0, capacity - self.k.shape[2])
        self.k, self.v = F.pad(self.k, more), F.pad(self.v, more)


class ExtendingToThePeak(Extending):
    def grow(self, capacity):
        super().grow(capacity)
        self.columns = self.peak


class GrowsBackWhatWasCut(Plain):
    """A state that grows after a cut has the length before the cut again."""

    caught_by = "any-operations-go-on"
    remembers = ExtendingToThePeak


class Lending(Cache):
    def join(self, other, columns, capacity):
        alike, n = other.columns == columns, len(self.k)
        super().join(other, columns, capacity)
        if alike:
            other.k, other.v = self.k[n:], self.v[n:]


class SharesRowsWithTheStateThatJoined(Plain):
    """After joining, the other state looks into the memory of this one, and either changes the other by going on."""

    caught_by = "any-operations-go-on"
    remembers = Lending


class Filling(Cache):
    def append(self, k, v):
        room = self.k.shape[2] - self.columns
        if k.shape[2] > room > 0:
            super().append(k[:, :, :room], v[:, :, :room])
        return super().append(k, v)


class WritesWhatFitsBeforeItRefuses(Plain):
    """A piece that does not fit is refused, and its first columns have been taken in nevertheless."""

    caught_by = "any-operations-go-on"
    remembers = Filling


class Reusing(Cache):
    rooms: ClassVar[list] = []

    def truncate(self, length):
        super().truncate(length)
        if length == 0:
            self.rooms.append((self.k, self.v))

    def append(self, k, v):
        if self.columns == 0:
            fitting = [room for room in self.rooms if room[0].shape == self.k.shape and room[0].dtype == self.k.dtype]
            self.k, self.v = fitting[-1] if fitting else (self.k, self.v)
        return super().append(k, v)


class GivesItsRoomAwayAndKeepsIt(Plain):
    """A state that is cut to nothing gives its memory to a pool and goes on using it: the next state writes there too."""

    caught_by = "any-operations-go-on"
    remembers = Reusing


class FromTheFirst(Source):
    def __init__(self, k, v):
        super().__init__(k, v)
        self.first = k, v

    def reorder(self, index):
        self.k, self.v = (one[index] for one in self.first)


class OrdersAMemoryFromItsFirstRows(Remembering):
    """Each order of a memory's rows is taken from the rows that it began with, so two orders are the second alone."""

    caught_by = "remembered-rows-go-on"
    keeps = FromTheFirst


class CuttingOff(Cache):
    def truncate(self, length):
        if length < self.columns:
            self.k, self.v = self.k[:, :, :length], self.v[:, :, :length]
        super().truncate(length)


class LosesItsRoomWhenCut(Plain):
    """A cut state has room for no more than what was left."""

    caught_by = "cut-states-go-on"
    remembers = CuttingOff
