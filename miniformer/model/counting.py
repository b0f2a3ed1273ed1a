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
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from miniformer.config.model_config import TransformerConfig
from miniformer.kernel.errors import SpecError, StateError
from miniformer.kernel.options import options_of
from miniformer.kernel.registry import current_registry
from miniformer.kernel.spec import ComponentSpec

from .transformer import Transformer


@dataclass(frozen=True, slots=True)
class Part:
    """One row of a model's account: what it is made of, and its parameters (shared ones are the first part's)."""

    name: str
    made_of: str
    parameters: int


def skeleton(config: TransformerConfig) -> Transformer:
    """The model without storage."""
    with torch.device("meta"):
        return Transformer(config)


def parameter_count(config: TransformerConfig) -> int:
    """Numbers that are trained, shared ones once."""
    return sum(parameter.numel() for parameter in skeleton(config).parameters())


def flops_per_token(config: TransformerConfig, length: int) -> int:
    """Floating-point operations of a forward pass, per token of one row of `length` tokens.

    Counts matrix products, a multiply and an add as two; attention scores count in full, though a causal kernel may leave half
    of them out. A training step takes about three times as many.

    Raises:
        SpecError: a component looks at values to decide what it computes, as a mixture of experts does.
    """
    model = skeleton(config).eval()
    with _shapes_only(), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(_inputs(config, 1, length))
    return int(counter.get_total_flops()) // length


def state_bytes(config: TransformerConfig, batch: int, length: int, dtype: torch.dtype = torch.float32) -> int:
    """Bytes that decoding `batch` sequences of `length` tokens keeps between steps.

    Raises:
        StateError: the model is not causal, or a component of it keeps no state.
    """
    with torch.device("meta"):
        return skeleton(config).to(dtype).init_state(batch, length).nbytes


def activation_bytes(config: TransformerConfig, batch: int, length: int) -> int:
    """Bytes that a training forward keeps for backward, in fp32.

    An upper bound: attention is counted as if its scores `[B, H, T, T]` were kept, which fused kernels avoid.

    Raises:
        SpecError: as `flops_per_token`.
    """
    model = skeleton(config).train()
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    with _shapes_only(), _kept() as kept:
        outputs = model(_inputs(config, batch, length))
        del outputs
    return sum(size for key, size in kept.items() if key not in own)


def parts(config: TransformerConfig) -> list[Part]:
    """The rows of a model's account: embedding, each layer, last norm, head."""
    model, seen = skeleton(config), set[int]()

    def count(*modules: nn.Module) -> int:
        new = {id(p): p.numel() for module in modules for p in module.parameters() if id(p) not in seen}
        seen.update(new)
        return sum(new.values())

    rows = [Part("embedding", _named("position", config.position), count(model.embedding, model.stack.positions))]
    for i, (layer, block) in enumerate(zip(config.layer_specs(), model.stack.layers, strict=True)):
        made_of = ", ".join(_named(slot, getattr(layer, slot)) for slot in ("attention", "position", "ffn", "norm"))
        rows.append(Part(f"layer {i}", made_of, count(block)))
    rows.append(Part("norm", _named("norm", config.norm), count(model.stack.norm)))
    return [*rows, Part("head", _named("head", config.head), count(model.head))]


def has_state(config: TransformerConfig) -> bool:
    """Whether the model can be decoded step by step."""
    try:
        state_bytes(config, 1, 1)
    except StateError:
        return False
    return True


def _inputs(config: TransformerConfig, batch: int, length: int) -> Tensor:
    if config.input_dim is not None:
        return torch.zeros(batch, length, config.input_dim)
    return torch.zeros(batch, length, dtype=torch.long)


def _named(kind: str, spec: ComponentSpec) -> str:
    """A component's name, with the options that are not its defaults."""
    defaults = options_of(current_registry().load(kind, spec.name)).model_validate({}).model_dump(mode="json")
    changed = ", ".join(f"{name}={value}" for name, value in spec.options.items() if value != defaults.get(name))
    return f"{spec.name}({changed})" if changed else spec.name


@contextmanager
def _shapes_only() -> Iterator[None]:
    try:
        with torch.device("meta"):
            yield
    except (NotImplementedError, RuntimeError) as error:
        raise SpecError("a component decides from values what it computes, so it cannot be counted without running it: "
                        f"{str(error).splitlines()[0]}") from error


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
