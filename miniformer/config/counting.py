"""What a model costs, counted before memory is spent on it: parameters, arithmetic, decoding state, activations.

The model is built and run on the meta device, where tensors have shapes and no storage. So every component can be counted, a
third party's included, and a count is that of the code that will run, not of a formula beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from miniformer.kernel.assembly import Assembly
from miniformer.kernel.errors import ComponentError, SpecError
from miniformer.kernel.layout import Layout
from miniformer.kernel.options import options_of
from miniformer.kernel.registry import current_registry
from miniformer.kernel.spec import ComponentSpec, build
from miniformer.kernel.task import Batch, Source

from .slots import SLOTS

FEW = 8
"""Tokens of a short row."""


class CountableConfig(Protocol):
    """A config from which an assembly can be built. `TransformerConfig` is one; it imports this module, so not the reverse."""

    @property
    def input_dim(self) -> int | None:
        """Numbers in each step of a feature input; None: the inputs are tokens."""

    @property
    def max_seq_len(self) -> int:
        """Tokens of the longest sequence."""


@dataclass(frozen=True, slots=True)
class PartCount:
    """A part of a model and its number of parameters; parameters that parts share are counted in the first of them.

    Attributes:
        name: of the part, such as `layer 0`.
        made_of: its components, with the options that differ from their defaults.
        parameters: numbers that are trained.
    """

    name: str
    made_of: str
    parameters: int


class Skeleton:
    """A model without storage, whose costs can be counted.

    Args:
        config: the model's.
        assembly: name of the assembly that is built from it, such as `transformer` or `seq2seq`.

    Lengths are in tokens. Where the model has a source, `length` is the target's; a `source_length` of 0 means as long.

    Raises:
        UserError: there is no such assembly, or it cannot be built from this config.
    """

    def __init__(self, config: CountableConfig, assembly: str) -> None:
        self.config = config
        with torch.device("meta"):
            self.model = build(Assembly, assembly, config)

    def parameter_count(self) -> int:
        """Numbers that are trained; a matrix that parts share counts once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def flops_per_token(self, length: int, source_length: int = 0) -> int:
        """Floating-point operations of a forward pass over one row, divided by its tokens, those of a source included.

        Only matrix products count, with a multiply and an add as two operations. Attention scores count in full, although a
        causal kernel may skip half of them. A training step takes about three times as many operations.

        Raises:
            SpecError: a component fails, or decides from values what it computes, as a mixture of experts does.
        """
        with _shapes_only(), FlopCounterMode(display=False) as counter, torch.no_grad():
            batch = self._batch(1, length, source_length)
            self.model.eval().read(batch)
        tokens = length if batch.source is None else length + batch.source.inputs.shape[1]
        return int(counter.get_total_flops()) // tokens

    def state_bytes(self, batch: int, length: int, source_length: int = 0) -> int:
        """Bytes of the state between decoding steps, in fp32, for `batch` sequences of `length` tokens and their sources.

        Raises:
            StateError: the model cannot be run step by step, because it is not causal or a component keeps no state.
        """
        with torch.device("meta"):
            return self.model.empty_state(batch, length, source_length or length).nbytes

    def activation_bytes(self, batch: int, length: int, source_length: int = 0) -> int:
        """Bytes that a forward pass in training keeps for the backward pass, in fp32.

        This is an upper bound: attention scores `[B, H, T, S]` are counted as kept, which fused kernels avoid.

        Raises:
            SpecError: a component fails, or decides from values what it computes.
        """
        own = {parameter.untyped_storage()._cdata for parameter in self.model.parameters()}
        with _shapes_only(), _saved_for_backward() as saved:
            self.model.train().read(self._batch(batch, length, source_length))
        return sum(size for key, size in saved.items() if key not in own)

    def activation_bytes_per_token(self) -> int:
        """Bytes that each token of a batch adds to what training keeps, in fp32, whatever the attention's kernel: counted in
        short rows, in which the scores of attention are next to nothing. 0 where it cannot be counted."""
        length = min(FEW, self.config.max_seq_len)
        tokens = 2 * length if self.model.has_source else length
        try:
            return self.activation_bytes(1, length) // tokens
        except SpecError:
            return 0

    def rows(self) -> Iterator[PartCount]:
        """The parts of the model from input to output: embeddings, each layer, last norms, head."""
        counted: set[int] = set()
        for name, slots, modules in self.model.parts():
            new = {id(p): p.numel() for module in modules for p in module.parameters() if id(p) not in counted}
            counted.update(new)
            made_of = ", ".join(_described(slot, spec) for slot, spec in slots.items())
            yield PartCount(name, made_of, sum(new.values()))

    def _batch(self, rows: int, length: int, source_length: int) -> Batch:
        """A batch of shapes only. Where the model reads features, the source has them, or else the inputs."""
        layout = Layout.full(rows, length)
        if not self.model.has_source:
            return Batch(self._inputs(rows, length), layout, {})
        source_length = source_length or length
        source = Source(self._inputs(rows, source_length), Layout.full(rows, source_length))
        return Batch(torch.zeros(rows, length, dtype=torch.long), layout, {}, source)

    def _inputs(self, rows: int, length: int) -> Tensor:
        features = self.config.input_dim
        return torch.zeros(rows, length, features) if features else torch.zeros(rows, length, dtype=torch.long)


def _described(slot: str, spec: ComponentSpec) -> str:
    """A component's name and the options that differ from their defaults, after the slot's name unless the kind has it."""
    kind = SLOTS[slot].kind if slot in SLOTS else slot  # a third party's assembly may have slots of its own
    defaults = options_of(current_registry().load(kind, spec.name)).model_validate({}).model_dump(mode="json")
    changed = ", ".join(f"{name}={value}" for name, value in spec.options.items() if value != defaults.get(name))
    return ("" if slot == kind else f"{slot} ") + (f"{spec.name}({changed})" if changed else spec.name)


@contextmanager
def _shapes_only() -> Iterator[None]:
    """Make tensors without storage inside, and explain what cannot be computed with them."""
    try:
        with torch.device("meta"):
            yield
    except (RuntimeError, ComponentError) as error:
        original = error.__cause__ or error
        reason = ("a component decides from values what it computes, so it cannot be counted without running it"
                  if looks_at_values(original) else "a component cannot be run, so it cannot be counted")
        raise SpecError(f"{reason}: {str(error).splitlines()[0]}") from original


def looks_at_values(error: BaseException) -> bool:
    """Whether an error on the meta device arose because a component read values, which tensors without storage lack."""
    return isinstance(error, NotImplementedError) or ".item()" in str(error)


@contextmanager
def _saved_for_backward() -> Iterator[dict[Any, int]]:
    """The storages, by address, that autograd saves inside, with their sizes in bytes."""
    sizes: dict[Any, int] = {}
    alive = []  # a storage that is freed could give its address to another

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes
