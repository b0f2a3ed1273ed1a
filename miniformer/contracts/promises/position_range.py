"""Promises of a position encoding about far places: beyond `max_seq_len`, and in low precision."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from miniformer.config.model_config import TransformerConfig
from miniformer.contracts.kit.case import Case, require, require_equal, seeded
from miniformer.contracts.kit.component_under_test import ComponentUnderTest
from miniformer.contracts.kit.properties import Broken, Skip, contract
from miniformer.kernel.errors import SpecError
from miniformer.kernel.registry import current_registry
from miniformer.model.transformer import Transformer

from .position import heads, hook_outputs, needs


@contract("position", proves=["extrapolates"])
def ends_as_declared(case: Case) -> None:
    """If it declares `extrapolates`, its outputs beyond `max_seq_len` are finite, differ between positions, and do not depend
    on other rows of the batch; otherwise a model refuses longer texts.

    In training: nothing shows; in use, text beyond `max_seq_len` is garbage, or the last row of a table is used for all of it.

    Seen: the error `index out of range in self` of embeddings, which on a GPU ends the process.
    """
    extrapolates: bool = case.under_test.cls.extrapolates
    if extrapolates:
        _goes_on_beyond_its_length(case)
        return
    if not _registered(case.under_test):
        raise Skip("it is not registered, so no model can be built with it")
    with seeded(0):
        model = Transformer(TransformerConfig(vocab_size=5, d_model=16, n_heads=2, n_layers=1, max_seq_len=8, ffn="gelu",
                                              position={"name": case.under_test.name, **case.under_test.fixed}))
    try:
        model(torch.zeros(1, 9, dtype=torch.long))
    except SpecError:
        return
    raise Broken("a model with max_seq_len 8 accepts 9 tokens")


def _registered(under_test: ComponentUnderTest) -> bool:
    return any(entry.saved == under_test.name for entry in current_registry().entries(under_test.kind))


def _goes_on_beyond_its_length(case: Case) -> None:
    """Require of an encoding whose `max_seq_len` is 8 what `ends_as_declared` says of positions up to 48."""
    encoding, T = case.component(max_seq_len=8), 24
    positions, far = torch.arange(T, 2 * T).expand(2, T), case.draw("other row", st.integers(8, 500))
    x, q = case.tensor(1, 1, encoding.d_model).expand(2, T, -1), heads(case, encoding, 1)[:1].expand(2, -1, T, -1)
    beside = torch.stack([torch.arange(T), torch.arange(far, far + T)])
    with torch.no_grad():
        outputs, wrapped = (hook_outputs(encoding, x, q, where) for where in (positions, positions % 8))
        for name, out in outputs.items():
            require(bool(out.isfinite().all()), f"{name} is not finite at three times max_seq_len")
            same = torch.allclose(out[:, :1].expand_as(out), out, atol=1e-6)
            require(not same, f"{name} does the same at all positions from three times max_seq_len on")
            require(not torch.allclose(out, wrapped[name], atol=1e-6), f"{name} begins anew at multiples of max_seq_len")
        together = hook_outputs(encoding, x, q, beside)
        for b in range(2):
            alone = hook_outputs(encoding, x[b:b + 1], q[b:b + 1], beside[b:b + 1])
            for name, out in together.items():
                require_equal(out[b], alone[name][0], f"{name} of a row up to position {int(beside[b, -1])}, beside one up to "
                                                      f"{int(beside[1 - b, -1])} and alone", 1e-5)


@contract("position", skip=needs("embed", "rotate", "bias"))
def far_places_survive_low_precision(case: Case) -> None:
    """In bfloat16, positions of several thousand are encoded nearly as in float64.

    In training: distant tokens lose their order, and the loss at short lengths does not show it.

    Seen: gpt-neox#1003 and transformers#25681, tables of angles computed in half precision.
    """
    options, sizes = case.options(), case.sizes(max_seq_len=4096)
    with seeded(0):
        exact = case.build_or_reject(sizes, options).double().eval()
    with seeded(0):
        rounded = case.build_or_reject(sizes, options).to(torch.bfloat16).eval()
    rounded.load_state_dict(exact.state_dict())
    positions = torch.arange(3001, 3001 + 24).expand(2, 24)
    x, q = case.tensor(2, 24, exact.d_model), heads(case, exact, 24)
    with torch.no_grad():
        expected = hook_outputs(exact, x, q, positions)
        for name, out in hook_outputs(rounded, x.bfloat16(), q.bfloat16(), positions).items():
            error = (out.double() - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-6)
            require(bool(error < 0.05), f"{name} at position 3000 is {float(error):.2f} of its size off in bfloat16")
