"""One example of a property: a component with drawn sizes and options, what it is given, and the story to tell if it fails.

Numbers are float64 unless a property is about precision, so that what must be equal is told from what is nearly so.
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

SIZES: Mapping[str, st.SearchStrategy[int]] = {
    "n_heads": st.sampled_from([2, 1, 4]), "d_head": st.sampled_from([4, 8, 6]), "d_ff": st.sampled_from([12, 16, 7]),
    "max_seq_len": st.sampled_from([32, 64]), "n_outputs": st.sampled_from([5, 1, 9])}
TOLERANCE = 2e-6
"""Rounding that is allowed in float64: a component may compute its softmax in float32."""


class Case:
    """One example.

    Args:
        subject: the component.
        data: draws from hypothesis.
    """

    def __init__(self, subject: ComponentUnderTest, data: st.DataObject) -> None:
        self.subject, self.data, self.story = subject, data, dict[str, Any]()
        self.chosen: dict[str, Any] = {}
        self.last_sizes: dict[str, int] = {}

    def draw(self, name: str, strategy: st.SearchStrategy[Any]) -> Any:
        """A drawn value, which the story tells."""
        self.story[name] = value = self.data.draw(strategy)
        return value

    def flip(self, name: str) -> bool:
        """A drawn truth value."""
        return bool(self.draw(name, st.booleans()))

    def choose(self, name: str, choices: Sequence[Any]) -> Any:
        """One of some values."""
        return self.draw(name, st.sampled_from(list(choices)))

    def length(self, usual: int, at_most: int = drawing.LONG) -> int:
        """The usual number of columns, or at times many more."""
        return int(self.draw("length", drawing.lengths(st.just(usual), at_most)))

    def some(self, of: str, n: int) -> list[int]:
        """All of the numbers below n, or a few of them where they are too many to look at each."""
        if n <= 8:
            return list(range(n))
        with seeded(self.draw(of, drawing.seeds)):
            self.story[of] = chosen = sorted(torch.randperm(n)[:6].tolist())
        return chosen

    def order(self, n: int) -> list[int]:
        """The numbers below n in another order."""
        with seeded(self.draw("order", drawing.seeds)):
            self.story["order"] = order = torch.randperm(n).tolist()
        return order

    def sizes(self, **fixed: int) -> dict[str, int]:
        """Sizes of the component's kind; `d_head` makes `d_model` of `n_heads`."""
        wanted = KINDS[self.subject.kind].sizes
        known = dict(fixed)
        for name in wanted:
            if name != "d_model" and name not in known:
                known[name] = self.draw(name, SIZES[name])
        if "d_model" in wanted and "d_model" not in known:
            heads = known.get("n_heads", 2)
            known["d_model"] = self.story["d_model"] = heads * self.draw("d_head", SIZES["d_head"])
            del self.story["d_head"]
        self.last_sizes = {name: known[name] for name in wanted}
        return self.last_sizes

    def options(self) -> dict[str, Any]:
        """Options by the component's own schema, as far as they are not given."""
        drawn = self.draw("options", drawing.options(self.subject.cls))
        self.story["options"] = {name: getattr(value, "name", value) for name, value in {**drawn, **self.subject.fixed}.items()}
        return dict(drawn)

    def component(self, dtype: torch.dtype = torch.float64, *, options: Mapping[str, Any] | None = None, moved: bool = True,
                  **sizes: int) -> Any:
        """A component in eval mode with drawn sizes and options; a set of them that it refuses is no example.

        Args:
            dtype: of its parameters.
            options: instead of drawn ones.
            moved: parameters are moved away from where they start, so that no zero or one hides what they do.
            sizes: instead of drawn ones.
        """
        self.chosen = self.options() if options is None else dict(options)
        self.sizes(**sizes)
        with seeded(self.draw("seed", drawing.seeds)):
            module = self.built(self.last_sizes, self.chosen)
            if isinstance(module, nn.Module):
                module = module.to(dtype).eval()
                if moved:
                    move(module)
        return module

    def built(self, sizes: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        """The component at these sizes; what it refuses is no example."""
        try:
            return self.subject.build(sizes, options)
        except ValueError:
            reject()

    def layout(self, **how: Any) -> Layout:
        """A layout, told as a picture of its documents."""
        layout: Layout = self.draw("layout", drawing.layouts(**how))
        self.story["layout"] = picture(layout)
        return layout

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Normal numbers."""
        with seeded(self.draw("numbers", drawing.seeds)):
            return torch.randn(*shape, dtype=torch.float64).to(dtype)

    def tell(self) -> str:
        """The story in words."""
        return ", ".join(f"{name} {value}" for name, value in self.story.items() if name not in ("seed", "numbers"))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A seed for torch's random numbers inside, which are put back after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def move(module: nn.Module) -> None:
    """Move parameters away from where they start: matrices by half of their size, so that scores stay in range."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            size = parameter.square().mean().sqrt() or parameter.shape[-1] ** -0.5
            parameter.add_((0.3 if parameter.ndim < 2 else 0.5 * size) * torch.randn_like(parameter))


def picture(layout: Layout) -> str:
    """Documents by row, padding as a dot: `11.2 / 1112`, and of long rows the runs: `1*40 2*17 .*9`."""
    def signs(row: list[int]) -> str:
        runs = [("." if d == 0 else str(d), len(list(run))) for d, run in groupby(row)]
        return "".join(sign * n for sign, n in runs) if len(row) <= 24 else " ".join(f"{sign}*{n}" for sign, n in runs)

    return " / ".join(map(signs, layout.documents.tolist()))


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the largest expected value or of 1."""
    if found.shape != expected.shape:
        raise Broken(f"shape {list(found.shape)} where {list(expected.shape)} is expected")
    if not found.numel():
        return 0.0
    difference = (found.double() - expected.double()).abs().max().item()
    return math.inf if math.isnan(difference) else difference / max(1.0, expected.double().abs().max().item())


def same(found: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Two tensors are equal up to rounding.

    Raises:
        Broken: they are not; the text says `what` differs, by how much and where first.
    """
    if (off := apart(found, expected)) > tolerance:
        differs = ~torch.isclose(found.double(), expected.double(), rtol=0, atol=tolerance)
        where = differs.nonzero()[0].tolist() if bool(differs.any()) else []
        raise Broken(f"{what}: {off:.1e} apart, first at {where}")


def require(holds: bool, what: str) -> None:
    """Raise `Broken` with what was seen instead."""
    if not holds:
        raise Broken(what)


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
"""What a component must leave alone. Torch's random state is not there, since first weights are drawn of it."""


@contextmanager
def undisturbed(doing: str) -> Iterator[None]:
    """What happens inside changes no setting of the process; one that it does is put back.

    Raises:
        Broken: it does; the text says that `doing` something changed it.
    """
    before = {name: get() for name, (get, _) in SETTINGS.items()}
    changed = []
    try:
        yield
    finally:
        for name, (get, put) in SETTINGS.items():
            if pickle.dumps(get()) != pickle.dumps(before[name]):
                changed.append(name)
                put(before[name])
    require(not changed, f"{doing} changes the {', '.join(changed)}")
