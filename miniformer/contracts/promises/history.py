"""The promise of every module that its answers do not depend on the calls before."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from miniformer.contracts.kit import drawing
from miniformer.contracts.kit.attention_harness import AttentionHarness
from miniformer.contracts.kit.call import AUTOCAST, GRADIENTS, INFERENCE, NO_GRAD, Call
from miniformer.contracts.kit.case import TOLERANCE, Case, perturb, require, require_equal, seeded
from miniformer.contracts.kit.module_runner import MODULE_KINDS
from miniformer.contracts.kit.properties import Broken, contract
from miniformer.contracts.kit.rounding import DTYPES
from miniformer.kernel.context import Memory
from miniformer.kernel.layout import Layout

NUMBERS, CIRCUMSTANCES, ANYTHING = "numbers", "circumstances", "anything"
"""What earlier calls have other than the call whose answer is looked at: the numbers and what is padding, but no shape; the
dtype, or inference mode before gradients; or anything, also its size."""
OTHERS = [NUMBERS] * 3 + [CIRCUMSTANCES] * 3 + [ANYTHING] * 2


@contract(*MODULE_KINDS, examples=1.3)
def earlier_calls_change_nothing(case: Case) -> None:
    """Outputs and gradients depend on the inputs and the weights, and not on the calls before. After calls of other sizes,
    layouts, positions and memories, in other dtypes and modes, with other weights, or beyond `max_seq_len`, a module answers
    as a new one does.

    In training: a validation, a long batch or one in another precision changes what the model computes from then on, and a
    saved model does not compute what it did.

    Seen: transformers#25306, where a long text changed the answers to short ones after it, and flash-attention#299, tables made
    in inference mode that no training could use.
    """
    harness = AttentionHarness.drawn(case, training=False) if case.under_test.kind == "attention" else None
    module = case.component() if harness is None else harness.module
    calls = Calls(case, module, harness)
    dtype, dtype_before, times = calls.dtype, calls.dtype_before, calls.choose([1, 1, 1, 1, 1, 12])
    call = calls.draw()
    earlier = [calls.before(call) for _ in range(case.draw("earlier calls", st.integers(1, 3)))]
    following = calls.before(call) if calls.others == NUMBERS else calls.draw()
    case.story |= {"dtype": dtype, "dtype of earlier calls": dtype_before, "times": times}
    case.story |= {"earlier calls": f"({'; '.join(map(str, earlier))})", "the call": f"({call})"}

    weights, new = {name: value.clone() for name, value in module.state_dict().items()}, copy.deepcopy(module)
    for one in (module, new):
        one.to(dtype_before)
    with seeded(2):
        perturb(module)
    for one_call in (earlier * times)[:12]:
        calls.make(module, one_call, dtype_before)
    added = module.state_dict().keys() - weights.keys()
    require(not added, f"a call adds {', '.join(sorted(added))} to what is saved, and a new module cannot load it")
    for one in (module, new):
        one.to(dtype)
        one.load_state_dict(weights)

    newer = copy.deepcopy(new)
    answer = call.answer(module, dtype)
    same_places = all(one.layout is call.layout for one in earlier)
    _compare(answer, call.answer(new, dtype), "a used module and a new one", dtype, exact=same_places)
    _compare(following.answer(module, dtype), following.answer(newer, dtype), "the call after it, of both", dtype)
    _compare(call.answer(module, dtype), answer, "the first call again, after the second", dtype)
    if not case.under_test.known_violations and not call.training:
        _beside_padding(call, module, answer, dtype)


def _beside_padding(call: Call, module: nn.Module, answer: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Compare with a call of one column more. What a class or a file keeps for all modules by shape is the same for a new
    module, and is another for another shape."""
    T = call.layout.shape[1]
    if call.pieces or call.memory is not None or dtype == torch.bfloat16:
        return
    for name, longer in call.beside_padding().answer(module, dtype).items():
        if name in ("forward", "embed", "rotate"):
            dim = 2 if name == "rotate" else 1
            real = call.layout.real
            found, expected = ((out if dim == 1 else out.transpose(1, 2))[:, :T] for out in (longer, answer[name]))
            require_equal(expected[real], found[real], f"{name} of {T} columns alone and beside padding", 10 * TOLERANCE)


def _compare(found: dict[str, Tensor], expected: dict[str, Tensor], what: str, dtype: torch.dtype, exact: bool = False) -> None:
    """Require equal answers: to the last bit, or where tables may have other lengths, up to rounding."""
    if missing := found.keys() ^ expected.keys():
        raise Broken(f"{what}: only one of them has {', '.join(sorted(missing))}")
    for name, value in found.items():
        require(value.dtype == expected[name].dtype, f"{name} of {what}: {value.dtype} and {expected[name].dtype}")
        if exact and "gradient" not in name:
            require(value.shape == expected[name].shape and torch.equal(value.nan_to_num(), expected[name].nan_to_num()),
                    f"{name} of {what} differs, by {float((value - expected[name]).abs().max()):.1e}")
        require_equal(value, expected[name], f"{name} of {what}", max(TOLERANCE, 16 * torch.finfo(dtype).eps))


class Calls:
    """Draws calls of one module.

    Most of it is chosen by a seed of all that was drawn. Values that hypothesis draws one by one are often those of an earlier
    example again, and what is looked for here needs several to come together.

    Args:
        harness: the attention, with its position encoding; None for other kinds.

    Attributes:
        others: what the other calls may have other than the one that is looked at; one of `NUMBERS` and so on.
        dtype, dtype_before: the dtypes of the call that is looked at and of those before it.
    """

    def __init__(self, case: Case, module: nn.Module, harness: AttentionHarness | None) -> None:
        self.case, self.module, self.harness = case, module, harness
        seed = case.draw("numbers", drawing.seeds)
        self.numbers = torch.Generator().manual_seed(seed)
        self.choose = random.Random(f"{seed} {case.story['seed']} {case.last_sizes}").choice
        self.others, self.dtype = self.choose(OTHERS), self.choose(DTYPES)
        among = {NUMBERS: [self.dtype], CIRCUMSTANCES: [self.dtype, torch.bfloat16]}
        self.dtype_before = self.choose(among.get(self.others, list(DTYPES)))
        self.most: int | None = getattr(module, "max_seq_len", None)
        self.ends = self.most is not None and not getattr(module, "extrapolates", True)
        # a module that says that training changes it is not used in training
        self.trains = "a-pass-leaves-it-as-it-was" not in case.under_test.known_violations

    def draw(self) -> Call:
        """A call whose answer is looked at."""
        modes = {CIRCUMSTANCES: [GRADIENTS], NUMBERS: [GRADIENTS, NO_GRAD, INFERENCE]}.get(self.others, [GRADIENTS, NO_GRAD])
        return self._call(self._layout(), self.choose(modes))

    def before(self, later: Call) -> Call:
        """A call that is made before another. One that may have anything other may lie beyond `max_seq_len`."""
        if self.others == ANYTHING:
            under = self.choose([GRADIENTS, NO_GRAD, INFERENCE, INFERENCE, AUTOCAST])
            return self._call(self._layout_before(later.layout), under)
        other_layout = self.others == NUMBERS and self.choose([True, True, False])
        layout = self._of_shape(later.layout) if other_layout else later.layout
        memory = None if later.memory is None else self._memory(later.memory.layout)
        under = later.under if self.others == NUMBERS else self.choose([INFERENCE, INFERENCE, INFERENCE, AUTOCAST])
        return replace(later, x=self._numbers(*later.x.shape), layout=layout, memory=memory, under=under)

    def _call(self, layout: Layout, under: str) -> Call:
        kind, width = self.case.under_test.kind, self.case.last_sizes["d_model"]
        training = self.trains and self.choose([True, False])
        x = self._numbers(*layout.shape, width)
        if self.harness is None:
            return Call(kind, x, layout, under, training, self.choose([True, False]))
        cls, causal = self.case.under_test.cls, self.harness.causal or self.choose([True, False])
        pieces = causal and self.case.under_test.has_state and self.others != CIRCUMSTANCES  # a state is fed without gradients
        ways = ["whole", *["memory"] * cls.cross, "pieces" if pieces else "whole"]
        way = self.choose(ways)
        memory = self._memory(Layout.full(len(x), self.choose([3, 5]))) if way == "memory" else None
        return Call(kind, x, layout, under, training and way == "whole", causal, self.harness, memory, way == "pieces")

    def make(self, module: nn.Module, call: Call, dtype: torch.dtype) -> None:
        """Make an earlier call. One that lies beyond `max_seq_len` may be refused."""
        beyond = self.ends and self.most is not None and int(call.layout.positions.max()) >= self.most
        try:
            call.answer(module, dtype)
        except (ValueError, IndexError):
            if not beyond:
                raise

    def _layout(self) -> Layout:
        if self.choose([True, False]):
            layout: Layout = self.case.data.draw(drawing.layouts())
            return layout
        return Layout.full(self.choose(range(1, 4)), self.choose(range(1, 10)), start=self.choose([0, 3, 20]))

    def _layout_before(self, later: Layout) -> Layout:
        """A layout of an earlier call: that of the later one, another of its shape, any other, or one that goes far."""
        likeness = self.choose(["equal", "equal", "of its shape", "any", "far"])
        if likeness == "equal":
            return later
        if likeness == "of its shape":
            return self._of_shape(later)
        if likeness == "any":
            return self._layout()
        return Layout.full(self.choose([1, 2]), self.choose([40, 70, 130]), start=self.choose([0, 100]))

    def _of_shape(self, layout: Layout) -> Layout:
        """A layout of the shape of another."""
        kind = self.choose([drawing.FULL, drawing.LEFT, drawing.RIGHT, drawing.HOLES, drawing.PACKED])
        return drawing.many_columns(kind, *layout.shape, self.choose(range(2**16)))

    def _memory(self, shaped: Layout) -> Memory:
        """A memory of the shape of a layout, which may be padded."""
        width = self.case.last_sizes["d_model"]
        kind = self.choose([drawing.FULL, drawing.RIGHT])
        return Memory(self._numbers(*shaped.shape, width), drawing.many_columns(kind, *shaped.shape, self.choose(range(2**16))))

    def _numbers(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=self.numbers)
