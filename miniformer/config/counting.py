"""What a model costs, counted before a tensor exists: parameters, arithmetic, state, activations.

The model is built and run on the meta device, where tensors have shapes and no storage. So any component is counted, a third
party's included, and a count is that of the code that will run, not of a formula beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from miniformer.kernel.assembly import Assembly
from miniformer.kernel.errors import SpecError
from miniformer.kernel.layout import Layout
from miniformer.kernel.options import options_of
from miniformer.kernel.registry import current_registry
from miniformer.kernel.spec import ComponentSpec, build
from miniformer.kernel.task import Batch, Source

from .model_config import KIND_OF, TransformerConfig


@dataclass(frozen=True, slots=True)
class PartCount:
    """A part of a model: what it is made of, and its parameters (shared ones are the first part's)."""

    name: str
    made_of: str
    parameters: int


class Skeleton:
    """A model without storage, and what can be counted of it.

    Args:
        config: the model's.
        assembly: what is made of it, such as `transformer` or `seq2seq`.

    Lengths are in tokens. Where the model has a source, `source_length` is the source's and `length` the target's; 0: equal.

    Raises:
        UserError: there is no such assembly, or it cannot be made from this config.
    """

    def __init__(self, config: TransformerConfig, assembly: str) -> None:
        self.config = config
        with torch.device("meta"):
            self.model = build(Assembly, assembly, config)

    def parameter_count(self) -> int:
        """Numbers that are trained, shared ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def flops_per_token(self, length: int, source_length: int = 0) -> int:
        """Floating-point operations of a forward pass over one row, per token of it, those of a source included.

        Counts matrix products, a multiply and an add as two; attention scores count in full, though a causal kernel may leave
        half of them out. A training step takes about three times as many.

        Raises:
            SpecError: a component looks at values to decide what it computes, as a mixture of experts does, or fails.
        """
        with _shapes_only(), FlopCounterMode(display=False) as counter, torch.no_grad():
            batch = self._batch(1, length, source_length)
            self.model.eval().read(batch)
        tokens = length if batch.source is None else length + batch.source.inputs.shape[1]
        return int(counter.get_total_flops()) // tokens

    def state_bytes(self, batch: int, length: int, source_length: int = 0) -> int:
        """Bytes that decoding `batch` sequences of `length` tokens keeps between steps, of their sources too, in fp32.

        Raises:
            StateError: the model cannot be run step by step: it is not causal, or a component of it keeps no state.
        """
        with torch.device("meta"):
            return self.model.empty_state(batch, length, source_length or length).nbytes

    def activation_bytes(self, batch: int, length: int, source_length: int = 0) -> int:
        """Bytes that a training forward keeps for backward, in fp32.

        An upper bound: attention is counted as if its scores `[B, H, T, S]` were kept, which fused kernels avoid.

        Raises:
            SpecError: as `flops_per_token`.
        """
        own = {parameter.untyped_storage()._cdata for parameter in self.model.parameters()}
        with _shapes_only(), _kept() as kept:
            outputs = self.model.train().read(self._batch(batch, length, source_length))
            del outputs
        return sum(size for key, size in kept.items() if key not in own)

    def rows(self) -> Iterator[PartCount]:
        """The model's account: embeddings, each layer, last norms, head."""
        seen: set[int] = set()
        for name, slots, modules in self.model.parts():
            new = {id(p): p.numel() for module in modules for p in module.parameters() if id(p) not in seen}
            seen.update(new)
            yield PartCount(name, ", ".join(_named(slot, spec) for slot, spec in slots.items()), sum(new.values()))

    def _batch(self, rows: int, length: int, source_length: int) -> Batch:
        """A batch of nothing; features are the source's, where the model has one."""
        features = self.config.input_dim

        def inputs(length: int, featured: bool) -> Tensor:
            return torch.zeros(rows, length, features) if featured and features else torch.zeros(rows, length, dtype=torch.long)

        layout = Layout.full(rows, length)
        if not self.model.has_source:
            return Batch(inputs(length, True), layout, {})
        source_length = source_length or length
        return Batch(inputs(length, False), layout, {}, Source(inputs(source_length, True), Layout.full(rows, source_length)))


def _named(slot: str, spec: ComponentSpec) -> str:
    """A component's name, with the options that are not its defaults, and the slot where that is not called like its kind."""
    kind = KIND_OF.get(slot, slot)
    defaults = options_of(current_registry().load(kind, spec.name)).model_validate({}).model_dump(mode="json")
    changed = ", ".join(f"{name}={value}" for name, value in spec.options.items() if value != defaults.get(name))
    return ("" if slot == kind else f"{slot} ") + (f"{spec.name}({changed})" if changed else spec.name)


@contextmanager
def _shapes_only() -> Iterator[None]:
    try:
        with torch.device("meta"):
            yield
    except RuntimeError as error:
        why = ("a component decides from values what it computes, so it cannot be counted without running it"
               if looks_at_values(error) else "a component cannot be run, so it cannot be counted")
        raise SpecError(f"{why}: {str(error).splitlines()[0]}") from error


def looks_at_values(error: RuntimeError) -> bool:
    """Whether an error on the meta device comes of values being looked at, which tensors without storage have not."""
    return isinstance(error, NotImplementedError) or ".item()" in str(error)


@contextmanager
def _kept() -> Iterator[dict[Any, int]]:
    """Sizes of the storages that autograd keeps meanwhile."""
    kept: dict[Any, int] = {}
    alive = []  # a storage that is freed could give its address to another

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
