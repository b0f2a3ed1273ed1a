"""Turns records into examples fast: the texts of a task are encoded in advance, many at a time and on all cores."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from miniformer.kernel.errors import DataError, panics_as_errors
from miniformer.kernel.task import Example, Task

from .records import Located
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers import Encoding

AT_ONCE = 500_000
"""Characters that are encoded together: enough to keep all cores busy, and few enough to fit in memory."""
Encode = Callable[[list[str]], "list[list[int]] | list[Encoding]"]


class Ahead(Tokenizer):
    """A tokenizer that has encoded some texts already, and encodes any other text as usual."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        vars(self).update(vars(tokenizer))
        self.known: Mapping[str, list[int] | Encoding] = {}

    def encode_whole(self, text: str) -> list[int]:
        known = self.known.get(text)
        if known is None:
            return super().encode_whole(text)
        ids: list[int] = known.copy() if isinstance(known, list) else known.ids
        return ids

    def _encoding(self, text: str) -> Encoding:
        known = self.known.get(text)
        return super()._encoding(text) if known is None or isinstance(known, list) else known


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
    for part, ahead.known in _in_parts(task, records, tokenizer):
        yield from _singly(task, part, ahead, limit)


def _singly(task: Task, records: Sequence[Located], tokenizer: Tokenizer, limit: int | None) -> Iterator[Example]:
    for located in records:
        try:
            yield from task.examples(located.record, tokenizer, limit)
        except ValueError as error:
            raise DataError(f"{located.where}: {error}") from None


def _in_parts(task: Task, records: Sequence[Located], tokenizer: Tokenizer
             ) -> Iterator[tuple[Sequence[Located], Mapping[str, list[int] | Encoding]]]:
    """The records in parts, each with its texts as they are encoded. While one part is used, the next ones are encoded."""
    encode: Encode | None = None
    workers = os.cpu_count() or 1
    waiting: deque[tuple[Sequence[Located], Future[Mapping[str, list[int] | Encoding]]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for part, texts in _parts(task, records):
            encode = encode or _encoder(tokenizer, texts, few=len(part) == len(records))
            waiting.append((part, pool.submit(_encoded, encode, texts)))
            if len(waiting) > workers:
                part, known = waiting.popleft()
                yield part, known.result()
        for part, known in waiting:
            yield part, known.result()


def _encoded(encode: Encode, texts: list[str]) -> Mapping[str, list[int] | Encoding]:
    try:
        with panics_as_errors():
            return dict(zip(texts, encode(texts), strict=True))
    except Exception:  # one of them cannot be encoded: by itself each is encoded, or reported with its record
        return {}


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
    if not tokenizer.bytes_are_in_tokens:  # the places of tokens in their text may be asked for
        return tokenizer.backend.encode_batch
    sample = texts[::max(1, len(texts) // 8)]
    fast = None if few else tokenizer.fast  # building it takes longer than encoding a few texts
    if fast is not None and fast(sample) == list(map(tokenizer.encode_whole, sample)):
        return fast
    return lambda texts: [encoding.ids for encoding in tokenizer.backend.encode_batch_fast(texts)]
