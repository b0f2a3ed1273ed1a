"""A component that keeps no state is decoded by computing everything again, not wrongly."""

import pytest
import torch
from token_streams import generate

from miniformer.config.model_config import TransformerConfig
from miniformer.kernel import Attention, Entry, Registry, discover, use_registry
from miniformer.model.transformer import Transformer


class Mean(Attention):
    """The mean of what came before."""

    causal_only = True

    def forward(self, x, context, state=None):
        allowed = torch.ones(x.shape[1], x.shape[1], dtype=x.dtype).tril()
        return allowed @ x / allowed.sum(-1, keepdim=True)


@pytest.mark.parametrize("length", [1, 5])
def test_greedy_tokens_are_those_of_the_whole_model(length):
    registry = Registry([*discover(), Entry("attention", "mean", f"{__name__}:Mean", "acme", "1")])
    registry._classes["attention", "acme:mean"] = Mean
    with use_registry(registry):
        model = Transformer(TransformerConfig(vocab_size=20, d_model=16, n_heads=2, n_layers=2, causal=True,
                                              attention="mean")).double().eval()
    tokens = generate(model, torch.arange(1, length + 1), 8, temperature=0)
    with torch.no_grad():
        for stop in range(length, length + 8):
            assert tokens[stop] == model(tokens[None, :stop])[0, -1].argmax()
