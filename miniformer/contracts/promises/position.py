"""What a position encoding promises: hooks that ask positions and nothing else, and tell places apart as it declares."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from miniformer.config.model_config import TransformerConfig
from miniformer.contracts.kit.case import Case, require, require_equal, seeded
from miniformer.contracts.kit.component_under_test import ComponentUnderTest
from miniformer.contracts.kit.module_runner import set_mode
from miniformer.contracts.kit.properties import Broken, Skip, contract
from miniformer.kernel.errors import SpecError
from miniformer.kernel.interfaces import PositionEncoding
from miniformer.kernel.registry import current_registry
from miniformer.model.transformer import Transformer


def _needs(*hooks: str, relative: bool = False) -> Callable[[ComponentUnderTest], str]:
    """A skip where none of the hooks is filled, or where it is not declared to be relative."""

    def skip(under_test: ComponentUnderTest) -> str:
        filled: frozenset[str] = under_test.cls.hooks()
        if not filled & set(hooks):
            return f"it has no {' and no '.join(hooks)}"
        return "" if not relative or under_test.cls.relative else "it does not declare `relative`"

    return skip


def heads(case: Case, encoding: PositionEncoding, length: int) -> Tensor:
    """Queries or keys `[2, H, T, E]`."""
    return case.tensor(2, encoding.n_heads, length, encoding.d_model // encoding.n_heads)


def hook_outputs(encoding: PositionEncoding, x_BTD: Tensor, q_BHTE: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """What each filled hook makes of tokens at `positions` `[B, T]`."""
    filled, found = encoding.hooks(), {}
    if "embed" in filled:
        found["embed"] = encoding.embed(x_BTD, positions)
    if "rotate" in filled:
        found["rotate"] = encoding.rotate(q_BHTE, encoding.precompute(positions), "q").transpose(1, 2)
        found["rotate of keys"] = encoding.rotate(q_BHTE, encoding.precompute(positions), "k").transpose(1, 2)
    for name in ("bias", "causal_bias"):
        if (bias := getattr(encoding, name)(positions, positions)) is not None:
            found[name] = bias.expand(positions.shape[0], -1, -1, -1).permute(0, 2, 3, 1)
    return found


@contract("position", skip=_needs("embed", "rotate", "bias"))
def hooks_have_their_shapes(case: Case) -> None:
    """`embed` and `rotate` keep the shape of what they are given, `bias` is `[B or 1, H, T, S]`, and all is finite.

    In training: a tensor of another shape is spread over the batch without a word.
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
            bias = getattr(encoding, name)(queries, keys)
            if bias is not None:
                require(tuple(bias.shape) in ((B, H, T, S), (1, H, T, S)), f"{name} gives {list(bias.shape)}; expected "
                                                                           f"{[B, H, T, S]}")
                require(bool(bias.isfinite().all()), f"{name} gives numbers that are not finite; a mask hides, a bias does not")


@contract("position", skip=_needs("embed", "rotate", "bias"))
def asks_positions_only(case: Case) -> None:
    """What a token is told hangs on its position and not on its column, its row or its neighbours.

    In training: packed documents, left padding and decoding with a state are all told wrong places.

    Seen: unsloth#4078 and nanoVLM#204.
    """
    encoding = case.component()
    set_mode(case, encoding)
    T = case.length(6)
    x, q = case.tensor(2, T, encoding.d_model), heads(case, encoding, T)
    if T == 6:
        row = st.lists(st.integers(0, 31), min_size=T, max_size=T)
        positions = torch.tensor(case.draw("positions", st.lists(row, min_size=2, max_size=2)))
    else:  # as of packed documents, none longer than it takes
        positions = torch.stack([torch.arange(start, start + T) for start in case.indices("starts", 32)[:2]]) % 32
    kept = torch.tensor(case.draw("columns", st.lists(st.integers(0, T - 1), min_size=1, max_size=6)))
    with torch.no_grad():
        whole = hook_outputs(encoding, x, q, positions)
        for name, found in hook_outputs(encoding, x[:, kept], q[:, :, kept], positions[:, kept]).items():
            expected = whole[name][:, kept]
            require_equal(found, expected[:, :, kept] if "bias" in name else expected, f"{name} of columns {kept.tolist()}", 1e-5)
        for name, found in hook_outputs(encoding, x[1:], q[1:], positions[1:]).items():
            require_equal(found, whole[name][1:], f"{name} of a row alone and beside another", 1e-5)


@contract("position", proves=["hook embed", "hook rotate", "hook bias"], skip=_needs("embed", "rotate", "bias"))
def tells_places_apart(case: Case) -> None:
    """Each hook that it fills does something that differs between positions.

    In training: the model has no idea of order.

    Seen: Megatron-LM#535: in float16 all places beyond some length were told the same.
    """
    encoding = case.component(options={})
    positions = torch.arange(16).expand(2, 16)
    x, q = case.tensor(2, 1, encoding.d_model), heads(case, encoding, 1)
    with torch.no_grad():
        for name, out in hook_outputs(encoding, x.expand(-1, 16, -1), q.expand(-1, -1, 16, -1), positions).items():
            require(not torch.allclose(out[:, :1].expand_as(out), out, atol=1e-6), f"{name} does the same everywhere")


@contract("position", proves=["relative"], skip=_needs("rotate", "bias", relative=True))
def differences_decide(case: Case) -> None:
    """What a query at one place makes of a key at another hangs on the difference of the two places only.

    In training: what was learnt at the beginning of texts does not hold further on.
    """
    encoding = case.component()
    places = torch.tensor([case.draw("places", st.lists(st.integers(0, 15), min_size=2, max_size=6))])
    shift = case.draw("shift", st.integers(1, 15))
    q, k = (case.tensor(1, encoding.n_heads, places.shape[1], encoding.d_model // encoding.n_heads) for _ in range(2))

    def scores(positions: Tensor) -> Tensor:
        where = encoding.precompute(positions)
        return encoding.rotate(q, where, "q") @ encoding.rotate(k, where, "k").transpose(-1, -2)

    with torch.no_grad():
        require_equal(scores(places + shift), scores(places), f"scores of rotated queries and keys {shift} places on", 1e-4)
        for name in ("bias", "causal_bias"):
            make = getattr(encoding, name)
            if (bias := make(places, places)) is not None:
                require_equal(make(places + shift, places + shift), bias, f"{name} {shift} places on", 1e-5)


@contract("position", skip=_needs("rotate", relative=True))
def rotation_keeps_lengths(case: Case) -> None:
    """A rotation changes the length of no vector more at one place than at another.

    In training: scores grow or fade along a text, and low precision loses them.
    """
    encoding = case.component()
    x = heads(case, encoding, 1).expand(-1, -1, 32, -1)
    with torch.no_grad():
        lengths = encoding.rotate(x, encoding.precompute(torch.arange(32).expand(2, 32)), "q").norm(dim=-1)
    require_equal(lengths, lengths[..., :1].expand_as(lengths), "lengths of one vector rotated at different places", 1e-4)


@contract("position", proves=["extrapolates"])
def ends_as_declared(case: Case) -> None:
    """Beyond `max_seq_len` it gives finite numbers if it declares that it extrapolates; otherwise a model refuses longer texts.

    In training: nothing shows; in use, text beyond the trained length is garbage, or the last row of a table for ever.

    Seen: the error `index out of range in self` of embeddings, which on a GPU ends the process.
    """
    extrapolates: bool = case.under_test.cls.extrapolates
    if extrapolates:
        encoding = case.component(max_seq_len=8)
        positions = torch.arange(24, 48).expand(2, 24)
        with torch.no_grad():
            found = hook_outputs(encoding, case.tensor(2, 24, encoding.d_model), heads(case, encoding, 24), positions)
        for name, out in found.items():
            require(bool(out.isfinite().all()), f"{name} is not finite at three times max_seq_len")
        return
    if not _registered(case.under_test):
        raise Skip("it is not registered, so no model can be made with it")
    with seeded(0):
        model = Transformer(TransformerConfig(vocab_size=5, d_model=16, n_heads=2, n_layers=1, max_seq_len=8, ffn="gelu",
                                              position={"name": case.under_test.name, **case.under_test.fixed}))
    try:
        model(torch.zeros(1, 9, dtype=torch.long))
    except SpecError:
        return
    raise Broken("a model takes 9 tokens, with max_seq_len 8")


def _registered(under_test: ComponentUnderTest) -> bool:
    return any(entry.saved == under_test.name for entry in current_registry().entries(under_test.kind))


@contract("position", proves=["learns_bias"], skip=_needs("bias"))
def says_whether_its_bias_learns(case: Case) -> None:
    """Its bias has gradients if and only if it declares `learns_bias`.

    In training: a kernel without gradients for the bias is chosen, and the table stays as it was made.

    Seen: flash-attention#332: kernels that take a bias without a gradient for it, or none.
    """
    encoding, learns = case.component(), case.under_test.cls.learns_bias
    positions = torch.arange(6).expand(1, 6)
    for name in ("bias", "causal_bias"):
        bias = getattr(encoding, name)(positions, positions)
        has = "has a" if bias.requires_grad else "has no"
        require(bias.requires_grad == learns, f"{name} {has} gradient, and learns_bias is {learns}")


@contract("position", skip=_needs("embed", "rotate", "bias"))
def far_places_survive_low_precision(case: Case) -> None:
    """In bfloat16, places thousands of tokens on are told nearly as in float64.

    In training: distant tokens lose their order with no sign of it in the loss at short lengths.

    Seen: gpt-neox#1003 and transformers#25681, tables of angles computed in half precision.
    """
    options, sizes = case.options(), case.sizes(max_seq_len=4096)
    with seeded(0):
        fine = case.build_or_reject(sizes, options).double().eval()
    with seeded(0):
        coarse = case.build_or_reject(sizes, options).to(torch.bfloat16).eval()
    coarse.load_state_dict(fine.state_dict())
    positions = torch.arange(3001, 3001 + 24).expand(2, 24)
    x, q = case.tensor(2, 24, fine.d_model), heads(case, fine, 24)
    with torch.no_grad():
        expected = hook_outputs(fine, x, q, positions)
        for name, found in hook_outputs(coarse, x.bfloat16(), q.bfloat16(), positions).items():
            off = (found.double() - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-6)
            require(bool(off < 0.05), f"{name} at position 3000 is {float(off):.2f} of its size off in bfloat16")
