"""A contestant: the run that a spec describes, completed without its data, and artificial batches for it to train on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Literal

import torch

from miniformer.config.counting import Skeleton
from miniformer.config.model_config import TransformerConfig
from miniformer.data.packing import PackedRows
from miniformer.kernel.errors import DataError, SpecError, UserError
from miniformer.kernel.spec import ComponentSpec, build
from miniformer.kernel.task import Batch, Example, Task
from miniformer.model.assembly import BlockAssembly
from miniformer.train.specs import model_class, model_spec, task_spec
from miniformer.train.train_config import TrainConfig

Precision = Literal[32, "bf16"]
BATCHES, RECORDS = 4, 3000
"""Number of batches that are trained on in turn; most embedded records from which a task learns labels and scales."""
ENDLESS = 10**6
"""Steps of a run that is stopped from outside. With so many, it never leaves its warm-up, and its loss stays finite."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The setting that all contestants share.

    Attributes:
        batch_size: rows of a training batch. Decoding is measured with so many texts at once, and with one alone.
        length: tokens of a training row, and of a written text including its prompt.
        precision: the precision of training; bf16 means autocast, as in a run.
        decode_precision: the precision of the weights in decoding.
    """

    batch_size: int
    length: int
    precision: Precision
    decode_precision: Precision

    @property
    def prompt(self) -> int:
        """Tokens of a prompt: a quarter of the text."""
        return max(1, self.length // 4)


class MadeUp:
    """A tokenizer that encodes any text as `length` random tokens (an empty one as none), so that all batches are full."""

    pad_id: int = 0
    bos_id: int | None = None
    eos_id: int | None = None
    mask_id: int | None

    def __init__(self, vocab_size: int, length: int) -> None:
        self.vocab_size, self.length, self.mask_id = vocab_size, length, vocab_size - 1
        self.draw = torch.Generator().manual_seed(0)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = torch.randint(self.vocab_size, (self.length if text else 0,), generator=self.draw).tolist()
        return ids

    def encode_whole(self, text: str) -> list[int]:
        return self.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(map(str, ids))

    def byte_lengths(self) -> Sequence[int]:
        return [1] * self.vocab_size

    def byte_counts(self, text: str) -> None:
        return None


def completed(run: TrainConfig, setting: Setting) -> TrainConfig:
    """The run with everything filled in that its data would decide.

    Its task learns from embedded records, and its model gets as many outputs as the task then needs.

    Raises:
        UserError: the run cannot be compared: it reads features, or its task has no embedded records.
    """
    fields = dict(run.architecture)
    if fields.get("input_dim") is not None:
        raise SpecError("this model reads series of numbers; bench compares models that read tokens")
    vocab_size = fields.setdefault("vocab_size", run.tokenizer_vocab_size)
    spec = task_spec(run)
    task = build(Task, spec.name)  # without the options that were learnt from the run's own data, such as its labels
    try:
        learnt = {**task.fit(_records(task)), **task.fit_tokenizer(MadeUp(vocab_size, setting.length))}
    except ValueError as error:
        raise UserError(f"task {spec.name!r} learns nothing from its embedded records: {error}") from error
    spec = ComponentSpec(name=spec.name, options={**spec.options, **learnt})
    task = build(Task, spec)
    n_outputs = task.n_outputs(vocab_size)
    fields["output_dim"] = None if n_outputs == vocab_size else n_outputs
    fields.setdefault("max_seq_len", setting.length)
    return run.with_fields(task=spec, model=model_class(task).assembly, model_config=fields, precision=setting.precision,
                           batch_size=setting.batch_size, max_steps=ENDLESS, max_epochs=None)


def trained_by(config: TrainConfig) -> tuple[type[BlockAssembly], TransformerConfig]:
    """The assembly and the model of a completed run."""
    task = build(Task, config.task)
    return model_class(task), model_spec(config, task)


def new_model(config: TrainConfig) -> BlockAssembly:
    """The model of a completed run, with new weights."""
    assembly, spec = trained_by(config)
    return assembly(spec)


def batches(config: TrainConfig, setting: Setting) -> list[Batch]:
    """Training batches of a completed run, with rows of `setting.length` tokens, collated by its task."""
    task, n_examples = build(Task, config.task), BATCHES * setting.batch_size
    tokenizer = MadeUp(config.architecture["vocab_size"], setting.length)
    endless = (example for record in cycle(_records(task)) for example in task.examples(record, tokenizer, setting.length)
               if len(example.tokens))
    examples = list(islice(endless, n_examples))
    rows: Sequence[Example] | PackedRows = PackedRows(examples, setting.length) if task.packs else examples
    starts = range(0, n_examples, setting.batch_size)
    return [task.collate([rows[start + row] for row in range(setting.batch_size)]) for start in starts]


def tokens_of(batch: Batch) -> int:
    """The number of tokens that a batch trains on, its source included; padding does not count."""
    return int(batch.layout.real.sum()) + (0 if batch.source is None else int(batch.source.layout.real.sum()))


@dataclass(frozen=True, slots=True)
class Account:
    """The costs of a contestant, counted before it runs.

    Attributes:
        name: the name of its task.
        parameters: the number of trained parameters.
        flops_per_token: operations per token in a forward pass over a training row. None if they cannot be counted, because
            a component decides from values what it computes.
        writes: whether it can write text, so that decoding can be measured.
    """

    name: str
    parameters: int
    flops_per_token: int | None
    writes: bool


def account(config: TrainConfig, setting: Setting) -> Account:
    """The costs of a completed run, counted on a model whose tensors have no storage.

    Raises:
        UserError: rows are longer than the model can read.
    """
    assembly, spec = trained_by(config)
    skeleton = Skeleton(spec, assembly.assembly)
    model = skeleton.model
    assert isinstance(model, BlockAssembly)
    if setting.length > spec.max_seq_len and not model.endless:
        raise UserError(f"rows of {setting.length} tokens, and it reads at most max_seq_len = {spec.max_seq_len}; "
                        "expected a smaller --length")
    batch = batches(config, setting)[0]
    source = 0 if batch.source is None else batch.source.inputs.shape[1]
    try:
        flops: int | None = skeleton.flops_per_token(batch.inputs.shape[1], source)
    except SpecError:
        flops = None
    writes = model.generates and spec.n_outputs == spec.vocab_size
    return Account(config.task.name, skeleton.parameter_count(), flops, writes)


def _records(task: Task) -> Iterator[Any]:
    """The embedded records of a task, read lazily."""
    try:
        return (record for _, record in islice(task.stdlib(), RECORDS))
    except DataError:
        raise UserError(f"{type(task).__name__} has no embedded records (`stdlib`) to make batches after") from None
