"""What an attention promises beside who is heard: biases, rotations, memories, kernels, and numbers that stay finite."""

from __future__ import annotations

from typing import get_args

import torch
from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor

from miniformer.contracts.kit import drawing
from miniformer.contracts.kit.attention_harness import AttentionHarness, alone
from miniformer.contracts.kit.case import Case, picture, require, same, seeded
from miniformer.contracts.kit.component_under_test import ComponentUnderTest
from miniformer.contracts.kit.properties import Skip, contract
from miniformer.decoding.state import rows_of, stack_memories
from miniformer.kernel.context import Context, Memory, Signal
from miniformer.kernel.interfaces import PositionEncoding
from miniformer.kernel.layout import Layout
from miniformer.kernel.options import options_of

from .attention_visibility import HEARD, heard


def _reads_no_memory(subject: ComponentUnderTest) -> str:
    return "" if subject.cls.cross else "it does not declare `cross`"


@contract("attention")
def rows_without_texts_are_finite(case: Case) -> None:
    """A row of padding only gives finite numbers and finite gradients.

    In training: one short last batch turns every weight into NaN.

    Seen: pytorch#103749 and #163997, NaN for rows in which everything is masked.
    """
    attend = AttentionHarness.drawn(case)
    lengths = case.draw("lengths", st.lists(st.integers(0, 4), min_size=2, max_size=3).filter(lambda n: 0 in n and max(n)))
    layout = Layout.from_lengths(lengths, 4, case.choose("padding", ["right", "left"]))
    x = case.tensor(*layout.shape, attend.module.d_model).requires_grad_()
    out = attend(x, layout)
    require(bool(out.isfinite().all()), "its output is not finite where a row is padding only")
    out[layout.real].sum().backward()  # type: ignore[no-untyped-call]
    gradients = [x.grad, *(p.grad for p in attend.module.parameters())]
    require(all(g is None or bool(g.isfinite().all()) for g in gradients), "a gradient is not finite where a row is padding")


@contract("attention", proves=["applies bias"], skip=lambda s: "" if "bias" in s.cls.applies else "it applies no bias")
def a_bias_counts(case: Case) -> None:
    """A bias on the scores is added to them: with minus infinity, all but, a key is as if it were not there.

    In training: ALiBi and T5 biases do nothing, and the model has no idea of order.

    Seen: transformers#47014: T5's bias was added to the mask, which fast kernels could not take.
    """
    attend = AttentionHarness.drawn(case, causal=None, encoded=False)
    T = case.draw("tokens", st.integers(2, 6))
    hidden = case.draw("hidden key", st.integers(0, T - 1))
    layout = Layout.full(1, T)
    x = case.tensor(1, T, attend.module.d_model)
    attend.encoding = Hiding(attend.module.d_model, attend.module.n_heads, hidden)
    found = heard(attend, x[0], layout)[:, hidden]
    found[hidden] = False  # its own query changes
    require(not bool(found.any()), f"key {hidden} is heard by column {int(found.long().argmax())} under a bias of -1e9")


class Hiding(PositionEncoding):
    """A bias that hides the key at one position from all others."""

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        hidden = (k_positions[:, None, None, :] == self.max_seq_len) & (q_positions[:, None, :, None] != self.max_seq_len)
        return torch.where(hidden, -1e9, 0.0).double().expand(-1, self.n_heads, -1, -1)


@contract("attention", proves=["applies rotate"], skip=lambda s: "" if "rotate" in s.cls.applies else "it applies no rotation")
def queries_and_keys_are_rotated(case: Case) -> None:
    """Queries and keys of this call pass the rotation of the position encoding once each, as `[B, H or K, T, E]`, told which
    they are.

    In training: rotary positions are half applied, and distances mean nothing.

    Seen: unsloth#4078, where left-padded rows shared the positions of one row.
    """
    attend = AttentionHarness.drawn(case, encoded=False)
    layout = case.layout(kinds=[drawing.FULL, drawing.LEFT])
    x = case.tensor(*layout.shape, attend.module.d_model)
    watching = Watching(attend.module.d_model, attend.module.n_heads, 64)
    with torch.no_grad():
        attend.module(x, Context(layout, attend.causal, signal=Signal(watching, None, None)))
    roles = [role for role, _ in watching.calls]
    require(set(roles) == {"q", "k"}, f"it rotated {', '.join(sorted(set(roles))) or 'nothing'}")
    B, T = layout.shape
    width = attend.module.rotary_width or attend.module.d_model // attend.module.n_heads
    for role, shape in watching.calls:
        require(len(shape) == 4 and shape[0] == B and shape[2:] == (T, width),
                f"it rotated {role} of shape {list(shape)}; expected [{B}, heads, {T}, {width}]")


class Watching(PositionEncoding):
    """Changes nothing and notes what is rotated."""

    def __init__(self, d_model: int, n_heads: int, max_seq_len: int) -> None:
        super().__init__(d_model, n_heads, max_seq_len)
        self.calls: list[tuple[str, tuple[int, ...]]] = []

    def rotate(self, x: Tensor, where: object, role: str) -> Tensor:
        self.calls.append((role, tuple(x.shape)))
        return x


@contract("attention", proves=["cross"], skip=_reads_no_memory)
def reads_a_memory(case: Case) -> None:
    """With a memory, a token hears of every token of its document there, of no padding, and of no other token beside it; what
    is kept of the memory between steps changes nothing.

    In training: an encoder-decoder answers without its source, or with that of its neighbour.

    Seen: transformers#10552, padding in front of a decoder's inputs that changed what it wrote.
    """
    attend = AttentionHarness.drawn(case, causal=False, encoded=False)
    if attend.module.rule is not None:  # no model uses one that hides places across sequences
        reject()
    D, queries = attend.module.d_model, case.layout(kinds=[drawing.FULL], max_rows=2, max_length=3)
    keys: Layout = case.draw("memory", drawing.layouts(kinds=[drawing.FULL, drawing.LEFT, drawing.RIGHT, drawing.HOLES],
                                                       rows=queries.shape[0]))
    x, hidden = case.tensor(*queries.shape, D), case.tensor(*keys.shape, D)
    with torch.no_grad():
        out = attend.for_memory(x, queries, Memory(hidden, keys))
        kept = attend.module.remember(Memory(hidden, keys))
        same(attend.for_memory(x, queries, Memory(hidden, keys), kept), out, "with what it keeps of the memory and without")
        for b, columns, tokens in alone(hidden, keys):
            full = Layout.full(1, len(columns))
            for t in range(queries.shape[1]):
                one = attend.for_memory(x[b:b + 1, t:t + 1], Layout.full(1, 1), Memory(tokens, full))
                same(out[b, t], one[0, 0], "a token beside others with a padded memory, and alone with its own")
        for s in range(keys.shape[1]):
            changed = hidden.clone()
            changed[:, s] += 1 + torch.arange(D) / D
            moved = (attend.for_memory(x, queries, Memory(changed, keys)) - out).abs().amax(dim=-1) > HEARD
            for b, row in enumerate(moved.tolist()):
                token = bool(keys.real[b, s])
                what = "a token, is not heard" if token else "padding, is heard"
                require(row == [token] * len(row), f"column {s} of the memory, which is {what}")


@contract("attention", skip=_reads_no_memory)
def remembered_rows_go_on(case: Case) -> None:
    """What is kept of a memory between steps goes with its rows: where they are picked and reordered, or joined by others, it
    gives what the memories of those rows give.

    In training: nothing shows; in use, beam search and batches that texts leave and join answer with another text's source.
    """
    attend = AttentionHarness.drawn(case, causal=False, encoded=False, training=False)
    if attend.module.rule is not None:
        reject()
    D, padding = attend.module.d_model, [drawing.FULL, drawing.LEFT, drawing.RIGHT]
    layouts = [case.draw(name, drawing.layouts(kinds=padding)) for name in ("memory", "memory of who joins")]
    case.story |= {"memory": picture(layouts[0]), "memory of who joins": picture(layouts[1])}
    one, other = (Memory(case.tensor(*layout.shape, D), layout) for layout in layouts)
    index = torch.tensor(case.draw("rows kept", st.lists(st.integers(0, layouts[0].shape[0] - 1), min_size=1, max_size=4)))

    def compare(memory: Memory, what: str) -> None:
        queries = Layout.full(len(memory.hidden), 2)
        x = case.tensor(*queries.shape, D)
        same(attend.for_memory(x, queries, memory, kept), attend.for_memory(x, queries, memory), what)

    with torch.no_grad():
        kept, theirs = attend.module.remember(one), attend.module.remember(other)
        if kept is None:  # it looks anew each time
            return
        kept.reorder(index)
        compare(one := rows_of(one, index), f"with what it keeps of a memory and without, after keeping rows {index.tolist()}")
        if kept.joins and theirs is not None:
            both = stack_memories(one, other)
            kept.join(theirs, both.layout.shape[1], both.layout.shape[1])
            compare(both, "with what it keeps of a memory and without, after it took in another")


@contract("attention", skip=lambda s: "" if s.cls.masked else "it reads no mask, so its weights need not sum to one")
def starts_spread_out(case: Case) -> None:
    """Freshly made, wide heads average over many tokens instead of picking one.

    In training: softmax is saturated from the first step on, as without the factor 1 / sqrt(E) on the scores, and gradients
    through it are close to nothing.

    Seen: the reason that Vaswani et al. 2017 give for the factor, section 3.2.1.
    """
    module = case.component(options={}, moved=False, d_model=256, n_heads=2)
    x, full = case.tensor(4, 64, 256), Layout.full(4, 64)
    visible = int(AttentionHarness(module, True, None).may_see(full)[0, -1].sum())
    if visible < 32:
        raise Skip(f"its rule lets a token see {visible} tokens only")
    with torch.no_grad():
        many = module(x, Context(full, causal=True))[:, -1]
        one = module(x[:, -1:], Context(Layout.full(4, 1), causal=True))[:, -1]
    mixed = float((one.square().mean() / many.square().mean()).clamp(max=1e6))
    require(mixed > visible / 16, f"of {visible} tokens that are alike but for noise, it averages over about {mixed:.1f}")


@contract("attention", skip=lambda s: "" if _kernel_options(s.cls) else "none of its options names a kernel", examples=0.3)
def kernels_agree(case: Case) -> None:
    """Every kernel that an option can name gives the same numbers.

    In training: what was learnt with one kernel is used with another.

    Seen: pytorch#120668, masks of opposite polarity in two functions of one library.
    """
    names = _kernel_options(case.subject.cls)
    name, kernels = case.choose("option", sorted(names)), names
    attend = AttentionHarness.drawn(case, training=False)
    layout = case.layout()
    x = case.tensor(*layout.shape, attend.module.d_model)
    weights, found = attend.module.state_dict(), {}
    for kernel in kernels[name]:
        sizes = {"d_model": attend.module.d_model, "n_heads": attend.module.n_heads}
        options = {**{k: v for k, v in case.chosen.items() if k != name}, name: kernel}
        try:
            with seeded(0):
                module = case.subject.build(sizes, options).double().eval()
        except ValueError:  # it cannot do what the other options ask for
            continue
        module.load_state_dict(weights)
        with torch.no_grad():
            found[kernel] = AttentionHarness(module, attend.causal, attend.encoding)(x, layout)[layout.real]
    first = next(iter(found))
    for kernel, out in found.items():
        same(out, found[first], f"kernels {kernel} and {first}", 1e-6)


def _kernel_options(cls: type) -> dict[str, tuple[str, ...]]:
    """The options of a component that name a kernel, with their choices."""
    from miniformer.ops.attention_kernels import KernelName

    return {name: get_args(KernelName) for name, field in options_of(cls).model_fields.items()
            if field.annotation == KernelName}  # type: ignore[comparison-overlap]


@contract("attention")
def extreme_inputs_are_finite(case: Case) -> None:
    """Zeros, equal tokens, and numbers up to ten thousand give finite outputs in float32 and bfloat16.

    In training: a spike of activations becomes NaN and the run is lost.
    """
    dtype = case.choose("dtype", [torch.float32, torch.bfloat16])
    attend = AttentionHarness.drawn(case, dtype=dtype, encoded=False)
    scale = case.choose("scale", [0.0, 1e4, 1e-4])
    x = case.tensor(2, 5, attend.module.d_model, dtype=dtype) * scale
    x[0] = x[0, :1]
    out = attend(x, Layout.full(2, 5))
    require(bool(out.isfinite().all()), f"its output is not finite for inputs of size {scale:g} in {dtype}")
    require(out.dtype == dtype, f"its output is {out.dtype} for {dtype}")
