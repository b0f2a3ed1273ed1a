"""The promise of every module that its answers do not depend on the calls before."""

from __future__ import annotations

import copy

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from miniformer.contracts.kit import drawing
from miniformer.contracts.kit.attention_harness import AttentionHarness
from miniformer.contracts.kit.call import AUTOCAST, GRADIENTS, INFERENCE, NO_GRAD, Call
from miniformer.contracts.kit.case import TOLERANCE, Case, perturb, require, require_equal, seeded
from miniformer.contracts.kit.module_runner import MODULE_KINDS
from miniformer.contracts.kit.properties import Broken, contract
from miniformer.kernel.layout import Layout


@contract(*MODULE_KINDS)
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
    dtype, dtype_before = (case.choose(name, [torch.float64, torch.float32, torch.bfloat16]) for name in
                           ("dtype", "dtype of earlier calls"))
    calls = Calls(case, module, harness)
    call, following = calls.draw(), calls.draw()
    earlier = [calls.draw(like=call) for _ in range(case.draw("earlier calls", st.integers(1, 3)))]
    times = case.choose("times", [1, 1, 1, 12])
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

    Args:
        harness: the attention, with its position encoding; None for other kinds.
    """

    def __init__(self, case: Case, module: nn.Module, harness: AttentionHarness | None) -> None:
        self.case, self.module, self.harness = case, module, harness
        self.most: int | None = getattr(module, "max_seq_len", None)
        self.ends = self.most is not None and not getattr(module, "extrapolates", True)
        # a module that says that training changes it is not used in training
        self.trains = "a-pass-leaves-it-as-it-was" not in case.under_test.known_violations
        self.numbers = torch.Generator().manual_seed(case.draw("numbers", drawing.seeds))

    def draw(self, like: Call | None = None) -> Call:
        """A call; one that is made before `like` may have its shape, and may lie beyond `max_seq_len`."""
        draw, kind, width = self.case.data.draw, self.case.under_test.kind, self.case.last_sizes["d_model"]
        modes = [GRADIENTS, NO_GRAD, INFERENCE, INFERENCE, AUTOCAST] if like else [GRADIENTS, GRADIENTS, NO_GRAD]
        under = draw(st.sampled_from(modes))
        training = self.trains and draw(st.booleans())
        layout = self._layout() if like is None else self._layout_before(like.layout)
        x = self._numbers(*layout.shape, width)
        if self.harness is None:
            return Call(kind, x, layout, under, training, draw(st.booleans()))
        cls, causal = self.case.under_test.cls, self.harness.causal or draw(st.booleans())
        ways = ["whole", *["memory"] * cls.cross, *["pieces"] * (causal and self.case.under_test.has_state)]
        way = draw(st.sampled_from(ways))
        memory = self._numbers(len(x), draw(st.sampled_from([3, 5])), width) if way == "memory" else None
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
        draw = self.case.data.draw
        if draw(st.booleans()):
            layout: Layout = draw(drawing.layouts())
            return layout
        return Layout.full(draw(st.integers(1, 3)), draw(st.integers(1, 9)), start=draw(st.sampled_from([0, 3, 20])))

    def _layout_before(self, later: Layout) -> Layout:
        """A layout of an earlier call: that of the later one, another of its shape, any other, or one that goes far."""
        draw = self.case.data.draw
        likeness = draw(st.sampled_from(["equal", "equal", "of its shape", "any", "far"]))
        if likeness == "equal":
            return later
        if likeness == "of its shape":
            kind = draw(st.sampled_from([drawing.FULL, drawing.LEFT, drawing.RIGHT, drawing.HOLES, drawing.PACKED]))
            return drawing.many_columns(kind, *later.shape, draw(drawing.seeds))
        if likeness == "any":
            return self._layout()
        return Layout.full(draw(st.integers(1, 2)), draw(st.sampled_from([40, 70, 130])), start=draw(st.sampled_from([0, 100])))

    def _numbers(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=self.numbers)
