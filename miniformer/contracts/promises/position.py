"""Promises of a position encoding: its hooks depend on positions only, and positions differ as the class declares."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from miniformer.contracts.kit import drawing
from miniformer.contracts.kit.case import Case, require, require_equal, seeded
from miniformer.contracts.kit.component_under_test import ComponentUnderTest
from miniformer.contracts.kit.finite_differences import STEPS, gradient_errors
from miniformer.contracts.kit.module_runner import bias_of, set_mode
from miniformer.contracts.kit.properties import Broken, contract
from miniformer.kernel.interfaces import PositionEncoding


def needs(*hooks: str, relative: bool = False) -> Callable[[ComponentUnderTest], str]:
    """Skip encodings that implement none of the hooks, or with `relative`, that do not declare it."""

    def skip(under_test: ComponentUnderTest) -> str:
        filled: frozenset[str] = under_test.cls.hooks()
        if not filled & set(hooks):
            return f"it has no {' and no '.join(hooks)}"
        return "" if not relative or under_test.cls.relative else "it does not declare `relative`"

    return skip


def heads(case: Case, encoding: PositionEncoding, length: int) -> Tensor:
    """Random queries or keys `[2, H, T, E]`."""
    return case.tensor(2, encoding.n_heads, length, encoding.d_model // encoding.n_heads)


def hook_outputs(encoding: PositionEncoding, x_BTD: Tensor, q_BHTE: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """The output of each hook that the encoding implements, for tokens at `positions` `[B, T]`.

    The second dimension of each output is that of the tokens; of a bias the third is too.
    """
    implemented, outputs = encoding.hooks(), {}
    if "embed" in implemented:
        outputs["embed"] = encoding.embed(x_BTD, positions)
    if "rotate" in implemented:
        outputs["rotate"] = encoding.rotate(q_BHTE, encoding.precompute(positions), "q").transpose(1, 2)
        outputs["rotate of keys"] = encoding.rotate(q_BHTE, encoding.precompute(positions), "k").transpose(1, 2)
    for name in ("bias", "causal_bias"):
        if (bias := bias_of(encoding, name, positions, positions)) is not None:
            outputs[name] = bias.expand(positions.shape[0], -1, -1, -1).permute(0, 2, 3, 1)
    return outputs


@contract("position", skip=needs("embed", "rotate", "bias"))
def hooks_have_their_shapes(case: Case) -> None:
    """`embed` and `rotate` keep the shape of their input, `bias` has the shape `[B or 1, H, T, S]`, and all are finite.

    In training: a tensor of another shape is broadcast over the batch without an error.
    """
    encoding = case.component()
    B, T, S, H, D = 2, 4, 6, encoding.n_heads, encoding.d_model
    queries, keys = torch.arange(2, 2 + T).expand(B, T), torch.arange(S).expand(B, S)
    with torch.no_grad():
        for name, out, shape in (("embed", encoding.embed(case.tensor(B, T, D), queries), (B, T, D)),
                                 ("rotate", encoding.rotate(heads(case, encoding, T), encoding.precompute(queries), "q"),
                                  (B, H, T, D // H))):
            require(tuple(out.shape) == shape, f"{name} gives {list(out.shape)} for {list(shape)}")
            require(bool(out.isfinite().all()), f"{name} gives numbers that are not finite")
        for name in ("bias", "causal_bias"):
            bias = bias_of(encoding, name, queries, keys)
            if bias is not None:
                require(tuple(bias.shape) in ((B, H, T, S), (1, H, T, S)),
                        f"{name} gives {list(bias.shape)}; expected {[B, H, T, S]}")
                require(bool(bias.isfinite().all()), f"{name} gives numbers that are not finite; a mask hides, a bias does not")


@contract("position", skip=needs("embed", "rotate", "bias"))
def asks_positions_only(case: Case) -> None:
    """The encoding of a token depends on its position, and not on its column, its row or other tokens.

    In training: tokens of packed documents, after left padding, and in decoding with a state get wrong positions.

    Seen: unsloth#4078 and nanoVLM#204.
    """
    encoding = case.component()
    set_mode(case, encoding)
    T = case.length(6)
    x, q = case.tensor(2, T, encoding.d_model), heads(case, encoding, T)
    if T == 6:
        row = st.lists(st.integers(0, 31), min_size=T, max_size=T)
        positions = torch.tensor(case.draw("positions", st.lists(row, min_size=2, max_size=2)))
    else:  # positions restart after 31, as in packed documents that are no longer than the smallest max_seq_len
        positions = torch.stack([torch.arange(start, start + T) for start in case.indices("starts", 32)[:2]]) % 32
    columns = torch.tensor(case.draw("columns", st.lists(st.integers(0, T - 1), min_size=1, max_size=6)))
    with torch.no_grad():
        whole = hook_outputs(encoding, x, q, positions)
        for name, out in hook_outputs(encoding, x[:, columns], q[:, :, columns], positions[:, columns]).items():
            expected = whole[name][:, columns]
            if "bias" in name:
                expected = expected[:, :, columns]
            require_equal(out, expected, f"{name} of columns {columns.tolist()}", 1e-5)
        for name, out in hook_outputs(encoding, x[1:], q[1:], positions[1:]).items():
            require_equal(out, whole[name][1:], f"{name} of a row alone and beside another", 1e-5)


@contract("position", proves=["hook embed", "hook rotate", "hook bias"], skip=needs("embed", "rotate", "bias"))
def tells_places_apart(case: Case) -> None:
    """Each hook that it implements has outputs that differ between positions, and between neighbours if it tells all later
    ones apart. If a rotation or a bias does so in each of eight heads, it does in each head of any other number of them.

    In training: the model cannot learn the order of tokens, or some of its heads cannot.

    Seen: Megatron-LM#535: in float16 all positions beyond some length were encoded alike.
    """
    encoding = case.component(options={})
    positions = torch.arange(16).expand(2, 16)
    x, q = case.tensor(2, 1, encoding.d_model), heads(case, encoding, 1)
    with torch.no_grad():
        for name, out in hook_outputs(encoding, x.expand(-1, 16, -1), q.expand(-1, -1, 16, -1), positions).items():
            require(not torch.allclose(out[:, :1].expand_as(out), out, atol=1e-6), f"{name} does the same everywhere")
            alike = (out[:, 1:] - out[:, :-1]).abs().transpose(0, 1).flatten(1).amax(dim=1) == 0
            last = max(alike.nonzero().flatten().tolist(), default=15)  # buckets grow with distance, and never shrink again
            require(last > 10, f"{name} does the same at positions {last} and {last + 1}, and tells all later ones apart")
        without = _heads_without_places(encoding)
        if any(without.values()):  # by design, perhaps
            H, D = encoding.n_heads, encoding.d_model
            eight = _heads_without_places(case.component(options={}, n_heads=8, d_model=8 * D // H))
            for name, numbers in without.items():
                require(not numbers or bool(eight[name]), f"{name} does the same everywhere in heads {numbers} of {H}, and "
                                                          "in none of eight heads")


def _heads_without_places(encoding: PositionEncoding) -> dict[str, list[int]]:
    """By hook: the heads in which a rotation or a bias is the same at each of 16 positions."""
    positions = torch.arange(16).expand(1, 16)
    q = torch.linspace(1.0, 2.0, encoding.d_model // encoding.n_heads, dtype=torch.float64).expand(1, encoding.n_heads, 16, -1)
    outputs = hook_outputs(encoding, q.new_zeros(1, 16, encoding.d_model), q, positions)
    heads = {"rotate": 2, "rotate of keys": 2, "bias": 3, "causal_bias": 3}  # the dimension of heads
    same = {name: (out == out[:, :1]).transpose(0, heads[name]).flatten(1).all(dim=1)
            for name, out in outputs.items() if name in heads}
    return {name: all_same.nonzero().flatten().tolist() for name, all_same in same.items()}


@contract("position", proves=["relative"], skip=needs("rotate", "bias", relative=True))
def differences_decide(case: Case) -> None:
    """The score or bias of a query and a key depends only on the difference of their positions.

    In training: what the model learns at the beginning of texts does not apply further on.
    """
    encoding = case.component()
    drawn_positions = torch.tensor([case.draw("positions", st.lists(st.integers(0, 15), min_size=2, max_size=6))])
    shift = case.draw("shift", st.integers(1, 15))
    shape = 1, encoding.n_heads, drawn_positions.shape[1], encoding.d_model // encoding.n_heads
    q, k = case.tensor(*shape), case.tensor(*shape)

    def scores(positions: Tensor) -> Tensor:
        where = encoding.precompute(positions)
        return encoding.rotate(q, where, "q") @ encoding.rotate(k, where, "k").transpose(-1, -2)

    with torch.no_grad():
        shifted = drawn_positions + shift
        require_equal(scores(shifted), scores(drawn_positions),
                      f"scores of rotated queries and keys at positions and {shift} further on", 1e-4)
        for name in ("bias", "causal_bias"):
            bias, bias_further_on = (bias_of(encoding, name, p, p) for p in (drawn_positions, shifted))
            if bias is not None and bias_further_on is not None:
                require_equal(bias_further_on, bias, f"{name} at positions and {shift} further on", 1e-5)


@contract("position", skip=needs("rotate", relative=True))
def rotation_keeps_lengths(case: Case) -> None:
    """A rotated vector has the same length at every position.

    In training: scores grow or shrink along a text, and low precision loses them.
    """
    encoding = case.component()
    x = heads(case, encoding, 1).expand(-1, -1, 32, -1)
    with torch.no_grad():
        lengths = encoding.rotate(x, encoding.precompute(torch.arange(32).expand(2, 32)), "q").norm(dim=-1)
    require_equal(lengths, lengths[..., :1].expand_as(lengths), "lengths of one vector rotated at different positions", 1e-4)


@contract("position", proves=["learns_bias"], skip=needs("bias"))
def says_whether_its_bias_learns(case: Case) -> None:
    """Its bias has a gradient if and only if it declares `learns_bias`.

    In training: a kernel without gradients for the bias is chosen, and the learned bias keeps its initial values.

    Seen: flash-attention#332: kernels that take a bias without a gradient for it, or none.
    """
    encoding, learns = case.component(), case.under_test.cls.learns_bias
    positions = torch.arange(6).expand(1, 6)
    for name in ("bias", "causal_bias"):
        bias = getattr(encoding, name)(positions, positions)
        has = "has a" if bias.requires_grad else "has no"
        require(bias.requires_grad == learns, f"{name} {has} gradient, and learns_bias is {learns}")


@contract("position", skip=needs("embed", "rotate", "bias"), examples=0.5)
def learns_at_each_place(case: Case) -> None:
    """At each of the first places, the gradient of each hook agrees with finite differences: that of its parameters, and that
    of the tensor that `embed` and `rotate` change.

    In training: the vector of a place, such as the first, keeps its initial values, or nothing before the model learns there.

    Seen: `padding_idx` of torch.nn.Embedding, which leaves one row of a table without a gradient.
    """
    encoding, T = case.component(), 16
    positions = torch.arange(T).expand(2, T)
    x, q = case.tensor(2, T, encoding.d_model), heads(case, encoding, T)
    inputs = [x, q, *(p for p in encoding.parameters() if p.requires_grad)]
    with seeded(case.draw("directions", drawing.seeds)):
        moves = [torch.randn_like(tensor) for tensor in inputs]
        weights = {name: torch.randn_like(out) for name, out in hook_outputs(encoding, x, q, positions).items()}

    def sums(step: float) -> dict[str, Tensor]:
        """`[T]` for each hook: a weighted sum of its outputs at each place, a step further in the drawn directions."""
        with torch.no_grad():
            torch._foreach_add_(inputs, moves, alpha=step)
            by_place = {name: _by_place(out, weights[name]) for name, out in hook_outputs(encoding, x, q, positions).items()}
            torch._foreach_add_(inputs, moves, alpha=-step)
        return by_place

    numeric = {step: (sums(step), sums(-step)) for step, _ in STEPS}
    for tensor in inputs:
        tensor.requires_grad_()
    for name, out in hook_outputs(encoding, x, q, positions).items():
        exact = torch.zeros(T, dtype=torch.float64)
        for t, value in enumerate(_by_place(out, weights[name]) if out.requires_grad else ()):
            gradients = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
            exact[t] = sum(float((g * move).sum()) for g, move in zip(gradients, moves, strict=True) if g is not None)

        def differences(step: float, name: str = name) -> Tensor:
            ahead, behind = numeric[step]
            return (ahead[name] - behind[name]).double() / (2 * step)

        if (errors := gradient_errors(exact, differences)) is not None:
            raise Broken(f"the gradient of {name} at position {int(errors.argmax())} is {float(errors.max()):.0%} off, "
                         "compared with finite differences")


def _by_place(out_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """`[T]`: the weighted sum of an output of a hook at each place."""
    return (out_BT * weights_BT).transpose(0, 1).flatten(1).sum(dim=1)
