"""Optimizers: which parameters decay, and a step against the published update."""

import pytest
import torch
from torch import nn

from miniformer.config.model_config import TransformerConfig
from miniformer.kernel import SpecError, build
from miniformer.kernel.recipes import OptimizerRecipe
from miniformer.model.transformer import Transformer


def model(**fields):
    return Transformer(TransformerConfig(**{"vocab_size": 11, "d_model": 8, "n_heads": 2, "n_layers": 2, "d_ff": 12,
                                            "max_seq_len": 9, **fields}))


def groups(one, spec="adamw"):
    return build(OptimizerRecipe, spec, 1e-3, 0.1).groups(one)


def decayed(one):
    """Names of the parameters by whether they decay, each as often as it is in a group."""
    names = {id(p): name for name, p in one.named_parameters()}
    found = groups(one)
    return {decays: sorted(names[id(p)] for group in found if (group["weight_decay"] > 0) == decays
                           for p in group["params"]) for decays in (True, False)}


MODELS = {
    "tied": {},
    "untied": {"head": {"name": "lm", "tied": False}},
    "learned positions": {"position": "learned"},
    "layer norm and biases": {"norm": "layernorm", "attention": {"name": "mha", "bias": True},
                              "ffn": {"name": "gelu", "bias": True}},
    "classification": {"output_dim": 3},
    "features": {"input_dim": 5, "output_dim": 3},
}


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_every_trainable_parameter_is_in_one_group(fields):
    one = model(**fields)
    found = [id(p) for group in groups(one) for p in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(p) for p in one.parameters()}


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_vectors_do_not_decay(fields):
    assert all(p.ndim >= 2 for group in groups(model(**fields)) if group["weight_decay"] for p in group["params"])


def test_matrices_decay_and_norms_and_embeddings_do_not():
    assert decayed(model(n_layers=1, norm="layernorm", position="learned")) == {
        True: ["stack.blocks.0.attention.kv.weight", "stack.blocks.0.attention.out.weight",
               "stack.blocks.0.attention.q.weight", "stack.blocks.0.ffn.down.weight",
               "stack.blocks.0.ffn.gate_up.weight"],
        False: ["embedding.weight", "stack.blocks.0.norm_attention.bias", "stack.blocks.0.norm_attention.weight",
                "stack.blocks.0.norm_ffn.bias", "stack.blocks.0.norm_ffn.weight", "stack.norm.bias",
                "stack.norm.weight", "stack.positions.0.table.weight"]}


def test_a_head_of_its_own_decays():
    assert "head.out.weight" in decayed(model(head={"name": "lm", "tied": False}))[True]


def test_an_embedding_that_is_the_head_too_does_not_decay():
    assert "embedding.weight" in decayed(model())[False]


def test_the_projection_of_features_decays():
    assert "embedding.weight" in decayed(model(input_dim=5, output_dim=3))[True]


def test_frozen_parameters_are_in_no_group():
    one = model()
    one.embedding.weight.requires_grad_(False)
    assert id(one.embedding.weight) not in {id(p) for group in groups(one) for p in group["params"]}


def test_there_is_no_empty_group():
    assert len(groups(nn.Linear(2, 2, bias=False))) == 1


def adamw(parameter, gradients, lr=1e-2, decay=0.1, beta1=0.9, beta2=0.95, eps=1e-8):
    """Loshchilov & Hutter 2019, algorithm 2."""
    p, m, v = parameter.clone(), torch.zeros_like(parameter), torch.zeros_like(parameter)
    for t, g in enumerate(gradients, start=1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        p = p - lr * (m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps) + decay * p)
    return p


@pytest.mark.parametrize("options", [{}, {"fused": False}, {"beta1": 0.5, "beta2": 0.7, "eps": 1e-3}])
def test_adamw_is_the_published_update(options):
    layer = nn.Linear(3, 2).double()
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    gradients = [torch.randn(2, 4, dtype=torch.double) for _ in range(5)]
    recipe = build(OptimizerRecipe, {"name": "adamw", **options}, 1e-2, 0.1)
    optimizer = recipe.build(recipe.groups(layer))
    for gradient in gradients:
        layer.weight.grad, layer.bias.grad = gradient[:, :3].clone(), gradient[:, 3].clone()
        optimizer.step()
    betas = {name: value for name, value in options.items() if name != "fused"}
    torch.testing.assert_close(layer.weight.detach(), adamw(weight, [g[:, :3] for g in gradients], **betas))
    torch.testing.assert_close(layer.bias.detach(), adamw(bias, [g[:, 3] for g in gradients], decay=0, **betas))


@pytest.mark.parametrize(("option", "value"), [("beta1", 1), ("beta2", -0.1), ("eps", 0), ("fused", "perhaps")])
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(SpecError, match=option):
        build(OptimizerRecipe, {"name": "adamw", option: value}, 1e-3, 0.1)


def test_a_complex_parameter_is_stepped_as_its_two_real_ones():
    start, gradient = torch.randn(3, 2, dtype=torch.cdouble), torch.randn(3, 2, dtype=torch.cdouble)
    layer = nn.Module()
    layer.weight, layer.scale = nn.Parameter(start.clone()), nn.Parameter(torch.ones(1))
    recipe = build(OptimizerRecipe, "adamw", 1e-2, 0.1)
    optimizer = recipe.build(recipe.groups(layer))
    layer.weight.grad, layer.scale.grad = gradient.clone(), torch.zeros(1)
    optimizer.step()
    torch.testing.assert_close(torch.view_as_real(layer.weight.detach()),
                               adamw(torch.view_as_real(start), [torch.view_as_real(gradient)]))
