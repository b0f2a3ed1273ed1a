"""Promises of an attention about rotations, memories, kernels, and outputs that stay finite."""

from __future__ import annotations

from typing import get_args

import torch
from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor

from miniformer.contracts.kit import drawing
from miniformer.contracts.kit.attention_harness import AttentionHarness, each_document
from miniformer.contracts.kit.case import Case, picture, relative_difference, require, require_equal, seeded
from miniformer.contracts.kit.component_under_test import ComponentUnderTest
from miniformer.contracts.kit.library_internals import flex_without_compiling
from miniformer.contracts.kit.module_runner import draws_in_training
from miniformer.contracts.kit.properties import Skip, contract
from miniformer.decoding.memory import rows_of, stack_memories
from miniformer.kernel.context import Context, Memory, Signal
from miniformer.kernel.interfaces import Attention, PositionEncoding
from miniformer.kernel.layout import Layout
from miniformer.kernel.options import options_of

from .attention_visibility import MIN_CHANGE


def _reads_no_memory(under_test: ComponentUnderTest) -> str:
    return "" if under_test.cls.cross else "it does not declare `cross`"


@contract("attention")
def rows_without_texts_are_finite(case: Case) -> None:
    """A row that is padding only has finite outputs and finite gradients.

    In training: one short last batch turns every weight into NaN.

    Seen: pytorch#103749 and #163997, NaN for rows in which everything is masked.
    """
    harness = AttentionHarness.drawn(case)
    lengths = case.draw("lengths", st.lists(st.integers(0, 4), min_size=2, max_size=3).filter(lambda n: 0 in n and max(n)))
    layout = Layout.from_lengths(lengths, 4, case.choose("padding", ["right", "left"]))
    x = case.tensor(*layout.shape, harness.module.d_model).requires_grad_()
    out = harness(x, layout)
    require(bool(out.isfinite().all()), "its output is not finite where a row is padding only")
    out[layout.real].sum().backward()  # type: ignore[no-untyped-call]
    gradients = [x.grad, *(p.grad for p in harness.module.parameters())]
    finite = all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients)
    require(finite, "a gradient is not finite where a row is padding")


@contract("attention", proves=["applies rotate"], skip=lambda s: "" if "rotate" in s.cls.applies else "it applies no rotation")
def queries_and_keys_are_rotated(case: Case) -> None:
    """The attention calls `rotate` of the position encoding on its queries, with role "q", and on its keys, with role "k". Both
    have the shape `[B, H or K, T, E]`.

    In training: rotary positions are applied to one side only, and distances mean nothing.

    Seen: unsloth#4078, where left-padded rows shared the positions of one row.
    """
    harness = AttentionHarness.drawn(case, encoded=False, training=False)
    layout = case.layout(kinds=[drawing.FULL, drawing.LEFT])
    x = case.tensor(*layout.shape, harness.module.d_model)
    B, T = layout.shape
    width = harness.module.rotary_width or harness.module.d_model // harness.module.n_heads
    for mode in ("eval", "training"):
        harness.module.train(mode == "training")
        recorder = RotationRecorder(harness.module.d_model, harness.module.n_heads, 64)
        with torch.no_grad():
            harness.module(x, Context(layout, harness.causal, signal=Signal(recorder, None, None)))
        roles = {role for role, _ in recorder.calls}
        require(roles == {"q", "k"}, f"in {mode} mode it rotated {', '.join(sorted(roles)) or 'nothing'}")
        for role, shape in recorder.calls:
            require(len(shape) == 4 and shape[0] == B and shape[2:] == (T, width),
                    f"it rotated {role} of shape {list(shape)}; expected [{B}, heads, {T}, {width}]")


class RotationRecorder(PositionEncoding):
    """A position encoding that changes nothing and records the role and shape of each tensor that it is to rotate."""

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.calls: list[tuple[str, tuple[int, ...]]] = []

    def rotate(self, x: Tensor, where: object, role: str) -> Tensor:
        self.calls.append((role, tuple(x.shape)))
        return x


@contract("attention", proves=["cross"], skip=_reads_no_memory)
def reads_a_memory(case: Case) -> None:
    """In cross-attention, a token's output depends on every token of its document in the memory. It depends on no padding there
    and on no token beside it. The state that `remember` makes of the memory changes nothing.

    In training: an encoder-decoder answers without its source, or with that of its neighbour.

    Seen: transformers#10552, padding in front of a decoder's inputs that changed what it wrote.
    """
    harness = AttentionHarness.drawn(case, causal=False, encoded=False)
    if harness.module.rule is not None:  # models refuse a rule here: positions of two sequences do not compare
        reject()
    D, queries = harness.module.d_model, case.layout(kinds=[drawing.FULL], max_rows=2, max_length=3)
    keys: Layout = case.draw("memory", drawing.layouts(kinds=[drawing.FULL, drawing.LEFT, drawing.RIGHT, drawing.HOLES],
                                                       rows=queries.shape[0]))
    x, hidden = case.tensor(*queries.shape, D), case.tensor(*keys.shape, D)
    with torch.no_grad():
        _require_deaf_to_padding(case, harness.module, x, queries, Memory(hidden, keys))
        out = harness.for_memory(x, queries, Memory(hidden, keys))
        state = harness.module.remember(Memory(hidden, keys))
        remembered = harness.for_memory(x, queries, Memory(hidden, keys), state)
        require_equal(remembered, out, "with the state of the memory and without")
        for b, columns, tokens in each_document(hidden, keys):
            unpadded = Memory(tokens, Layout.full(1, len(columns)))
            for t in range(queries.shape[1]):
                alone = harness.for_memory(x[b:b + 1, t:t + 1], Layout.full(1, 1), unpadded)
                require_equal(out[b, t], alone[0, 0], "a token beside others with a padded memory, and alone with its own")
        for s in range(keys.shape[1]):
            changed = hidden.clone()
            changed[:, s] += 1 + torch.arange(D) / D
            influenced = (harness.for_memory(x, queries, Memory(changed, keys)) - out).abs().amax(dim=-1) > MIN_CHANGE
            for b, row in enumerate(influenced.tolist()):
                is_token = bool(keys.real[b, s])
                what = "a token, does not change the output" if is_token else "padding, changes the output"
                require(row == [is_token] * len(row), f"column {s} of the memory, which is {what}")


def _require_deaf_to_padding(case: Case, module: Attention, x: Tensor, queries: Layout, memory: Memory) -> None:
    """Require that padding of a memory changes nothing in training, of an attention that draws random numbers there."""
    mode = module.training
    if not bool(memory.layout.real.all()) and draws_in_training(case, module):
        harness = AttentionHarness(module, False, None, fixed=True)
        other = Memory(torch.where(memory.layout.real[..., None], memory.hidden, memory.hidden + 3), memory.layout)
        require_equal(harness.for_memory(x, queries, other), harness.for_memory(x, queries, memory),
                      "in training mode, with other padding in the memory")
    module.train(mode)


@contract("attention", skip=_reads_no_memory)
def remembered_rows_go_on(case: Case) -> None:
    """The state that `remember` makes of a memory follows its rows. When they are picked and reordered, or rows of another
    state join, the outputs are those for the memories of these rows.

    In training: nothing shows; in use, beam search and batches that texts join and leave answer with another text's source.
    """
    harness = AttentionHarness.drawn(case, causal=False, encoded=False, training=False)
    if harness.module.rule is not None:
        reject()
    D, padding = harness.module.d_model, [drawing.FULL, drawing.LEFT, drawing.RIGHT]
    layouts = [case.draw(name, drawing.layouts(kinds=padding)) for name in ("memory", "joining memory")]
    case.story |= {"memory": picture(layouts[0]), "joining memory": picture(layouts[1])}
    memory, joining_memory = (Memory(case.tensor(*layout.shape, D), layout) for layout in layouts)
    orders, rows = list[Tensor](), layouts[0].shape[0]
    for name in ("rows kept", "rows kept then")[:case.choose("orders", [2, 1])]:
        orders.append(torch.tensor(case.draw(name, st.lists(st.integers(0, rows - 1), min_size=1, max_size=4))))
        rows = len(orders[-1])

    def compare(memory: Memory, when: str) -> None:
        queries = Layout.full(len(memory.hidden), 2)
        x = case.tensor(*queries.shape, D)
        with_state, without = harness.for_memory(x, queries, memory, state), harness.for_memory(x, queries, memory)
        require_equal(with_state, without, f"with the state of a memory and without, after {when}")

    with torch.no_grad():
        state, joining_state = harness.module.remember(memory), harness.module.remember(joining_memory)
        if state is None:  # the attention reads the memory anew in each step
            return
        for index in orders:
            state.reorder(index)
            memory = rows_of(memory, index)
        compare(memory, f"keeping rows {' and then '.join(str(index.tolist()) for index in orders)}")
        if state.joins and joining_state is not None:
            both = stack_memories(memory, joining_memory)
            state.join(joining_state, both.layout.shape[1], both.layout.shape[1])
            compare(both, "joining another")


@contract("attention", examples=0.2)
def starts_spread_out(case: Case) -> None:
    """With initial weights, wide heads average over many tokens instead of picking one. Measured: the last of 64 tokens has a
    gradient with respect to each token that it sees. The gradients' sizes stand for the weights, which need not sum to one; the
    square of their sum, divided by the sum of their squares, is the number of tokens. Where weights depend on the order of
    tokens, as with a decay, that number is compared with the one for inputs near zero instead of with all tokens.

    In training: the softmax is saturated from the first step on, as without the factor 1 / sqrt(E) on the scores, and gradients
    through it almost vanish.

    Seen: Vaswani et al. 2017, section 3.2.1, give this as the reason for the factor.
    """
    module = case.component(options={}, perturbed=False, d_model=256, n_heads=2)
    x, full = case.tensor(4, 64, 256), Layout.full(4, 64)
    seen = AttentionHarness(module, True, None).visible(full)[0, -1].nonzero().flatten()
    if len(seen) < 32:
        raise Skip(f"its rule lets a token see {len(seen)} tokens only")
    direction = case.tensor(256)

    def averaged(x: Tensor) -> float:
        """The number of tokens that the last one averages over, as a mean over rows."""
        x = x.detach().requires_grad_()
        out = module(x, Context(full, causal=True))[:, -1]
        (gradient,) = torch.autograd.grad((out @ direction).sum(), x, allow_unused=True)
        if gradient is None:
            raise Skip("its output has no gradient with respect to its input")
        sizes = gradient[:, seen[:-1]].norm(dim=-1)  # the last token also asks, so its own gradient is of another kind
        return float((sizes.sum(dim=1).square() / sizes.square().sum(dim=1).clamp(min=1e-300)).mean())

    shuffled = x.clone()
    shuffled[:, seen[:-1]] = x[:, seen[:-1].flip(0)]
    with torch.no_grad():
        orders = [module(one, Context(full, causal=True))[:, -1] for one in (x, shuffled)]
    order_counts = relative_difference(orders[1], orders[0]) > 1e-4
    expected = min(len(seen), averaged(0.01 * x)) if order_counts else len(seen)
    found = averaged(x)
    require(found > expected / 8, f"of {len(seen)} visible tokens of random numbers, it averages over about {found:.1f} in two "
                                  f"heads; expected are at least {expected / 8:.1f}")


@contract("attention", skip=lambda s: "" if _kernel_options(s.cls) else "none of its options names a kernel", examples=0.3)
def kernels_agree(case: Case) -> None:
    """All kernels that an option can name give the same outputs.

    In training: weights that were learnt with one kernel are used with another, and give other outputs there.

    Seen: pytorch#120668, masks of opposite polarity in two functions of one library.
    """
    kernels = _kernel_options(case.under_test.cls)
    option = case.choose("option", sorted(kernels))
    harness = AttentionHarness.drawn(case, training=False)
    layout = case.layout()
    x = case.tensor(*layout.shape, harness.module.d_model)
    weights, outputs = harness.module.state_dict(), {}
    sizes = {"d_model": harness.module.d_model, "n_heads": harness.module.n_heads}
    for kernel in kernels[option]:
        try:
            with seeded(0):
                module = case.under_test.build(sizes, {**case.chosen_options, option: kernel}).double().eval()
        except ValueError:  # this kernel cannot do what the other options need
            continue
        module.load_state_dict(weights)
        with torch.no_grad(), flex_without_compiling():
            outputs[kernel] = AttentionHarness(module, harness.causal, harness.encoding)(x, layout)[layout.real]
    first = next(iter(outputs))
    for kernel, out in outputs.items():
        require_equal(out, outputs[first], f"kernels {kernel} and {first}", 1e-6)


def _kernel_options(cls: type) -> dict[str, tuple[str, ...]]:
    """The options of a component that name a kernel, each with the kernels that it may name."""
    from miniformer.ops.attention_kernels import KernelName

    return {name: get_args(KernelName) for name, field in options_of(cls).model_fields.items()
            if field.annotation == KernelName}  # type: ignore[comparison-overlap]
