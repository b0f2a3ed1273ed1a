"""`Pipeline`: everything that a trained model can do, from Python. `miniformer.load(RUN)` makes one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from miniformer.decoding.arguments import checked_count
from miniformer.decoding.beam_search import Beams
from miniformer.decoding.defaults import DEFAULTS
from miniformer.decoding.sampling import Sampling
from miniformer.inference.attention_maps import attention_maps
from miniformer.kernel.context import Context
from miniformer.kernel.errors import UserError, did_you_mean
from miniformer.kernel.interfaces import Head
from miniformer.kernel.layout import Layout
from miniformer.model.head import EmbeddingHead, pooled
from miniformer.model.seq2seq_transformer import Seq2SeqTransformer
from miniformer.ops.room import empty_room

from .engine import Engine, Stream
from .load import Trained, load_on_best_device
from .predict import input_schema, predict


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a model reads a text.

    Attributes:
        tokens: the T tokens, each as text; of an encoder-decoder those of the answer, from its start token on.
        logprobs: the log-probability of each token after those before it, None for the first; empty for a model that does
            not predict the next token.
        likeliest: for each token, the likeliest tokens in its place with their probabilities; empty for the same models.
        attention: weights `[H, T, S]` by the name of the module; an attention without such weights is left out.
        source: of an encoder-decoder, the tokens of the source.
    """

    tokens: list[str]
    logprobs: list[float | None]
    likeliest: list[list[tuple[str, float]]]
    attention: dict[str, Tensor]
    source: list[str]


class Pipeline:
    """A trained model with its tokenizer and its task, for texts and records.

    Args:
        trained: the model; it runs where its weights are.
        batch_size: texts that go through the model together.
    """

    def __init__(self, trained: Trained, *, batch_size: int = 16) -> None:
        self.trained, self.batch_size = trained, batch_size
        self.model, self.tokenizer, self.task, self.notes = trained.model, trained.tokenizer, trained.task, trained.notes
        self.engine = Engine(self.model, self.tokenizer, batch_size=batch_size, encode=trained.prompt)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.trained.summary()})"

    def __call__(self, inputs: Any, **settings: Any) -> Any:
        """What the model is for: the text that it writes after a text, or its task's prediction for a text or a record.

        Args:
            inputs: a text or several, as `generate` takes them; or a record or several, as `predict` takes them.
            settings: as `generate` takes them, where the model writes.

        Raises:
            UserError: as in `generate` and `predict`, or for settings where nothing is written.
        """
        several: Any = inputs if isinstance(inputs, str | Mapping) or not isinstance(inputs, Iterable) else list(inputs)
        first = several[0] if isinstance(several, list) and several else several
        if self.model.generates and not isinstance(first, Mapping):
            return self.generate(several, **settings)
        if settings:
            raise UserError(f"there is no setting {next(iter(settings))!r}: a prediction has none, and this writes no text")
        return self.predict(several)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The model of a run folder, on a GPU if there is one; see `miniformer.load`."""
        return cls(load_on_best_device(path))

    @overload
    def generate(self, prompts: str, **settings: Any) -> str: ...
    @overload
    def generate(self, prompts: Sequence[str], **settings: Any) -> list[str]: ...

    def generate(self, prompts: str | Sequence[str], *, max_new_tokens: int = DEFAULTS.max_new_tokens,
                 stop: str | Sequence[str] = (), seed: int | None = None, beams: int | Beams | None = None,
                 truncate: bool = False, **sampling: Any) -> str | list[str]:
        """The text that the model writes after a prompt, or after each of several. `engine.generate` returns whole answers.

        Args:
            prompts: a text or several.
            max_new_tokens, stop, seed, truncate: see `Engine.generate`.
            beams: search with this many beams instead of drawing.
            sampling: fields of `Sampling`, such as `temperature=0`.

        Raises:
            UserError: as in `Engine.generate`, or for a setting that does not exist.
        """
        if not isinstance(prompts, Iterable):
            raise UserError(f"prompts: expected a text or several; found {prompts!r:.80}")
        texts, settings = ([prompts] if isinstance(prompts, str) else prompts), _sampling(sampling)
        limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "stop": stop, "truncate": truncate}
        if beams is None:
            written = [answer.text for answer in self.engine.generate(texts, settings, seed=seed, **limits)]
        else:
            search = beams if isinstance(beams, Beams) else Beams(checked_count("beams", beams))
            written = [best.text for best, *_ in self.engine.search(texts, search, settings, **limits)]
        return written[0] if isinstance(prompts, str) else written

    def stream(self, prompt: str, *, max_new_tokens: int = DEFAULTS.max_new_tokens, stop: str | Sequence[str] = (),
               seed: int | None = None, truncate: bool = False, **sampling: Any) -> Stream:
        """The text that the model writes after one prompt, piece by piece; arguments and errors as in `generate`."""
        return self.engine.stream(prompt, _sampling(sampling), max_new_tokens=max_new_tokens, stop=stop, seed=seed,
                                  truncate=truncate)

    def predict(self, records: Any) -> Any:
        """The prediction of the model's task for a record, or a list of them for several.

        Args:
            records: an object with the task's input fields, or a text where that is all that the task reads; or several.

        Raises:
            DataError: a record is not what the task takes.
        """
        is_single = isinstance(records, (str, Mapping))
        wrapped = map(self._record, [records] if is_single else records)
        predictions = list(predict(self.trained, wrapped, batch_size=self.batch_size))
        return predictions[0] if is_single else predictions

    @torch.inference_mode()
    def embed(self, texts: str | Sequence[str]) -> Tensor:
        """Vectors `[N, O]` of N texts, or `[O]` of one. Texts longer than `max_seq_len` tokens are cut there.

        A model that was trained to embed gives the vectors of its head. Otherwise a vector is the mean of the hidden states of
        the text's tokens; of an encoder-decoder, of the encoder's.

        Raises:
            UserError: a text has no tokens, or the model reads no texts.
        """
        self._check_reads_texts()
        batch = [texts] if isinstance(texts, str) else list(texts)
        parts = [self._vectors(batch[i:i + self.batch_size]) for i in range(0, len(batch), self.batch_size)]
        config = self.model.config
        width = config.n_outputs if isinstance(self.model.head, EmbeddingHead) else config.d_model
        vectors = torch.cat(parts) if parts else empty_room(self.model, 0, width)
        return vectors[0] if isinstance(texts, str) else vectors

    @torch.inference_mode()
    def explain(self, text: str, answer: str | None = None, *, likeliest: int = 5) -> Explanation:
        """How likely each token of a text was to the model, and what its attentions looked at.

        Args:
            text: what the model reads, of at most `max_seq_len` tokens.
            answer: of an encoder-decoder, the answer to explain; None: the one that the model writes greedily.
            likeliest: how many of the likeliest tokens to list for each place.

        Raises:
            UserError: no tokens, or too many; or `likeliest` is no count.
        """
        checked_count("likeliest", likeliest)
        ids, layout = self._padded([text], cut=False)
        read, source = ids, []
        if isinstance(self.model, Seq2SeqTransformer):
            tokens = self.tokenizer.encode(self.generate(text, temperature=0) if answer is None else answer)
            tokens = tokens[1:] if tokens[:1] == [self.tokenizer.bos_id] else tokens
            ids, source = torch.tensor([[self.model.config.bos_id, *tokens]], device=ids.device), self._names(ids[0])
        with attention_maps(self.model) as maps:
            outputs = self.model(read, ids)[0] if source else self.model(ids, Context(layout))
        attention = {name: weights[0] for name, weights in maps.items()}
        if not self.model.generates:
            return Explanation(self._names(ids[0]), [], [], attention, source)
        logprobs_TV = outputs[0, :-1].float().log_softmax(dim=-1)
        best = [row.topk(min(likeliest, len(row))) for row in logprobs_TV]
        return Explanation(
            self._names(ids[0]), [None, *(float(row[token]) for row, token in zip(logprobs_TV, ids[0, 1:], strict=True))],
            [[], *(list(zip(self._names(row.indices), row.values.exp().tolist(), strict=True)) for row in best)],
            attention, source)

    def _record(self, record: Any) -> Any:
        fields = input_schema(self.task).model_fields
        if not isinstance(record, str):
            return record
        if len(fields) != 1:
            raise UserError(f"this task reads records with {', '.join(map(repr, fields))}; found a text, {record!r:.60}")
        return {next(iter(fields)): record}

    def _padded(self, texts: Sequence[str], *, cut: bool) -> tuple[Tensor, Layout]:
        """Tokens `[B, T]` of texts and where they sit."""
        self._check_reads_texts()
        most, rows = self.model.config.max_seq_len, [self.trained.prompt(text) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if not row:
                raise UserError(f"{text!r:.60} has no tokens; expected some text")
            if not cut and len(row) > most:
                raise UserError(f"{text!r:.60} has {len(row)} tokens, and max_seq_len is {most}; shorten it")
        self.engine.lengths.cut(sum(len(row) > most for row in rows), len(rows), max(map(len, rows)))
        rows = [row[:most] for row in rows]
        device = next(self.model.parameters()).device
        return (pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device),
                Layout.from_lengths([len(row) for row in rows]).to(device))

    def _check_reads_texts(self) -> None:
        if self.model.config.input_dim is not None:
            raise UserError("this model reads series of numbers, not texts")

    def _vectors(self, texts: Sequence[str]) -> Tensor:
        ids, layout = self._padded(texts, cut=True)

        def readout(hidden: Tensor, head: Head) -> Tensor:
            return head.summary(hidden, layout) if isinstance(head, EmbeddingHead) else pooled(hidden, layout, "mean")

        if isinstance(self.model, Seq2SeqTransformer):
            return readout(self.model.encode(ids, layout).hidden, self.model.head)
        vectors: Tensor = self.model(ids, Context(layout), readout=readout)
        return vectors

    def _names(self, ids: Iterable[Any]) -> list[str]:
        """Each token as text; special tokens and parts of characters by the names that the tokenizer has for them."""
        names = []
        for i in ids:
            text = self.tokenizer.decode([int(i)])
            names.append(text if text and "\ufffd" not in text else self.tokenizer.backend.id_to_token(int(i)) or "")
        return names


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    known = list(Sampling.__dataclass_fields__)
    if unknown := [name for name in settings if name not in known]:
        others = ("max_new_tokens", "stop", "seed", "beams", "truncate")
        hint = did_you_mean(unknown[0], [*others, *known], settings=True)
        raise UserError(f"there is no setting {unknown[0]!r}{hint}; there are {', '.join([*others, *known])}")
    return Sampling(**settings)
