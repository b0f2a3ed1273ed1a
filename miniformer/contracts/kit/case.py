"""One example of a property: a component with drawn sizes and options, its inputs, and a description for when it fails.

Numbers are float64 unless a property is about precision. A difference is then either rounding or a fault, and easy to tell.
"""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import torch
from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor, nn

from miniformer.kernel.kinds import KINDS
from miniformer.kernel.layout import Layout

from . import drawing
from .component_under_test import ComponentUnderTest
from .properties import Broken
from .torch_functions import TorchFunctions

SIZES: Mapping[str, st.SearchStrategy[int]] = {
    "n_heads": st.sampled_from([2, 1, 4, 3, 2, 5, 6, 7]), "d_head": st.sampled_from([4, 8, 6, 4, 8, 5, 3]),
    "width": st.sampled_from([8, 16, 12, 9, 15, 7]), "d_ff": st.sampled_from([12, 16, 7]),
    "max_seq_len": st.sampled_from([32, 64]), "n_outputs": st.sampled_from([5, 1, 9])}
"""What sizes are drawn from, among them odd ones, which a component may refuse. A `width` is a d_model without heads."""
EDGES = (1, 65, 257)
"""Numbers of columns at which chunks end: a single one, and one more than whole blocks of 16, 32, 64, 128 or 256."""
TOLERANCE = 2e-6
"""Relative rounding error that is allowed. It is that of float32, since a component may compute its softmax in float32."""


class Case:
    """One example.

    Args:
        under_test: the component.
        data: the source of hypothesis that values are drawn from.

    Attributes:
        story: the drawn values by name, for the description.
        chosen_options: the options that the last component was built with.
        last_sizes: the sizes that the last component was built with.
        unseen: what could not be looked at, such as "training mode (it draws random numbers)"; reports say it.
    """

    def __init__(self, under_test: ComponentUnderTest, data: st.DataObject) -> None:
        self.under_test, self.data, self.story = under_test, data, dict[str, Any]()
        self.chosen_options: dict[str, Any] = {}
        self.last_sizes: dict[str, int] = {}
        self.unseen: set[str] = set()

    def draw(self, name: str, strategy: st.SearchStrategy[Any]) -> Any:
        """Draw a value and add it to the story."""
        self.story[name] = value = self.data.draw(strategy)
        return value

    def flip(self, name: str) -> bool:
        """Draw True or False."""
        return bool(self.draw(name, st.booleans()))

    def choose(self, name: str, choices: Sequence[Any]) -> Any:
        """Draw one of the choices."""
        return self.draw(name, st.sampled_from(list(choices)))

    def length(self, usual: int, at_most: int = drawing.LONG) -> int:
        """A number of columns: mostly `usual`, at times many more."""
        return int(self.draw("length", drawing.lengths(st.just(usual), at_most)))

    def edge_length(self, usual: int, at_most: int = drawing.LONG) -> int:
        """A number of columns: mostly `usual`, at times one of `EDGES`."""
        edges = [edge for edge in EDGES if edge <= at_most]
        return int(self.draw("length", st.sampled_from([usual, *edges, usual])))

    def indices(self, name: str, n: int) -> list[int]:
        """The numbers below n; of many, six that are drawn, in order."""
        if n <= 8:
            return list(range(n))
        with seeded(self.draw(name, drawing.seeds)):
            self.story[name] = chosen = sorted(torch.randperm(n)[:6].tolist())
        return chosen

    def order(self, n: int) -> list[int]:
        """The numbers below n in a drawn order."""
        with seeded(self.draw("order", drawing.seeds)):
            self.story["order"] = order = torch.randperm(n).tolist()
        return order

    def sizes(self, **fixed: int) -> dict[str, int]:
        """Draw the sizes that components of this kind are given, except for those in `fixed`."""
        names = KINDS[self.under_test.kind].sizes
        values = dict(fixed)
        for name in names:
            if name != "d_model" and name not in values:
                values[name] = self.draw(name, SIZES[name])
        if "d_model" in names and "d_model" not in values and "n_heads" not in values:
            values["d_model"] = self.story["d_model"] = self.draw("width", SIZES["width"])
            del self.story["width"]
        elif "d_model" in names and "d_model" not in values:
            # the width of a head is drawn, so that d_model is always a multiple of n_heads
            values["d_model"] = self.story["d_model"] = values["n_heads"] * self.draw("d_head", SIZES["d_head"])
            del self.story["d_head"]
        self.last_sizes = {name: values[name] for name in names}
        return self.last_sizes

    def options(self) -> dict[str, Any]:
        """Draw options by the component's own schema, except for those that the caller of the check fixed."""
        drawn = self.draw("options", self.under_test.drawn_options)
        options = {**drawn, **self.under_test.fixed}
        self.story["options"] = {name: getattr(value, "name", value) for name, value in options.items()}
        return dict(drawn)

    def component(self, dtype: torch.dtype = torch.float64, *, options: Mapping[str, Any] | None = None,
                  perturbed: bool = True, **sizes: int) -> Any:
        """A component in eval mode with drawn sizes and options; the example is rejected if it refuses them.

        Args:
            dtype: dtype of its parameters.
            options: options; without them, they are drawn.
            perturbed: move parameters away from their initial values, since an initial 0 or 1 hides what a parameter does.
            sizes: sizes that are not drawn.
        """
        self.chosen_options = self.options() if options is None else dict(options)
        self.sizes(**sizes)
        with seeded(self.draw("seed", drawing.seeds)):
            module = self.build_or_reject(self.last_sizes, self.chosen_options)
            if isinstance(module, nn.Module):
                module = module.to(dtype).eval()
                if perturbed:
                    perturb(module)
        return module

    def build_or_reject(self, sizes: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        """The component with these sizes and options; the example is rejected if it refuses them."""
        try:
            return self.under_test.build(sizes, options)
        except ValueError:
            reject()

    def layout(self, **settings: Any) -> Layout:
        """Draw a layout; the story shows it as a picture of its documents. `settings` are those of `drawing.layouts`."""
        layout: Layout = self.draw("layout", drawing.layouts(**settings))
        self.story["layout"] = picture(layout)
        return layout

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Draw a tensor of normally distributed numbers."""
        with seeded(self.draw("numbers", drawing.seeds)):
            return torch.randn(*shape, dtype=torch.float64).to(dtype)

    def describe(self) -> str:
        """The story as text; seeds are left out."""
        return ", ".join(f"{name} {value}" for name, value in self.story.items() if name not in ("seed", "numbers"))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Set torch's seed on the CPU inside the block; afterwards the random state is as before.

    `torch.manual_seed` would seed every kind of device too, and for each of them formats the whole stack of calls.
    """
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)


@torch.no_grad()
def perturb(module: nn.Module) -> None:
    """Add noise to parameters: half their own size to matrices, so that scores stay in range, and 0.3 to vectors."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            size = parameter.square().mean().sqrt() or parameter.shape[-1] ** -0.5
            parameter.add_((0.3 if parameter.ndim < 2 else 0.5 * size) * torch.randn_like(parameter))


def picture(layout: Layout) -> str:
    """The document number of each column, with padding as a dot: `11.2 / 1112`; long rows by runs: `1*40 2*17 .*9`."""
    def row_picture(row: list[int]) -> str:
        runs = [("." if number == 0 else str(number), len(list(run))) for number, run in groupby(row)]
        if len(row) <= 24:
            return "".join(sign * n for sign, n in runs)
        return " ".join(f"{sign}*{n}" for sign, n in runs)

    return " / ".join(map(row_picture, layout.documents.tolist()))


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, divided by the largest expected value or by 1, whichever is larger.

    Raises:
        Broken: the shapes differ.
    """
    if actual.shape != expected.shape:
        raise Broken(f"shape {list(actual.shape)} where {list(expected.shape)} is expected")
    if not actual.numel():
        return 0.0
    difference = (actual.double() - expected.double()).abs().max().item()
    return math.inf if math.isnan(difference) else difference / max(1.0, expected.double().abs().max().item())


def require_equal(actual: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Require that two tensors are equal up to rounding.

    Raises:
        Broken: they differ; the text says `what` differs, by how much, and where first.
    """
    difference = relative_difference(actual, expected)
    if difference > tolerance:
        differs = ~torch.isclose(actual.double(), expected.double(), rtol=0, atol=tolerance)
        where = differs.nonzero()[0].tolist() if bool(differs.any()) else []
        raise Broken(f"{what}: {difference:.1e} apart, first at {where}")


def require(holds: bool, message: str) -> None:
    """Raise `Broken` with the message, which says what was seen, unless the condition holds."""
    if not holds:
        raise Broken(message)


SETTINGS: Mapping[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (torch.get_default_device, torch.set_default_device),
    "gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "anomaly mode": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "random state of Python": (random.getstate, random.setstate),
    "random state of NumPy": (np.random.get_state, np.random.set_state),
}
"""Settings of the process that a component must not change: how each is read and set.

Torch's random state is not among them, since initial weights are drawn from it.
"""


@contextmanager
def undisturbed(action: str) -> Iterator[None]:
    """Require that the block changes no setting of the process and replaces no function of torch; what it changes is restored.

    Raises:
        Broken: it changes one; the text begins with `action`, such as "building it".
    """
    before, functions = {name: read() for name, (read, _) in SETTINGS.items()}, TorchFunctions()
    changed = []
    try:
        yield
    finally:
        for name, (read, write) in SETTINGS.items():
            if pickle.dumps(read()) != pickle.dumps(before[name]):
                changed.append(f"the {name}")
                write(before[name])
        changed += functions.restore()
    require(not changed, f"{action} changes {', '.join(changed)}")
