"""One call of a module: its inputs and the circumstances, so that a used module and a new one can be asked the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from miniformer.kernel.context import Context, Memory
from miniformer.kernel.layout import Layout

from .attention_harness import AttentionHarness
from .case import seeded
from .module_runner import METHODS

GRADIENTS, NO_GRAD, INFERENCE, AUTOCAST = "gradients", "no gradients", "inference mode", "autocast"


@dataclass(frozen=True)
class Call:
    """A call.

    Attributes:
        kind: the kind of the module.
        x: the input `[B, T, D]` in float64; the module gets it in its own dtype.
        layout: where its tokens sit.
        under: the mode of torch that it is made in: with gradients and a backward pass, without, in inference mode, or under
            autocast.
        training: whether the module is in training mode.
        causal: whether tokens look back only.
        encoding: of an attention: the harness that has its position encoding.
        memory: of an attention: what it looks at instead of its own input.
        pieces: of an attention: whether the columns are fed to a new state, in two pieces.
    """

    kind: str
    x: Tensor
    layout: Layout
    under: str = GRADIENTS
    training: bool = False
    causal: bool = False
    encoding: AttentionHarness | None = None
    memory: Memory | None = None
    pieces: bool = False

    def __str__(self) -> str:
        rows, columns = self.layout.shape
        first = int(self.layout.positions.min())
        parts = [f"{rows}x{columns}", f"from position {first}" * (first > 0), "of a memory" * (self.memory is not None),
                 "in pieces" * self.pieces, "in training" * self.training, f"with {self.under}" * (self.under != NO_GRAD)]
        return " ".join(filter(None, parts))

    def answer(self, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        """What the module gives: outputs and recorded values by name, and gradients where the call is made with them."""
        module.train(self.training)
        x = self.x.to(dtype).clone()
        backward = self.under == GRADIENTS and not self.pieces
        # autocast is for weights in float32, and a state is fed without gradients
        under = NO_GRAD if self.pieces or (self.under == AUTOCAST and dtype != torch.float32) else self.under
        if backward:
            module.zero_grad()
            x.requires_grad_()
        with seeded(1), _circumstances(under):
            named = self._outputs(module, x)
        if not backward:
            return named
        total = sum((out * _weights(out)).sum() for out in named.values() if out.requires_grad)
        if isinstance(total, Tensor):
            total.backward()  # type: ignore[no-untyped-call]
        slopes = {"the input": x.grad, **{name: parameter.grad for name, parameter in module.named_parameters()}}
        return {name: out.detach() for name, out in named.items()} | {
            f"the gradient of {name}": slope.clone() for name, slope in slopes.items() if slope is not None}

    def beside_padding(self) -> Call:
        """The call with one more column, which is padding: it changes no output of the others."""
        layout = self.layout
        positions = torch.cat([layout.positions, torch.zeros_like(layout.positions[:, :1])], dim=1)
        documents = torch.cat([layout.documents, torch.zeros_like(layout.documents[:, :1])], dim=1)
        return replace(self, x=torch.cat([self.x, self.x[:, :1]], dim=1), layout=Layout(positions, documents))

    def _outputs(self, module: nn.Module, x: Tensor) -> dict[str, Tensor]:
        context = Context(self.layout, self.causal)
        outputs: dict[str, Tensor | None]
        if self.encoding is not None:
            outputs = {"forward": self._attention(module, x, self.encoding)}
        else:
            outputs = METHODS[self.kind](module, x, context)
        records = {f"the record {record.name}": record.value for record in context.records}
        return {name: value for name, value in (outputs | records).items() if value is not None}

    def _attention(self, module: nn.Module, x: Tensor, encoding: AttentionHarness) -> Tensor:
        # the encodings of the kit are for float64, and an attention need not cast a bias
        position = encoding.encoding if x.dtype == torch.float64 else None
        harness = AttentionHarness(module, self.causal, position)  # type: ignore[arg-type]
        if self.memory is not None:
            return harness.for_memory(x, self.layout, replace(self.memory, hidden=self.memory.hidden.to(x.dtype)))
        if not self.pieces:
            return harness(x, self.layout)
        columns = self.layout.shape[1]
        state = harness.module.init_state(*self.layout.shape)
        if state is None:  # no output depends on earlier tokens
            return harness(x, self.layout)
        return harness.steps(x, self.layout, sorted({(columns + 1) // 2, columns}), state)


@contextlib.contextmanager
def _circumstances(under: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if under == INFERENCE:
            stack.enter_context(torch.inference_mode())
        elif under in (NO_GRAD, AUTOCAST):
            stack.enter_context(torch.no_grad())
        if under == AUTOCAST:
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        yield


def _weights(out: Tensor) -> Tensor:
    """Weights of an output's numbers in the sum whose gradient is taken."""
    return torch.linspace(-1.0, 1.0, out.numel(), dtype=out.dtype).view_as(out)
