"""Records to examples, fast: what a task is about to encode is encoded ahead, many texts at a time and on all cores."""

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
"""Characters that are encoded together: enough for all cores, few enough to hold."""
Encode = Callable[[list[str]], list[list[int]]]


class Ahead(Tokenizer):
    """A tokenizer that knows the ids of some texts beforehand, and encodes any other text as usual."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        vars(self).update(vars(tokenizer))
        self.known: dict[str, list[int]] = {}

    def encode_whole(self, text: str) -> list[int]:
        ids = self.known.get(text)
        return super().encode_whole(text) if ids is None else ids.copy()


def examples_of(task: Task, records: Sequence[Located], tokenizer: Tokenizer, limit: int | None) -> Iterator[Example]:
    """The examples of all records in order, those that `task.examples` gives of each.

    Texts that the task yields of a record (`Task.texts`) are encoded ahead; what else it encodes is encoded singly.

    Raises:
        DataError: with file and line, where the task refuses a record.
    """
    if type(tokenizer) is not Tokenizer:  # another class may have a way of its own
        yield from _singly(task, records, tokenizer, limit)
        return
    ahead = Ahead(tokenizer)
    for part, ahead.known in _in_parts(task, records, tokenizer):
        yield from _singly(task, part, ahead, limit)


def _singly(task: Task, records: Sequence[Located], tokenizer: Tokenizer, limit: int | None) -> Iterator[Example]:
    for located in records:
        try:
            yield from task.examples(located.record, tokenizer, limit)
        except ValueError as error:
            raise DataError(f"{located.where}: {error}") from None


def _in_parts(task: Task, records: Sequence[Located], tokenizer: Tokenizer
             ) -> Iterator[tuple[Sequence[Located], dict[str, list[int]]]]:
    """The records in parts, each with the ids of its texts. A few parts are encoded while another is used."""
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
            found = list(task.texts(located.record))
        except ValueError:  # whether the record is refused, `examples` says
            found = []
        texts += found
        size += sum(map(len, found))
        if size > AT_ONCE or stop == len(records):
            yield records[start:stop], texts
            start, size, texts = stop, 0, []


def _encoder(tokenizer: Tokenizer, texts: list[str], few: bool) -> Encode:
    """The fastest way to encode texts such as these: tiktoken's where it is known, and seen in a sample, to be the same."""
    sample = texts[::max(1, len(texts) // 8)]
    fast = None if few else tokenizer.fast  # to find it takes longer than to encode a few
    if fast is not None and fast(sample) == list(map(tokenizer.encode_whole, sample)):
        return fast
    return lambda texts: [encoding.ids for encoding in tokenizer.backend.encode_batch_fast(texts)]
