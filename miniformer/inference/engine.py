"""`Engine`: texts that a model writes after prompts, alone, in batches of any lengths, or piece by piece."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from miniformer.decoding.arguments import checked_count, checked_seed, checked_strings
from miniformer.decoding.beam_search import Beams, Hypothesis, search
from miniformer.decoding.compiled import StaticFeed, compiled_step
from miniformer.decoding.defaults import DEFAULTS
from miniformer.decoding.loop import Feed, Finish, RunningText, decode
from miniformer.decoding.sampling import Sampling, Text
from miniformer.decoding.speculative import speculate
from miniformer.kernel.errors import StateError, UserError
from miniformer.kernel.layout import Layout
from miniformer.kernel.task import Tokenizer
from miniformer.model.assembly import BlockAssembly, evaluating
from miniformer.ops.linear import pack
from miniformer.ops.switch import is_plain
from miniformer.ops.torch_private import check_compiler
from miniformer.tasks.collate import end_of

from .answer import Answer as Answer
from .answer import Stream as Stream
from .answer import answer_of, empty_answer, in_order
from .batching import Prompt, PromptQueue
from .lengths import LengthNotes
from .text import TextWriter, text_after

logger = logging.getLogger(__name__)
T = TypeVar("T")
SAMPLING, BEAMS = Sampling(), Beams()


class Engine:
    """A model that writes, with the tokenizer of its texts.

    The text after a prompt depends on the prompt, the settings and the seed alone, and not on what else is in the batch.

    Args:
        model: a decoder, which continues its prompt, or an encoder-decoder, which answers it; it runs where its weights are.
        tokenizer: its `eos_id` ends texts where the model's config has none.
        batch_size: the most texts that are written at a time. When one ends, the next prompt takes its place.
        draft: a small model of the same tokens. In `generate` and `stream` it proposes tokens, which `model` checks; this is
            faster where both mostly agree. Texts have the same distribution as without it, but other draws, and prompts are
            answered one by one.
        encode: makes tokens of a prompt, as a task's `prompt` does; None: the tokenizer's `encode`.
        use_state: keep what the layers remember between steps; without it, everything is computed again at each step.
        compile: make one compiled graph of a step. This takes some time with the first prompt, and again with the first batch
            of several. On a CPU, large matrices are kept a second time, laid out for it. Where the state of a layer cannot be
            part of a graph, a line of the log says so, and steps are not compiled.

    Raises:
        UserError: settings that exclude each other or are out of range.
    """

    def __init__(self, model: BlockAssembly, tokenizer: Tokenizer, *, batch_size: int = 16, draft: BlockAssembly | None = None,
                 encode: Callable[[str], list[int]] | None = None, use_state: bool = True, compile: bool = False) -> None:
        if checked_count("batch_size", batch_size) < 1:
            raise UserError(f"batch_size: at least 1; found {batch_size}")
        if draft is not None and _kind(draft) != _kind(model):
            raise UserError(f"draft: expected a model like this one, {_kind(model)}; found {_kind(draft)}")
        self.model, self.tokenizer, self.batch_size, self.use_state = model, tokenizer, batch_size, use_state
        self.draft, self._encode = draft, encode or tokenizer.encode
        self.eos_id, self.lengths = end_of(model, tokenizer), LengthNotes(model.config.max_seq_len)
        if compile and (draft is not None or not use_state):
            raise UserError(f"compile: not with {'a draft' if draft else 'use_state=False'}; expected one of the two")
        if compile:
            check_compiler(next(model.parameters()).is_cuda)
        self._step = compiled_step() if compile else None
        if compile:
            pack(model)

    def __repr__(self) -> str:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        return f"{type(self).__name__}({self.model.assembly}, {size:,} parameters, batch_size={self.batch_size})"

    def generate(self, prompts: Iterable[str], sampling: Sampling = SAMPLING, *,
                 max_new_tokens: int = DEFAULTS.max_new_tokens, stop: str | Sequence[str] = (), seed: int | None = None,
                 truncate: bool = False) -> Iterator[Answer]:
        """The answer to each prompt, in order. Prompts are taken as answers are asked for, some ahead.

        Args:
            prompts: texts.
            sampling: how tokens are chosen.
            max_new_tokens: the most tokens of an answer; fewer, where the model's positions end before.
            stop: a string that ends a text, or several.
            seed: of the draws after each prompt, so that a prompt is answered as it would be alone; None: torch's generator.
            truncate: of a prompt that is too long, keep the end; see `encode`.

        Raises:
            UserError: a prompt is empty or too long, settings are out of range, or the model cannot write.
        """
        max_new_tokens, seed = checked_count("max_new_tokens", max_new_tokens), checked_seed(seed)
        stop = checked_strings("stop", stop)
        encoded = (self.encode(prompt, max_new_tokens, truncate) for prompt in prompts)
        if max_new_tokens == 0:
            return (empty_answer(prompt) for prompt in encoded)
        pieces = self._in_eval_mode(self._pieces(encoded, sampling, stop, seed))
        return in_order((place, piece) for place, piece in pieces if isinstance(piece, Answer))

    def search(self, prompts: Iterable[str], beams: Beams = BEAMS, sampling: Sampling = SAMPLING, *,
               max_new_tokens: int = DEFAULTS.max_new_tokens, stop: str | Sequence[str] = (),
               truncate: bool = False, n_best: int = 1) -> Iterator[list[Answer]]:
        """For each prompt, in order, the best texts that a beam search finds, best first.

        Once the best text ends at a stop string, the search ends there too, and gives what it has found.

        Args:
            beams: how to search.
            sampling: its edits count; nothing is drawn.
            n_best: the fewest texts to find before a stop string ends the search.
            prompts, max_new_tokens, stop, truncate: as in `generate`, which also has the errors.
        """
        max_new_tokens, stop = checked_count("max_new_tokens", max_new_tokens), checked_strings("stop", stop)
        encoded = (self.encode(prompt, max_new_tokens, truncate) for prompt in prompts)
        if max_new_tokens == 0:
            return ([empty_answer(prompt)] for prompt in encoded)
        queue = PromptQueue(encoded, max(1, self.batch_size // beams.width), self.model, self.start)
        return in_order(self._in_eval_mode(self._searches(queue, beams, sampling, stop, n_best)))

    def stream(self, prompt: str, sampling: Sampling = SAMPLING, *, max_new_tokens: int = DEFAULTS.max_new_tokens,
               stop: str | Sequence[str] = (), seed: int | None = None, truncate: bool = False) -> Stream:
        """The text after one prompt, piece by piece; arguments and errors are those of `generate`."""
        stop, seed = checked_strings("stop", stop), checked_seed(seed)
        encoded = self.encode(prompt, max_new_tokens, truncate)
        if encoded.room == 0:
            return Stream(iter([empty_answer(encoded)]))
        return Stream(piece for _, piece in self._in_eval_mode(self._pieces(iter([encoded]), sampling, stop, seed)))

    def encode(self, prompt: str, max_new_tokens: int, truncate: bool = False) -> Prompt:
        """A prompt as tokens that the model has positions for.

        With `truncate`, a prompt that leaves no room for `max_new_tokens` within `max_seq_len` tokens loses tokens from its
        start (but not the start token), until there is room or it is half of `max_seq_len`.

        Raises:
            UserError: no tokens, more than there are positions, or a model that does not write.
        """
        if not self.model.generates:
            raise UserError("this model sees later tokens (causal: false), so it cannot generate; `predict` asks its task")
        max_new_tokens = checked_count("max_new_tokens", max_new_tokens)
        if not isinstance(prompt, str):
            raise UserError(f"prompt: expected a text; found {prompt!r:.80}")
        try:
            ids = self._encode(prompt)
        except ValueError as error:
            raise UserError(f"prompt: {error}") from None
        model = self.model
        if not ids:
            raise UserError("the prompt has no tokens, and this tokenizer no token that marks a start; expected some text")
        if truncate and len(kept := self._without_start(ids, max_new_tokens)) < len(ids):
            self.lengths.left_out(len(ids), len(kept))
            ids = kept
        max_seq_len = model.config.max_seq_len
        if not model.endless and len(ids) > max_seq_len:
            raise UserError(f"the prompt has {len(ids)} tokens, and this model reads at most max_seq_len = {max_seq_len}; "
                            "shorten it, or have its start left out (truncate)")
        room = max_new_tokens
        if not model.endless:  # the last new token is not read, so it needs no position
            room = min(room, max_seq_len if model.has_source else max_seq_len + 1 - len(ids))
            self.lengths.shorter(max_new_tokens, room)
        else:
            self.lengths.beyond(len(ids), room if model.has_source else len(ids) + room - 1)
        return Prompt(prompt, ids, room)

    def _without_start(self, ids: list[int], max_new_tokens: int) -> list[int]:
        """The end of a prompt that is too long, after its start token."""
        max_seq_len = self.model.config.max_seq_len
        length = max_seq_len if self.model.has_source else max(max_seq_len // 2, max_seq_len + 1 - max_new_tokens)
        if len(ids) <= length:
            return ids
        start = ids[:1] if ids[0] == self.tokenizer.bos_id and length > 1 else []
        return start + ids[len(start) - length:]

    def start(self, prompts: Sequence[Prompt], model: BlockAssembly | None = None) -> Feed:
        """A feed of a model (None: the engine's) for some prompts, a row for each."""
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
        """A writer that makes text of the tokens after a prompt."""
        return TextWriter(self.tokenizer, () if self.model.has_source else prompt.ids, stop)

    @torch.inference_mode()
    def _searches(self, queue: PromptQueue, beams: Beams, sampling: Sampling, stop: Sequence[str],
                  n_best: int) -> Iterator[tuple[int, list[Answer]]]:
        """The answers to each prompt of a queue, with the prompt's place in it."""
        def ending(text: Text) -> Finish | None:
            if text.new[-1] == self.eos_id:
                return "eos"
            before = () if self.model.has_source else text.prompt
            written = text_after(self.tokenizer, before, text.new) if stop else ""
            return "stop" if any(string in written for string in stop) else None

        while (batch := queue([])) is not None:
            feed, texts = batch
            results = search(feed, [text.limit for text in texts], beams, sampling, ending, n_best)
            for text, hypotheses in zip(texts, results, strict=True):
                place, prompt = queue.place_of.pop(id(text))
                yield place, [self._searched(prompt, hypothesis, stop) for hypothesis in hypotheses]

    def _searched(self, prompt: Prompt, hypothesis: Hypothesis, stop: Sequence[str]) -> Answer:
        writer = self.writer(prompt, stop)
        for token in hypothesis.new[:-1] if hypothesis.finish == "eos" else hypothesis.new:
            writer.push(token)
        writer.end()
        return answer_of(prompt, hypothesis, writer, hypothesis.score)

    @torch.inference_mode()
    def _pieces(self, prompts: Iterator[Prompt], sampling: Sampling, stop: Sequence[str],
                seed: int | None) -> Iterator[tuple[int, str | Answer]]:
        """Pieces of text, each with the place of its prompt; the last piece of each place is the answer."""
        queue = PromptQueue(prompts, 1 if self.draft else self.batch_size, self.model, self.start, seed)
        writers: dict[int, TextWriter] = {}
        for texts in self._steps(queue, sampling):
            for text in texts:
                place, prompt = queue.place_of[id(text)]
                if place not in writers:
                    writers[place] = self.writer(prompt, stop)
                writer = writers[place]
                if text.finish != "eos" and (piece := writer.push(text.new[-1])):
                    yield place, piece
                if not writer.stopped and text.finish is not None and (piece := writer.end()):
                    yield place, piece
                if writer.stopped:
                    text.finish = "stop"
                if text.finish is not None:
                    del queue.place_of[id(text)]
                    yield place, answer_of(prompt, text, writers.pop(place))

    def _steps(self, queue: PromptQueue, sampling: Sampling) -> Iterator[list[RunningText]]:
        """The texts that each step has extended by a token."""
        eos_id = self.eos_id
        while (batch := queue([])) is not None:
            feed, texts = batch
            if self.draft is None:
                yield from decode(feed, texts, sampling, eos_id, arrivals=queue)
            else:
                prompt = queue.place_of[id(texts[0])][1]
                self._check_draft(self.draft, prompt)
                draft_feed = self.start([prompt], self.draft)
                yield from speculate(feed, draft_feed, texts[0], sampling, eos_id=eos_id)

    def _check_draft(self, draft: BlockAssembly, prompt: Prompt) -> None:
        length = max(len(prompt.ids), prompt.room) if draft.has_source else len(prompt.ids) + prompt.room - 1
        if not draft.endless and length > draft.config.max_seq_len:
            raise UserError(f"draft: reads at most max_seq_len = {draft.config.max_seq_len} tokens, and prompt and text may "
                            f"have {length}; expected a draft that reads as many, a shorter prompt or fewer max_new_tokens")

    def _in_eval_mode(self, values: Iterator[T]) -> Iterator[T]:
        """The values, with the models in eval mode while each is made; between two values they are as they were before."""
        while True:
            with evaluating(self.model), nullcontext() if self.draft is None else evaluating(self.draft):
                try:
                    value = next(values)
                except StopIteration:
                    return
            yield value


def _kind(model: BlockAssembly) -> str:
    return f"{'encoder-decoder' if model.has_source else 'decoder'} of {model.config.vocab_size} tokens"
