from collections import Counter
from dataclasses import dataclass

import pytest
import torch

from miniformer.config.model_config import TransformerConfig
from miniformer.kernel import Context, Entry, Layout, MaskRule, Registry, discover, use_registry
from miniformer.model.attention import MultiHeadAttention
from miniformer.model.block import Block, Stack
from miniformer.model.feedforward import GELU, SwiGLU
from miniformer.model.norm import LayerNorm, RMSNorm

SMALL = {"vocab_size": 11, "d_model": 8, "n_heads": 2, "n_layers": 3, "max_seq_len": 16}
calls = Counter()


@dataclass(frozen=True)
class Looking(MaskRule):
    """Counts how often it is prepared."""

    def allows(self, queries, keys):
        calls["prepared"] += 1
        return queries.positions[:, :, None] >= keys.positions[:, None, :]


class LookingAttention(MultiHeadAttention):
    def __init__(self, d_model, n_heads):
        super().__init__(d_model, n_heads)
        self.rule = Looking()


def block(pre_norm, dropout=0.0):
    return Block(MultiHeadAttention(8, 2), GELU(8, 16), RMSNorm(8), LayerNorm(8), pre_norm=pre_norm,
                 dropout=dropout).double()


def test_pre_norm_normalises_before_each_branch():
    module, x = block(pre_norm=True), torch.randn(2, 3, 8, dtype=torch.float64)
    y = x + module.attention(module.norm_attention(x))
    torch.testing.assert_close(module(x, Context.plain(x)), y + module.ffn(module.norm_ffn(y)), rtol=0, atol=1e-12)


def test_post_norm_normalises_after_each_sum():
    module, x = block(pre_norm=False), torch.randn(2, 3, 8, dtype=torch.float64)
    y = module.norm_attention(x + module.attention(x))
    torch.testing.assert_close(module(x, Context.plain(x)), module.norm_ffn(y + module.ffn(y)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_dropout_acts_on_the_branches_and_never_on_the_residual_stream(pre_norm):
    module, x = block(pre_norm, dropout=1.0), torch.randn(1, 3, 8, dtype=torch.float64)
    expected = x if pre_norm else module.norm_ffn(module.norm_attention(x))
    torch.testing.assert_close(module(x, Context.plain(x)), expected)


@pytest.mark.parametrize(("pre_norm", "last"), [(True, RMSNorm), (False, torch.nn.Identity)])
def test_a_stack_ends_with_a_norm_where_the_blocks_do_not(pre_norm, last):
    assert type(Stack(TransformerConfig(**SMALL, pre_norm=pre_norm)).norm) is last


def test_a_pattern_gives_each_layer_its_parts():
    config = TransformerConfig(**{**SMALL, "layers": [
        {"repeat": 2, "attention": {"name": "mha", "window": 2}},
        {"ffn": "gelu", "norm": "layernorm", "position": "none"}]})
    stack = Stack(config)
    assert [b.attention.rule is None for b in stack.blocks] == [False, False, True]
    assert [type(b.ffn) for b in stack.blocks] == [SwiGLU, SwiGLU, GELU]
    assert [type(b.norm_ffn) for b in stack.blocks] == [RMSNorm, RMSNorm, LayerNorm]
    assert [type(stack.positions[i]).__name__ for i in stack.which] == ["Rotary", "Rotary", "NoPosition"]


def test_equal_position_encodings_are_built_once():
    assert len(Stack(TransformerConfig(**SMALL)).positions) == 1


def test_no_two_layers_share_parameters():
    parameters = [p for b in Stack(TransformerConfig(**SMALL)).blocks for p in b.parameters()]
    assert len({id(p) for p in parameters}) == len(parameters)


def test_layers_with_equal_rules_share_one_mask():
    entry = Entry("attention", "looking", f"{__name__}:LookingAttention", "acme", "1.0")
    with use_registry(Registry([*discover(plugins="none"), entry])):
        stack = Stack(TransformerConfig(**SMALL, attention="looking"))
    stack(torch.randn(1, 3, 8), Context(Layout.full(1, 3)))
    assert calls["prepared"] == 1
