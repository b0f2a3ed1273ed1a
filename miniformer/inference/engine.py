"""`Engine`: texts that a model writes after prompts, alone, in batches of any lengths, or piece by piece."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from miniformer.decoding.beam_search import Beams, Hypothesis, search
from miniformer.decoding.compiled import StaticFeed, compiled_step
from miniformer.decoding.loop import Feed, Finish, Row, decode
from miniformer.decoding.sampling import Sampling, Text, checked_seed, count
from miniformer.decoding.speculative import speculate
from miniformer.kernel.errors import StateError, UserError
from miniformer.kernel.layout import Layout
from miniformer.kernel.task import Tokenizer
from miniformer.model.assembly import BlockAssembly, evaluating
from miniformer.ops.linear import pack
from miniformer.ops.switch import is_plain

from .batching import Prompt, Queue
from .text import TextWriter, strings

logger = logging.getLogger(__name__)
T = TypeVar("T")
PLAIN, BEAMS = Sampling(), Beams()


@dataclass(frozen=True, slots=True)
class Answer:
    """What was written after a prompt.

    Attributes:
        prompt: as it was given.
        text: what was written, without the prompt and what ended it.
        tokens: those that were written; without the end token, and with those of a stop string.
        logprobs: the log-probability of each by the model, before any edit or filter.
        finish_reason: `eos`: the model ended it; `stop`: a stop string did; `length`: it is as long as it may be.
        score: how good beam search found it; None: it was not searched for.
    """

    prompt: str
    text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: Finish
    score: float | None = None


class Stream(Iterator[str]):
    """The pieces of a text, as they are written; `answer` is there when they have ended."""

    answer: Answer | None = None

    def __init__(self, pieces: Iterator[str | Answer]) -> None:
        self._pieces = pieces

    def __next__(self) -> str:
        piece = next(self._pieces)
        if isinstance(piece, str):
            return piece
        self.answer = piece
        raise StopIteration


class Engine:
    """A model that writes, with the tokenizer of its texts.

    What is written after a prompt hangs on the prompt, the settings and the seed alone, and not on what else is in the batch.

    Args:
        model: a decoder, which goes on from its prompt, or an encoder-decoder, which answers it; it runs where its weights are.
        tokenizer: its `eos_id` ends texts.
        batch_size: prompts that are written after together; others take the place of those whose text has ended.
        draft: a small model of the same tokens that `generate` and `stream` let propose what `model` then checks, which is
            faster where both mostly agree. Texts have the same distribution as without it, but other draws; prompts go one by
            one.
        encode: makes tokens of a prompt, as a task's `prompt` does; None: the tokenizer's `encode`.
        use_state: keep what the layers remember between steps; without, everything is computed again at each step.
        compile: make one compiled graph of a step, which takes some time with the first prompt, and again with the first
            batch of several; and on a CPU keep large matrices a second time, laid out for it. Where a layer's state cannot be
            part of a graph, a line says so and steps are as ever.

    Raises:
        UserError: settings that exclude each other or make no sense.
    """

    def __init__(self, model: BlockAssembly, tokenizer: Tokenizer, *, batch_size: int = 16, draft: BlockAssembly | None = None,
                 encode: Callable[[str], list[int]] | None = None, use_state: bool = True, compile: bool = False) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size: at least 1; found {batch_size}")
        if draft is not None and _kind(draft) != _kind(model):
            raise UserError(f"draft: expected a model like this one, {_kind(model)}; found {_kind(draft)}")
        self.model, self.tokenizer, self.batch_size, self.use_state = model, tokenizer, batch_size, use_state
        self.draft, self._encode = draft, encode or tokenizer.encode
        if compile and (draft is not None or not use_state):
            raise UserError(f"compile: not with {'a draft' if draft else 'use_state=False'}; expected one of the two")
        self._step = compiled_step() if compile else None
        if compile:
            pack(model)

    def generate(self, prompts: Iterable[str], sampling: Sampling = PLAIN, *, max_new_tokens: int = 128,
                 stop: str | Sequence[str] = (), seed: int | None = None, truncate: bool = False) -> Iterator[Answer]:
        """What is written after each prompt, in order; prompts are taken as answers are asked for, some ahead.

        Args:
            prompts: texts.
            sampling: how tokens are chosen.
            max_new_tokens: at most so many; fewer, where the model's positions end before.
            stop: a string that ends a text, or several.
            seed: of the draws after every prompt, so that a prompt is answered as it would be alone; None: torch's own.
            truncate: of a prompt that is too long, keep the end; see `encode`.

        Raises:
            UserError: a prompt is empty or too long, settings are out of range, or the model cannot write.
        """
        max_new_tokens, stop, seed = count("max_new_tokens", max_new_tokens), strings("stop", stop), checked_seed(seed)
        asked = (self.encode(prompt, max_new_tokens, truncate) for prompt in prompts)
        if max_new_tokens == 0:
            return (_answer(prompt) for prompt in asked)
        pieces = self._evaluated(self._pieces(asked, sampling, stop, seed))
        return _in_order((place, piece) for place, piece in pieces if isinstance(piece, Answer))

    def search(self, prompts: Iterable[str], beams: Beams = BEAMS, sampling: Sampling = PLAIN, *, max_new_tokens: int = 128,
               stop: str | Sequence[str] = (), truncate: bool = False) -> Iterator[list[Answer]]:
        """For each prompt the best texts that a beam search finds, best first; see `generate`.

        Args:
            beams: how to search.
            sampling: its edits count; nothing is drawn.
            prompts, max_new_tokens, stop, truncate: as in `generate`.
        """
        max_new_tokens, stop = count("max_new_tokens", max_new_tokens), strings("stop", stop)

        def ending(text: Text) -> Finish | None:
            if text.new[-1] == self.tokenizer.eos_id:
                return "eos"
            written = self.tokenizer.decode(text.new) if stop else ""
            return "stop" if any(one in written for one in stop) else None

        @torch.inference_mode()
        def found(queue: Queue) -> Iterator[tuple[int, list[Answer]]]:
            while (more := queue([])) is not None:
                feed, rows = more
                for row, texts in zip(rows, search(feed, [row.limit for row in rows], beams, sampling, ending), strict=True):
                    place, prompt = queue.place_of.pop(id(row))
                    yield place, [self._searched(prompt, one, stop) for one in texts]

        asked = (self.encode(prompt, max_new_tokens, truncate) for prompt in prompts)
        if max_new_tokens == 0:
            return ([_answer(prompt)] for prompt in asked)
        queue = Queue(asked, max(1, self.batch_size // beams.width), self.model, self.start)
        return _in_order(self._evaluated(found(queue)))

    def stream(self, prompt: str, sampling: Sampling = PLAIN, *, max_new_tokens: int = 128,
               stop: str | Sequence[str] = (), seed: int | None = None, truncate: bool = False) -> Stream:
        """What is written after one prompt, piece by piece; arguments and errors as those of `generate`."""
        stop, seed = strings("stop", stop), checked_seed(seed)
        asked = self.encode(prompt, max_new_tokens, truncate)
        if asked.room == 0:
            return Stream(iter([_answer(asked)]))
        return Stream(piece for _, piece in self._evaluated(self._pieces(iter([asked]), sampling, stop, seed)))

    def encode(self, prompt: str, max_new_tokens: int, truncate: bool = False) -> Prompt:
        """A prompt as tokens that the model has positions for.

        With `truncate`, one that leaves no room for `max_new_tokens` within `max_seq_len` tokens loses tokens from its start
        (but for the one that marks it), until there is room or it is half of `max_seq_len`.

        Raises:
            UserError: no tokens, more than there are positions, or a model that does not write.
        """
        if not self.model.generates:
            raise UserError("this model sees later tokens (causal: false), so it cannot generate; `predict` asks its task")
        max_new_tokens = count("max_new_tokens", max_new_tokens)
        if not isinstance(prompt, str):
            raise UserError(f"prompt: expected a text; found {prompt!r:.80}")
        model, ids = self.model, self._encode(prompt)
        if not ids:
            raise UserError("the prompt has no tokens, and this tokenizer no token that marks a start; expected some text")
        whole = model.config.max_seq_len
        if truncate:
            most = whole if model.has_source else max(whole // 2, whole + 1 - max_new_tokens)
            if len(ids) > most:
                start = ids[:1] if ids[0] == self.tokenizer.bos_id and most > 1 else []
                ids = start + ids[len(start) - most:]
        if not model.endless and len(ids) > whole:
            raise UserError(f"the prompt has {len(ids)} tokens, and this model reads at most max_seq_len = {whole}; shorten "
                            "it, or have its start left out (truncate)")
        room = max_new_tokens
        if not model.endless:  # the last token that is written is not read
            room = min(room, whole if model.has_source else whole + 1 - len(ids))
        return Prompt(prompt, ids, room)

    def start(self, prompts: Sequence[Prompt], model: BlockAssembly | None = None) -> Feed:
        """A model (None: the engine's), ready to go on from some prompts."""
        lengths = [len(prompt.ids) for prompt in prompts]
        ids = pad_sequence([torch.tensor(prompt.ids) for prompt in prompts], batch_first=True, padding_side="left")
        feed = (model or self.model).feed(ids, max(prompt.room for prompt in prompts), use_state=self.use_state,
                                          layout=Layout.from_lengths(lengths, side="left"))
        if self._step is not None and not is_plain():
            try:
                return StaticFeed(feed, self._step)
            except StateError as error:
                logger.warning(f"steps are not compiled: {error}")
                self._step = None
        return feed

    def writer(self, prompt: Prompt, stop: Sequence[str]) -> TextWriter:
        """What makes text of the tokens after a prompt."""
        return TextWriter(self.tokenizer, () if self.model.has_source else prompt.ids, stop)

    def _searched(self, prompt: Prompt, found: Hypothesis, stop: Sequence[str]) -> Answer:
        writer = self.writer(prompt, stop)
        for token in found.new[:-1] if found.finish == "eos" else found.new:
            writer.push(token)
        writer.end()
        return replace(_answer(prompt, found, writer), score=found.score)

    @torch.inference_mode()
    def _pieces(self, prompts: Iterator[Prompt], sampling: Sampling, stop: Sequence[str],
                seed: int | None) -> Iterator[tuple[int, str | Answer]]:
        """Pieces of text after prompts, each with its prompt's place among them; the last of a place is the answer."""
        queue = Queue(prompts, 1 if self.draft else self.batch_size, self.model, self.start, seed)
        writers: dict[int, TextWriter] = {}
        for running in self._steps(queue, sampling):
            for row in running:
                place, prompt = queue.place_of[id(row)]
                if place not in writers:
                    writers[place] = self.writer(prompt, stop)
                writer = writers[place]
                if row.finish != "eos" and (piece := writer.push(row.new[-1])):
                    yield place, piece
                if not writer.stopped and row.finish is not None and (piece := writer.end()):
                    yield place, piece
                if writer.stopped:
                    row.finish = "stop"
                if row.finish is not None:
                    del queue.place_of[id(row)]
                    yield place, _answer(prompt, row, writers.pop(place))

    def _steps(self, queue: Queue, sampling: Sampling) -> Iterator[list[Row]]:
        eos_id = self.tokenizer.eos_id
        while (more := queue([])) is not None:
            feed, rows = more
            if self.draft is None:
                yield from decode(feed, rows, sampling, eos_id, arrivals=queue)
            else:
                prompt = queue.place_of[id(rows[0])][1]
                self._check_draft(self.draft, prompt)
                helper = self.start([prompt], self.draft)
                yield from speculate(feed, helper, rows[0], sampling, eos_id=eos_id)

    def _check_draft(self, draft: BlockAssembly, prompt: Prompt) -> None:
        length = max(len(prompt.ids), prompt.room) if draft.has_source else len(prompt.ids) + prompt.room - 1
        if not draft.endless and length > draft.config.max_seq_len:
            raise UserError(f"draft: reads at most max_seq_len = {draft.config.max_seq_len} tokens, and prompt and text may "
                            f"have {length}; expected a draft that reads as many, a shorter prompt or fewer max_new_tokens")

    def _evaluated(self, found: Iterator[T]) -> Iterator[T]:
        """The same, its models in eval mode while they run, but as they were between."""
        while True:
            with evaluating(self.model), nullcontext() if self.draft is None else evaluating(self.draft):
                try:
                    one = next(found)
                except StopIteration:
                    return
            yield one


def _kind(model: BlockAssembly) -> str:
    return f"{'encoder-decoder' if model.has_source else 'decoder'} of {model.config.vocab_size} tokens"


def _answer(prompt: Prompt, row: Row | Hypothesis | None = None, writer: TextWriter | None = None) -> Answer:
    """The answer that a row gives; none: nothing is to be written."""
    if row is None or writer is None:
        return Answer(prompt.text, "", [], [], "length")
    count = len(row.new) - (row.finish == "eos")
    return Answer(prompt.text, writer.text, row.new[:count], row.logprobs[:count], row.finish or "length")


def _in_order(found: Iterable[tuple[int, T]]) -> Iterator[T]:
    """What was found with places 0, 1, 2, … in any order, in order."""
    early: dict[int, T] = {}
    following = 0
    for place, value in found:
        early[place] = value
        while following in early:
            yield early.pop(following)
            following += 1
