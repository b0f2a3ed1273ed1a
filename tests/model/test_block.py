from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from depth import rarely

import miniformer
from miniformer.config.model_config import TransformerConfig
from miniformer.kernel import Context, Entry, Layout, MaskRule, Registry, discover, use_registry
from miniformer.model.attention import MultiHeadAttention
from miniformer.model.block import Block, Stack, compile_blocks
from miniformer.model.feedforward import GELU, SwiGLU
from miniformer.model.norm import LayerNorm, RMSNorm
from miniformer.model.transformer import Transformer

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


def block(dropout=0.0, **arrangement):
    module = Block(MultiHeadAttention(8, 2), GELU(8, 16), lambda: LayerNorm(8), dropout=dropout, **arrangement).double()
    for parameter in module.parameters():  # no two norms alike
        torch.nn.init.normal_(parameter)
    return module


@pytest.fixture
def fast_paths():
    with miniformer.plain(False):
        yield


ARRANGEMENTS = {  # attention, feed-forward, then the norms of a block in their order
    ("pre", False): lambda x, a, f, n, m: (y := x + a(n(x))) + f(m(y)),
    ("post", False): lambda x, a, f, n, m: m((y := n(x + a(x))) + f(y)),
    ("sandwich", False): lambda x, a, f, n, o, m, p: (y := x + o(a(n(x)))) + p(f(m(y))),
    ("pre", True): lambda x, a, f, n: x + a(n(x)) + f(n(x)),
    ("post", True): lambda x, a, f, n: n(x + a(x) + f(x)),
    ("sandwich", True): lambda x, a, f, n, o: x + o(a(n(x)) + f(n(x))),
}
arrangements = pytest.mark.parametrize(("placement", "parallel"), ARRANGEMENTS)


@arrangements
def test_an_arrangement_puts_norms_where_it_says(placement, parallel):
    module, x = block(norm_placement=placement, parallel=parallel), torch.randn(2, 3, 8, dtype=torch.float64)
    norms = [norm for norm in (module.norm_attention, module.norm_attention_out, module.norm_ffn, module.norm_ffn_out) if norm]
    expected = ARRANGEMENTS[placement, parallel](x, module.attention, module.ffn, *norms)
    torch.testing.assert_close(module(x, Context.plain(x)), expected, rtol=0, atol=1e-10)


@arrangements
def test_dropout_acts_on_the_branches_and_never_on_the_residual_stream(placement, parallel):
    module = block(dropout=1.0, norm_placement=placement, parallel=parallel)
    x = torch.randn(1, 3, 8, dtype=torch.float64)
    expected = x
    if placement == "post":
        expected = module.norm_attention(x) if parallel else module.norm_ffn(module.norm_attention(x))
    torch.testing.assert_close(module(x, Context.plain(x)), expected)


@pytest.mark.parametrize(("placement", "last"), [("pre", RMSNorm), ("post", torch.nn.Identity), ("sandwich", RMSNorm)])
def test_a_stack_ends_with_a_norm_where_the_blocks_do_not(placement, last):
    assert type(Stack(TransformerConfig(**SMALL, norm_placement=placement)).norm) is last


def test_a_stack_arranges_its_blocks_as_the_config_says():
    stack = Stack(TransformerConfig(**SMALL, norm_placement="sandwich", parallel=True))
    assert [(b.norm_placement, b.parallel) for b in stack.blocks] == [("sandwich", True)] * 3


def test_heads_of_another_width_are_served_by_an_encoding_of_their_width():
    config = {**SMALL, "layers": [{"attention": {"name": "mla", "d_rotary": 6}}, {"attention": "mha"}]}
    stack = Stack(TransformerConfig(**{k: v for k, v in config.items() if k != "n_layers"}))
    assert [stack.positions[i].width for i in stack.encoding_of] == [6, 4]


def test_layers_of_heads_of_another_width_share_an_encoding_that_rotates_nothing():
    stack = Stack(TransformerConfig(**{**SMALL, "n_layers": 2, "position": "t5-bias", "layers": [
        {"attention": {"name": "mla", "d_rotary": 6}}, {"attention": "mha"}]}))
    assert len(stack.positions) == 1


def test_no_mask_is_prepared_for_an_attention_that_asks_for_none():
    context = Context(Layout.from_lengths([2], 3))
    Stack(TransformerConfig(**SMALL, attention="linear"))(torch.randn(1, 3, 8), context)
    assert not context.masks


def test_a_pattern_gives_each_layer_its_parts():
    config = TransformerConfig(**{**SMALL, "layers": [
        {"repeat": 2, "attention": {"name": "mha", "window": 2}},
        {"ffn": "gelu", "norm": "layernorm", "position": "none"}]})
    stack = Stack(config)
    assert [b.attention.rule is None for b in stack.blocks] == [False, False, True]
    assert [type(b.ffn) for b in stack.blocks] == [SwiGLU, SwiGLU, GELU]
    assert [type(b.norm_ffn) for b in stack.blocks] == [RMSNorm, RMSNorm, LayerNorm]
    assert [type(stack.positions[i]).__name__ for i in stack.encoding_of] == ["Rotary", "Rotary", "NoPosition"]


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


@pytest.mark.slow
@pytest.mark.parametrize("documents", [rarely([[1] * 6, [1] * 6]), [[1, 1, 2, 2, 2, 3], [1, 1, 1, 1, 2, 2]]])
def test_compiled_blocks_compute_what_they_did(documents, fast_paths, monkeypatch):
    monkeypatch.setattr("miniformer.ops.attention_kernels.sdpa", None)  # so blocks of queries are taken, whatever the mask
    config = TransformerConfig(vocab_size=7, d_model=8, n_heads=2, n_layers=1, causal=True)
    torch.manual_seed(0)
    torch._dynamo.utils.counters.clear()
    model, ids = Transformer(config), torch.randint(7, (2, 100))
    layout = Layout.from_documents(torch.tensor(documents).repeat_interleave(17, dim=1)[:, :100])
    results = []
    for compiled in (False, True):
        if compiled:
            compile_blocks(model)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids, Context(layout)).sin().sum()
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    assert not torch._dynamo.utils.counters["graph_break"]
