import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import miniformer
from miniformer.contracts.kit.drawing import seeds
from miniformer.model.head import LanguageModelHead
from miniformer.ops import cross_entropy
from miniformer.ops.cross_entropy import linear_cross_entropy
from miniformer.ops.linear import speed_up

D, V = 3, 5


def reference(x, weight, targets):
    return F.cross_entropy(x @ weight.T, targets, ignore_index=-1, reduction="sum")


def inputs(n, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(rows, D, generator=generator, dtype=torch.float64).to(dtype) for rows in (n, V))
    return x, weight, torch.randint(-1, V, (n,), generator=generator)


@given(st.integers(0, 9), seeds, st.sampled_from([1, 2, 100]), st.sampled_from([1, V, 3 * V, 100]),
       st.sampled_from([2, 100]), st.sampled_from([(True, True), (True, False), (False, True)]))
def test_loss_and_gradients_are_those_of_all_scores_at_once(n, seed, at_once, in_cache, classes, needed):
    x, weight, targets = inputs(n, seed)
    leaves = [t.requires_grad_() for t, wanted in zip((x, weight), needed, strict=True) if wanted]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "TOKENS", at_once)
        patch.setattr(cross_entropy, "IN_CACHE", in_cache)
        patch.setattr(cross_entropy, "CLASSES", classes)
        loss = linear_cross_entropy(x, weight, targets)
        found = torch.autograd.grad(loss * 2.5, leaves)
        with torch.no_grad():
            torch.testing.assert_close(linear_cross_entropy(x, weight, targets), loss.detach())
    expected = reference(x, weight, targets)
    torch.testing.assert_close(loss, expected)
    for one, other in zip(found, torch.autograd.grad(expected * 2.5, leaves), strict=True):
        torch.testing.assert_close(one, other)


def test_an_improbable_class_has_a_finite_loss():
    x, weight = torch.tensor([[1000.0]]), torch.tensor([[1.0], [-1.0]], requires_grad=True)
    loss = linear_cross_entropy(x, weight, torch.tensor([1]))
    assert loss.item() == 2000
    loss.backward()
    assert weight.grad.tolist() == [[1000.0], [-1000.0]]


@pytest.mark.parametrize("autocast", [False, True])
def test_in_half_precision_it_is_as_exact_as_the_formula(autocast):
    x, weight, targets = inputs(64, 0, torch.float32 if autocast else torch.bfloat16)
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = linear_cross_entropy(x, weight, targets)
        expected = F.cross_entropy(F.linear(x, weight).float(), targets, ignore_index=-1, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_gradients_of_many_parts_are_summed_in_single_precision(monkeypatch):
    monkeypatch.setattr(cross_entropy, "TOKENS", 1)
    x, weight, targets = inputs(512, 0, torch.bfloat16)
    exact = [t.double().requires_grad_() for t in (x, weight)]
    reference(*exact, targets).backward()
    linear_cross_entropy(x, weight.requires_grad_(), targets).backward()
    assert float((weight.grad - exact[1].grad).norm() / exact[1].grad.norm()) < 0.005


def test_a_second_backward_is_refused_rather_than_wrong():
    x, weight, targets = inputs(4, 0)
    loss = linear_cross_entropy(x.requires_grad_(), weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="gives its gradients once"):
        loss.backward()


def test_a_second_derivative_is_refused_rather_than_wrong():
    x, weight, targets = inputs(4, 0)
    loss = linear_cross_entropy(x.requires_grad_(), weight, targets)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_what_is_not_asked_for_may_be_anything():
    x, weight, targets = inputs(4, 0)
    targets[1] = -1
    expected = linear_cross_entropy(x, weight, targets)
    x[1] = math.nan
    torch.testing.assert_close(linear_cross_entropy(x.requires_grad_(), weight, targets), expected)
    linear_cross_entropy(x, weight, targets).backward()
    assert not x.grad.isnan().any()


# --- the head that has it

@pytest.fixture
def fast_paths():
    with miniformer.plain(False):
        yield


class Doubled(LanguageModelHead):
    def forward(self, x, select=None):
        return 2 * super().forward(x, select)


def head_and_input(**options):
    torch.manual_seed(0)
    return LanguageModelHead(D, V, **options), torch.randn(1, 4, D), torch.tensor([[0, -1, 4, 2]])


@pytest.mark.parametrize(("options", "change", "used"), [
    ({}, lambda head: None, True), ({"scale": 0.5}, lambda head: None, True), ({"softcap": 2.0}, lambda head: None, False),
    ({}, lambda head: head.out.register_forward_hook(lambda *_: None), False),
    ({}, lambda head: setattr(head, "out", nn.Sequential(head.out)), False),
    ({}, lambda head: setattr(head, "out", nn.Linear(D, V)), False),
    ({}, lambda head: head.register_forward_hook(lambda _, args, out: 2 * out), False),
    ({}, lambda head: setattr(head.out, "forward", lambda x: 2 * x @ head.out.weight.T), False),
    ({}, lambda head: setattr(head, "__class__", Doubled), False),
    ({}, speed_up, True)])
def test_the_head_takes_it_where_its_matrix_is_all_there_is(fast_paths, monkeypatch, options, change, used):
    taken = []
    monkeypatch.setattr("miniformer.model.head.linear_cross_entropy",
                        lambda *args: taken.append(1) or linear_cross_entropy(*args))
    head, x, targets = head_and_input(**options)
    change(head)
    loss = head.cross_entropy(x, targets)
    assert bool(taken) == used
    torch.testing.assert_close(loss, F.cross_entropy(head(x)[0], targets[0], ignore_index=-1, reduction="sum"))


def test_gradients_that_must_be_scaled_first_are_left_to_torch(fast_paths, monkeypatch):
    monkeypatch.setattr("miniformer.model.head.linear_cross_entropy", None)
    head, x, targets = head_and_input()
    with torch.autocast("cpu", torch.float16):
        assert head.cross_entropy(x, targets).dtype == torch.float32
