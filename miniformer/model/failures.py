"""Which component of a model failed. An error in the code of a plugin is then told in a line, not in a traceback alone."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from traceback import walk_tb
from typing import NamedTuple

import torch
from torch import Tensor, nn

from miniformer.config.model_config import TransformerConfig
from miniformer.kernel.component import Component
from miniformer.kernel.context import Context
from miniformer.kernel.errors import ComponentError, MiniformerError, file_in_package, in_one_line, line_of
from miniformer.kernel.interfaces import Head, PositionEncoding
from miniformer.kernel.out_of_memory import ran_out

from .block import Stack

QUOTED = re.compile(r'File "([^"]+)", line (\d+)')
"""A line of code in the text of an error, which torch.compile quotes instead of showing it in the traceback."""


class Filled(NamedTuple):
    """A slot of a model with the component that fills it: the component's registered name, and the layer ("" outside)."""

    component: Component
    kind: str
    name: str
    slot: str
    layer: str

    def __str__(self) -> str:
        place = f"{self.layer}, slot {self.slot}" if self.layer else f"slot {self.slot}"
        return f"{self.kind} {self.name!r} ({place})"


def names_component(error: Exception, model: nn.Module) -> None:
    """Raise a `ComponentError` in place of an error, if a component of the model is to blame for it.

    Errors that miniformer raises on purpose and errors of memory that ran out stay as they are.
    """
    if isinstance(error, MiniformerError) or ran_out(error):
        return
    slots = list(filled_slots(model))
    told = (_wrong_shape(slots, error) or _defined_beside(slots, error, QUOTED.findall(str(error)))
            or _running(slots, error) or _defined_beside(slots, error, _lines(error)))
    if told:
        raise ComponentError(told) from error


def filled_slots(model: nn.Module) -> Iterator[Filled]:
    """The slots of a model that is made of stacks, from input to output."""
    config = getattr(model, "config", None)
    if not isinstance(config, TransformerConfig):
        return
    for path, module in model.named_modules():
        if isinstance(module, Stack):
            yield from _of_stack(module, config, "" if path == "stack" else f"{path} ")
    if isinstance(head := getattr(model, "head", None), Head):
        yield Filled(head, "head", config.head.name, "head", "")


def _of_stack(stack: Stack, config: TransformerConfig, prefix: str) -> Iterator[Filled]:
    layers = config.layer_specs()
    names = {0: config.position.name}  # of position encodings, of which equal ones are built once
    for number, layer in zip(stack.encoding_of, layers, strict=True):
        assert layer.position
        names.setdefault(number, layer.position.name)
    for number, encoding in enumerate(stack.encodings):
        yield Filled(encoding, "position", names[number], "position", prefix.strip())
    for i, (layer, block) in enumerate(zip(layers, stack.layers, strict=True)):
        specs = {"attention": layer.attention, "cross": config.cross_attention, "ffn": layer.ffn, "norm": layer.norm}
        for path, child in block.named_children():
            spec = specs.get(path.partition("_")[0])
            if spec is not None and isinstance(child, Component):
                slot = "cross_attention" if path == "cross" else path.partition("_")[0]
                kind = "attention" if path == "cross" else slot
                yield Filled(child, kind, spec.name, slot, f"{prefix}layer {i}")
    if isinstance(stack.norm, Component):
        yield Filled(stack.norm, "norm", config.norm.name, "norm", f"{prefix}after the last layer")


def _wrong_shape(slots: list[Filled], error: Exception) -> str:
    """What is wrong with the first component whose output has another shape than its interface says; "" if none has.

    Such an error shows outside the component, where its output is used. So each is asked by itself.
    """
    for slot in slots:
        try:
            x, out, expected = _output_alone(slot.component)
        except Exception:  # it may need more than a tensor; what it raised in the model is in the traceback
            continue
        if not isinstance(out, Tensor) or out.shape != x.shape[:2] + (expected,):
            found = list(out.shape) if isinstance(out, Tensor) else f"a {type(out).__name__}"
            wanted = [*x.shape[:2], expected]
            return f"{slot}: its output for {list(x.shape)} is {found}, where {wanted} is expected: {in_one_line(error)}"
    return ""


@torch.no_grad()
def _output_alone(component: Component) -> tuple[Tensor, object, int]:
    """A small input of a component, what it gives for that, and the width that its output should have."""
    width: int = component.d_model  # type: ignore[assignment]
    own = next((p for p in component.parameters() if p.is_floating_point()), torch.empty(0))
    x = torch.linspace(-1, 1, 2 * 3 * width, dtype=own.dtype, device=own.device).view(2, 3, width)
    if isinstance(component, PositionEncoding):
        return x, component.embed(x, Context.plain(x).layout.positions), width
    return x, component(x), component.n_outputs if isinstance(component, Head) else width


def _running(slots: list[Filled], error: Exception) -> str:
    """The innermost component that is running in the traceback; "" if none is."""
    by_identity, found = {id(slot.component): slot for slot in slots}, None
    for frame, _ in walk_tb(error.__traceback__):
        found = by_identity.get(id(frame.f_locals.get("self")), found)
    if found is None:
        return ""
    return f"{found}: {in_one_line(error)} at {line_of(error, type(found.component).__module__)}"


def _defined_beside(slots: list[Filled], error: Exception, lines: list[tuple[str, str]]) -> str:
    """The component of a third party whose file has the innermost of these lines; "" if none has.

    Its own file is where its state or its backward pass failed, which have no module in the traceback.
    """
    for file, line in reversed(lines):
        for slot in slots:
            module = type(slot.component).__module__
            if file == getattr(sys.modules.get(module), "__file__", None) and not module.startswith("miniformer."):
                return f"{slot}: {in_one_line(error)} at {file_in_package(file, module)}:{line}"
    return ""


def _lines(error: Exception) -> list[tuple[str, str]]:
    return [(frame.f_code.co_filename, str(line)) for frame, line in walk_tb(error.__traceback__)]
