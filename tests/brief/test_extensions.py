"""The brief's three ideas for extensions, as components of the kernel's interfaces; each trains and is decoded like ours."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniformer.config.model_config import TransformerConfig
from miniformer.kernel import (
    Context,
    Entry,
    FeedForward,
    Head,
    Layout,
    Registry,
    current_registry,
    discover,
    use_registry,
)
from miniformer.model.attention import MultiHeadAttention
from miniformer.model.seq2seq_transformer import Seq2SeqTransformer
from miniformer.model.transformer import Transformer

SIZES = {"vocab_size": 30, "d_model": 32, "n_heads": 4, "n_layers": 2, "d_ff": 48, "max_seq_len": 16}


class FlashAttention(MultiHeadAttention):
    """Multi-head attention through PyTorch's scaled_dot_product_attention, and its options by its parent's."""

    def __init__(self, d_model: int, n_heads: int, *, scale: float = 1.0, **options) -> None:
        super().__init__(d_model, n_heads, **options)
        self.scale = scale

    def forward(self, x, context, state=None):
        if context.memory is not None or state is not None:  # what it does not change is its parent's
            return super().forward(x, context, state)
        B, T, D = x.shape
        q, k, v = (torch.cat([self.q(x), self.kv(x)], dim=-1).view(B, T, 3, self.n_heads, self.d_head)
                   .permute(2, 0, 3, 1, 4))
        mask = context.mask(self.rule)
        out = F.scaled_dot_product_attention(context.rotate(q, "q"), context.rotate(k, "k"), v, attn_mask=mask.allowed,
                                             is_causal=mask.causal, scale=self.scale / math.sqrt(self.d_head))
        return self.out(out.transpose(1, 2).reshape(B, T, D))


class MoEFeedForward(FeedForward):
    """Each token goes to the expert that its gate likes best; the balance of the gates is a loss (arXiv:2101.03961)."""

    def __init__(self, d_model: int, d_ff: int, *, num_experts: int = 4) -> None:
        super().__init__(d_model, d_ff)
        self.gate = nn.Linear(d_model, num_experts)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(d_model, d_ff), nn.GELU(), nn.Linear(d_ff, d_model))
                                     for _ in range(num_experts))

    def forward(self, x, context):
        gates = self.gate(x).softmax(dim=-1)
        weight, chosen = gates.max(dim=-1)
        output = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            output[chosen == i] = expert(x[chosen == i]) * weight[chosen == i][:, None]
        shares = F.one_hot(chosen, len(self.experts)).to(x.dtype).mean(dim=(0, 1))
        context.record("balance", len(self.experts) * (shares * gates.mean(dim=(0, 1))).sum() * 0.01, loss=True)
        return output


class TokenClassificationHead(Head):
    """A score of each label at every token."""

    def __init__(self, d_model: int, n_outputs: int, *, dropout: float = 0.0) -> None:
        super().__init__(d_model, n_outputs)
        self.dropout, self.classifier = nn.Dropout(dropout), nn.Linear(d_model, n_outputs)

    def forward(self, x, select=None):
        return self.classifier(self.dropout(x if select is None else x[select]))


@pytest.fixture(autouse=True)
def _installed():
    """As if a package had declared them."""
    entries = [Entry(kind, name, f"{__name__}:{cls.__name__}", "acme", "1.0") for kind, name, cls in [
        ("attention", "flash", FlashAttention), ("ffn", "moe", MoEFeedForward),
        ("head", "token-labels", TokenClassificationHead)]]
    with use_registry(Registry([*discover(plugins="none"), *entries])):
        yield


def same_weights(one, other):
    other.load_state_dict(one.state_dict())
    return one.double().eval(), other.double().eval()


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_a_flash_attention_computes_what_multi_head_attention_does(causal):
    flash, plain = same_weights(Transformer(TransformerConfig(**SIZES, causal=causal, attention="flash")),
                                Transformer(TransformerConfig(**SIZES, causal=causal)))
    packed = Layout.from_documents(torch.tensor([[1, 1, 2, 2, 2, 3, 0, 0]]))
    for layout in (Layout.full(2, 8), Layout.from_lengths([5, 8]), packed):
        ids = torch.randint(0, 30, layout.shape)
        torch.testing.assert_close(flash(ids, Context(layout)), plain(ids, Context(layout)), rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_flash_attention_has_its_parents_options_and_its_own():
    config = TransformerConfig(**SIZES, causal=True, attention={"name": "flash", "scale": 2.0, "window": 3})
    assert {"scale", "window", "bias"} <= config.attention.options.keys()
    assert "flash" in {entry.name for entry in current_registry().entries("attention")}


def test_a_flash_attention_generates_and_crosses():
    decoder = Transformer(TransformerConfig(**SIZES, causal=True, attention="flash")).double().eval()
    both = Seq2SeqTransformer(TransformerConfig(**SIZES, attention="flash", cross_attention="flash")).double().eval()
    prompt = torch.randint(0, 30, (2, 4))
    for model in (decoder, both):
        written = model.generate(prompt, 6, do_sample=False)
        assert written.tolist() == model.generate(prompt, 6, do_sample=False, use_state=False).tolist()


def train(model, ids, labels, steps=40):
    """The loss before and after some training on one batch."""
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(steps):
        context = Context(Layout.full(*ids.shape))
        loss = F.cross_entropy(model(ids, context).flatten(0, 1), labels.flatten())
        extra = context.auxiliary_loss()
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


def test_a_mixture_of_experts_trains_with_its_balance_loss():
    model = Transformer(TransformerConfig(**SIZES, ffn={"name": "moe", "num_experts": 3}))
    context, ids = Context(Layout.full(4, 8)), torch.randint(0, 30, (4, 8))
    model(ids, context)
    assert [record.name for record in context.records if record.loss] == ["balance"] * 2
    before, after = train(model, ids, ids)
    assert after < before / 2
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_head_labels_every_token():
    model = Transformer(TransformerConfig(**SIZES, output_dim=5, head={"name": "token-labels", "dropout": 0.1}))
    ids = torch.randint(0, 30, (4, 8))
    assert model(ids).shape == (4, 8, 5)
    before, after = train(model, ids, ids % 5)
    assert after < before / 2
