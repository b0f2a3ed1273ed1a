"""Turns records into examples fast: the texts of a task are encoded in advance, many at a time and on all cores."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from miniformer.kernel.errors import DataError
from miniformer.kernel.task import Example, Task

from .records import Located
from .tokenizer import Tokenizer

AT_ONCE = 500_000
"""Characters that are encoded together: enough to keep all cores busy, and few enough to fit in memory."""
Encode = Callable[[list[str]], list[list[int]]]


class Ahead(Tokenizer):
    """A tokenizer that has the ids of some texts already, and encodes any other text as usual."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        vars(self).update(vars(tokenizer))
        self.ids_of: dict[str, list[int]] = {}

    def encode_whole(self, text: str) -> list[int]:
        ids = self.ids_of.get(text)
        return super().encode_whole(text) if ids is None else ids.copy()


def examples_of(task: Task, records: Sequence[Located], tokenizer: Tokenizer, limit: int | None) -> Iterator[Example]:
    """The examples that `task.examples` makes from each record, in the order of the records.

    Texts that `Task.texts` yields for a record are encoded in advance; any other text that the task encodes, one at a time.

    Raises:
        DataError: the task refuses a record; the message names its file and line.
    """
    if type(tokenizer) is not Tokenizer:  # a subclass may encode differently
        yield from _singly(task, records, tokenizer, limit)
        return
    ahead = Ahead(tokenizer)
    for part, ahead.ids_of in _in_parts(task, records, tokenizer):
        yield from _singly(task, part, ahead, limit)


def _singly(task: Task, records: Sequence[Located], tokenizer: Tokenizer, limit: int | None) -> Iterator[Example]:
    for located in records:
        try:
            yield from task.examples(located.record, tokenizer, limit)
        except ValueError as error:
            raise DataError(f"{located.where}: {error}") from None


def _in_parts(task: Task, records: Sequence[Located], tokenizer: Tokenizer
             ) -> Iterator[tuple[Sequence[Located], dict[str, list[int]]]]:
    """The records in parts, each with the ids of its texts. While one part is used, the next ones are encoded."""
    encode: Encode | None = None
    workers = os.cpu_count() or 1
    waiting: deque[tuple[Sequence[Located], list[str], Future[list[list[int]]]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for part, texts in _parts(task, records):
            encode = encode or _encoder(tokenizer, texts, few=len(part) == len(records))
            waiting.append((part, texts, pool.submit(encode, texts)))
            if len(waiting) > workers:
                part, texts, ids = waiting.popleft()
                yield part, dict(zip(texts, ids.result(), strict=True))
        for part, texts, ids in waiting:
            yield part, dict(zip(texts, ids.result(), strict=True))


def _parts(task: Task, records: Sequence[Located]) -> Iterator[tuple[Sequence[Located], list[str]]]:
    """The records in parts of `AT_ONCE` characters, each with its texts."""
    start, size, texts = 0, 0, list[str]()
    for stop, located in enumerate(records, start=1):
        try:
            record_texts = list(task.texts(located.record))
        except ValueError:  # `examples` decides whether the record is refused, and reports it
            record_texts = []
        texts += record_texts
        size += sum(map(len, record_texts))
        if size > AT_ONCE or stop == len(records):
            yield records[start:stop], texts
            start, size, texts = stop, 0, []


def _encoder(tokenizer: Tokenizer, texts: list[str], few: bool) -> Encode:
    """The fastest way to encode texts like these: tiktoken, if it gives the tokenizer's ids by design and on a sample."""
    sample = texts[::max(1, len(texts) // 8)]
    fast = None if few else tokenizer.fast  # building it takes longer than encoding a few texts
    if fast is not None and fast(sample) == list(map(tokenizer.encode_whole, sample)):
        return fast
    return lambda texts: [encoding.ids for encoding in tokenizer.backend.encode_batch_fast(texts)]
