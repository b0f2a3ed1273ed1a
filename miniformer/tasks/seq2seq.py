"""`seq2seq`: write the text that answers another, with an encoder and a decoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import BaseModel
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from miniformer.data import stdlib
from miniformer.kernel.interfaces import Head
from miniformer.kernel.task import Batch, Example, LossTerm, Split, Task, Tokenizer

from .baselines import unigram
from .collate import nothing_to_write, start_of, with_source, written
from .losses import next_tokens, row_losses
from .metrics import Perplexity


class SourceInput(BaseModel):
    """A text to answer."""

    source: str


class PairRecord(SourceInput):
    """A text and the text that answers it."""

    target: str


class Seq2Seq(Task):
    """Write the target text that belongs to a source text, with an encoder and a decoder: translation, summary, naming.

    The decoder reads the target from its start token on and predicts the token after each; the encoder never sees the target.
    The metric `exact_match` needs no decoding: if every token is predicted correctly from the correct tokens before it, then
    greedy decoding writes exactly the target.
    """

    Record: ClassVar[type[BaseModel]] = PairRecord
    Input: ClassVar[type[BaseModel] | None] = SourceInput
    head: ClassVar[str] = "lm"
    has_source: ClassVar[bool] = True

    def stdlib(self) -> Iterable[tuple[str, Any]]:
        """Docstrings of functions, and the functions' names."""
        return ((where, PairRecord(source=text, target=name)) for where, name, text in stdlib.described())

    def texts(self, record: Any) -> Iterator[str]:
        yield record.source
        yield record.target

    def n_outputs(self, vocab_size: int) -> int:
        return vocab_size

    def encode(self, record: Any, tokenizer: Tokenizer) -> Example:
        ids, start, end = tokenizer.encode(record.target), start_of(tokenizer), tokenizer.eos_id
        ids = ids[1:] if ids[:1] == [tokenizer.bos_id] else ids
        return replace(self.question(record, tokenizer), tokens=[start, *ids, *([] if end is None else [end])])

    def question(self, record: Any, tokenizer: Tokenizer) -> Example:
        """The example of a source whose target is not known: the target is the start token alone."""
        source = self.prompt(record.source, tokenizer)
        if not source:
            raise ValueError("field 'source' has no tokens; expected some text")
        return Example([start_of(tokenizer)], source=source)

    def prompt(self, text: str, tokenizer: Tokenizer) -> list[int]:
        """The token ids of a source, encoded as a complete text, with an end token if the tokenizer adds one."""
        return tokenizer.encode_whole(text)

    def cut(self, example: Example, length: int) -> Example:
        """The first tokens of source and target; the target has one more, since the decoder does not read its last."""
        assert example.source is not None
        return replace(example, tokens=example.tokens[:length + 1], source=example.source[:length])

    def unmeasurable(self, examples: Sequence[Example]) -> str | None:
        return nothing_to_write(examples)

    def collate(self, examples: Sequence[Example]) -> Batch:
        return with_source(examples)

    def loss(self, hidden: Tensor, head: Head, batch: Batch) -> LossTerm:
        return next_tokens(hidden, head, batch.targets["following"])

    def metrics(self, tokenizer: Tokenizer) -> dict[str, Metric]:
        return {"perplexity": Perplexity(), "accuracy": MeanMetric(), "exact_match": MeanMetric()}

    def update(self, metrics: Mapping[str, Metric], hidden: Tensor, head: Head, batch: Batch, loss: LossTerm) -> None:
        following = batch.targets["following"]
        right = head(hidden).argmax(dim=-1) == following
        metrics["perplexity"].update(loss.sum, loss.weight)
        metrics["accuracy"].update(right[following >= 0].float())
        metrics["exact_match"].update((right | (following < 0)).all(dim=1).float())

    def baselines(self, train: Split, held_out: Split, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
        texts = [tuple(map(int, example.tokens[1:])) for example in train.examples]
        targets = [tuple(map(int, example.tokens[1:])) for example in held_out.examples]
        token = Counter(i for text in texts for i in text).most_common(1)[0][0]
        text = Counter(texts).most_common(1)[0][0]
        hits = sum(i == token for target in targets for i in target) / max(1, sum(map(len, targets)))
        return {"unigram": {"loss": unigram(train, held_out, tokenizer)["loss"], "accuracy": hits},
                "the commonest target": {"exact_match": sum(target == text for target in targets) / len(targets)}}

    def predict(self, hidden: Tensor, head: Head, batch: Batch) -> list[dict[str, Any]]:
        """The summed loss of each row's target in nats, and the number of tokens in that sum."""
        return row_losses(hidden, head, batch.targets["following"])

    def answer(self, model: Any, batch: Batch, tokenizer: Tokenizer) -> list[dict[str, Any]]:
        """The target that the model writes for each source, greedily."""
        return [{"target": text} for text in written(model, batch, tokenizer)]
