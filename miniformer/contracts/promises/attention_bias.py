"""Promises of an attention about the bias of a position encoding: it is added to the scores, for each head by itself."""

from __future__ import annotations

import math
from functools import cache

import torch
from hypothesis import reject
from hypothesis import strategies as st
from torch import Tensor

from miniformer.contracts.kit.attention_harness import AttentionHarness
from miniformer.contracts.kit.case import Case, relative_difference, require, require_equal
from miniformer.contracts.kit.component_under_test import ComponentUnderTest
from miniformer.contracts.kit.properties import Broken, Skip, contract
from miniformer.kernel.interfaces import PositionEncoding
from miniformer.kernel.layout import Layout

from .attention_visibility import MIN_CHANGE

HIDES = -1e9
"""A bias that leaves a key no weight."""
PERIOD = 4
"""As many columns before or after a token may be part of its key, as with a short convolution."""


def applies_no_bias(under_test: ComponentUnderTest) -> str:
    """Why the promises about a bias do not concern a component; "" if they do."""
    return "" if "bias" in under_test.cls.applies else "it applies no bias"


class ThisBias(PositionEncoding):
    """A bias that is one tensor `[B or 1, H, T, S]`, whatever the positions are."""

    def __init__(self, harness: AttentionHarness, bias_BHTS: Tensor) -> None:
        super().__init__(harness.module.d_model, harness.module.n_heads, 512)
        self.bias_BHTS = bias_BHTS

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        return self.bias_BHTS


def with_bias(harness: AttentionHarness, bias_BHTS: Tensor, x: Tensor, layout: Layout) -> Tensor:
    """The output for whole rows with a bias `[B or 1, H, T, S]`."""
    return AttentionHarness(harness.module, harness.causal, ThisBias(harness, bias_BHTS), harness.fixed)(x, layout)


@contract("attention", proves=["applies bias"], skip=applies_no_bias)
def a_bias_counts(case: Case) -> None:
    """The bias of a position encoding is added to the scores: a key with a bias of -1e9 does not change the output. Where the
    order of tokens counts, as with a short convolution or a decay, a token may be heard otherwise than as a key; there, only
    what a token hears from afar is looked at, with a bias of -1e9 on all keys but its own.

    In training: ALiBi and T5 biases do nothing, and the model cannot learn the order of tokens.

    Seen: transformers#47014: T5's bias was added to the mask, which fast kernels could not take.
    """
    harness = AttentionHarness.drawn(case, encoded=False, same_shapes=True)
    layout = case.layout(long=True)
    (B, T), D = layout.shape, harness.module.d_model
    x, rows = case.tensor(B, T, D), torch.arange(B)
    hidden = torch.tensor([case.draw("hidden key", st.integers(0, T - 1)) for _ in range(B)])  # one in each row
    bias = torch.zeros(B, harness.module.n_heads, T, T, dtype=x.dtype)
    bias[rows, :, :, hidden] = HIDES
    bias[rows, :, hidden, hidden] = 0.0  # there the query itself changes
    changed = x.clone()
    changed[rows, hidden] += torch.linspace(1.0, 2.0, D, dtype=x.dtype)
    with torch.no_grad():
        difference = with_bias(harness, bias, changed, layout) - with_bias(harness, bias, x, layout)
    influenced = difference.abs().amax(dim=-1) > MIN_CHANGE
    influenced[rows, hidden] = False
    influenced &= layout.real
    if bool(influenced.any()):
        if _order_counts(case, harness):
            _require_deaf_to_hidden_keys(case, harness)
            return
        b, t = influenced.nonzero()[0].tolist()
        raise Broken(f"with a bias of -1e9, key {int(hidden[b])} of row {b} still changes the output at column {t}")


def _order_counts(case: Case, harness: AttentionHarness) -> bool:
    """Whether the last of five tokens, without a bias, has another output when those before it change places."""
    x, layout = case.tensor(1, 5, harness.module.d_model), Layout.full(1, 5)
    if not bool(harness.visible(layout)[0, -1].all()):
        return False
    with torch.no_grad():
        return relative_difference(harness(x[:, [3, 2, 1, 0, 4]], layout)[:, -1], harness(x, layout)[:, -1]) > 1e-6


def _require_deaf_to_hidden_keys(case: Case, harness: AttentionHarness) -> None:
    """Require that a token hears none that is more than `PERIOD` columns away if all keys but its own have a bias of -1e9."""
    T, H, D = 12, harness.module.n_heads, harness.module.d_model
    x, layout = case.tensor(1, T, D), Layout.full(1, T)
    bias = HIDES * (1 - torch.eye(T, dtype=x.dtype)).expand(1, H, T, T)
    with torch.no_grad():
        before = with_bias(harness, bias, x, layout)
        for s in range(T):
            changed = x.clone()
            changed[:, s] += torch.linspace(1.0, 2.0, D, dtype=x.dtype)
            influenced = (with_bias(harness, bias, changed, layout) - before)[0].abs().amax(dim=-1) > MIN_CHANGE
            influenced &= (torch.arange(T) - s).abs() > PERIOD
            require(not bool(influenced.any()), f"with a bias of -1e9 on all keys but its own, the output at column "
                                                f"{int(influenced.long().argmax())} still changes with the input at column {s}")


@contract("attention", skip=applies_no_bias)
def each_head_has_its_bias(case: Case) -> None:
    """The bias of a head acts in that head and in no other: a key that is hidden in some heads gives another output for each
    choice of these heads.

    In training: the slopes of ALiBi, and the tables of T5, are those of one head, or a mean that fits none.
    """
    harness = AttentionHarness.drawn(case, encoded=False, same_shapes=True)
    H, T = harness.module.n_heads, 6
    layout, x, hidden = Layout.full(1, T), case.tensor(1, T, harness.module.d_model), case.draw("key", st.integers(0, T - 1))
    asks = harness.visible(layout)[0, :, hidden].clone()
    asks[hidden] = False
    if not bool(asks.any()):  # its rule lets no other token see this one
        reject()
    alone = [frozenset({h}) for h in range(H)]
    choices = list(dict.fromkeys([frozenset(), *alone, *(frozenset(range(H)) - one for one in alone), frozenset(range(H))]))

    @cache
    def outputs(value: float) -> list[Tensor]:
        """For each choice of heads, the outputs with this bias on the key."""
        found = []
        for heads in choices:
            bias = torch.zeros(1, H, T, T, dtype=x.dtype)
            bias[:, sorted(heads), :, hidden] = value
            found.append(with_bias(harness, bias, x, layout)[:, asks])
        return found

    for n, heads in enumerate(choices):
        for m in range(n):
            with torch.no_grad():  # a key of no weight is not missed where it is hidden; it counts where nothing else is heard
                differ = any(float((outputs(value)[n] - outputs(value)[m]).abs().max()) > MIN_CHANGE
                             for value in (HIDES, -HIDES))
            require(differ, f"of {H} heads, a bias that hides key {hidden} in {_named(choices[m])} and one that hides it in "
                            f"{_named(heads)} give the same output, and so where it is heard alone")


def _named(heads: frozenset[int]) -> str:
    return f"heads {', '.join(map(str, sorted(heads)))}" if heads else "none"


@contract("attention", skip=applies_no_bias, examples=0.7)
def a_bias_of_log_2_counts_twice(case: Case) -> None:
    """A bias changes a weight by its exponential: of two equal keys, one with a bias of log 2 has the weight of both, if the
    other is hidden; and biases log a and log (2 - a) change nothing. Where the two keys do not count alike, as with a decay, or
    weights do not share a sum, as those of a sigmoid, nothing is compared.

    In training: a bias that is scaled with the scores, bounded, or that acts elsewhere, teaches other distances than it says.
    """
    harness = AttentionHarness.drawn(case, encoded=False, same_shapes=True)
    H, D, T = harness.module.n_heads, harness.module.d_model, case.choose("tokens", [16, 20, 16, 65, 130])
    layout = Layout.full(2, T)
    last = T - 1 if harness.causal else T - 1 - PERIOD
    j = case.draw("second key", st.integers(2 * PERIOD, last) | st.just(last))
    i = j - PERIOD
    x = case.tensor(2, PERIOD, D).repeat(1, T // PERIOD + 1, 1)[:, :T]  # the same few tokens again and again
    visible = harness.visible(layout)[0]
    asks = (visible[:, i] & visible[:, j]).nonzero().flatten()
    if not len(asks):
        reject()

    def output(of_i: Tensor | float, of_j: Tensor | float) -> Tensor:
        bias = torch.zeros(1, H, T, T, dtype=x.dtype)
        bias[:, :, asks, i], bias[:, :, asks, j] = (torch.as_tensor(b, dtype=x.dtype) for b in (of_i, of_j))
        with torch.no_grad():
            return with_bias(harness, bias, x, layout)[:, asks]

    share = case.tensor(1, H, len(asks)).sigmoid() * 1.8 + 0.1  # another one for each head and query
    plain = output(0.0, 0.0)
    try:
        require_equal(output(math.log(2), HIDES), plain,
                      f"with key {i} at a bias of log 2 and its equal {j} hidden, and with both at 0")
        require_equal(output(share.log(), (2 - share).log()), plain,
                      f"with biases log a and log (2 - a) on the equal keys {i} and {j}, and with both at 0")
    except Broken:
        first, second = output(HIDES, 0.0), output(0.0, HIDES)
        if relative_difference(second, first) > 1e-6:
            raise Skip("equal tokens at two places do not count alike, so scores depend on more than tokens and bias") from None
        neither = output(HIDES, HIDES)
        one, another = first - neither, plain - first  # what a key adds: in a sum always the same
        if float(neither.abs().max()) < 1e6 and float((one - another).abs().max()) < 1e-4 * float(another.abs().max()):
            raise Skip("its weights do not share a sum, so a bias is not a number of keys") from None
        raise
