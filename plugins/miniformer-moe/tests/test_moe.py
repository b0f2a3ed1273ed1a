"""The mixture of experts: against a loop over tokens, its balance loss, and in whole models.

It is found through the entry point of the installed distribution, as an installed plugin's components are.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import math
import sys
from pathlib import Path
from typing import Any

import miniformer_moe
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from miniformer_moe import MixtureOfExperts
from torch import Tensor, nn

from miniformer.config.model_config import TransformerConfig
from miniformer.kernel import Context, FeedForward, Layout, Registry, SpecError, UserError, build, discover, resolve
from miniformer.model.transformer import Transformer

torch.set_num_threads(1)
F64 = torch.float64


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def mixture(d_model: int = 6, d_ff: int = 8, **options: Any) -> MixtureOfExperts:
    return MixtureOfExperts(d_model, d_ff, **options).to(F64)


def tiny(**fields: Any) -> TransformerConfig:
    ffn = {"name": "moe", "n_experts": 4, **fields.pop("ffn", {})}
    return TransformerConfig(**{"vocab_size": 19, "d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 12,
                                "max_seq_len": 32, "causal": True, "ffn": ffn, **fields})


def oracle(moe: MixtureOfExperts, tokens: Tensor) -> tuple[Tensor, float]:
    """Output and balance loss of tokens [N, D], one token and one expert at a time."""
    rows, assigned, probability = [], [0] * moe.n_experts, [0.0] * moe.n_experts
    for token in tokens:
        p = torch.softmax(moe.router.weight @ token, dim=0).tolist()
        best = sorted(range(moe.n_experts), key=lambda e: -p[e])[:moe.top_k]
        total = sum(p[e] for e in best) if moe.top_k > 1 else 1.0
        rows.append(sum(p[e] / total * moe.experts[e](token[None, None])[0, 0] for e in best))
        for e in range(moe.n_experts):
            assigned[e] += e in best
            probability[e] += p[e]
    n = len(tokens)
    loss = sum(a / (n * moe.top_k) * p / n for a, p in zip(assigned, probability))
    return torch.stack(rows), moe.balance * moe.n_experts * loss


# --- what it computes -------------------------------------------------------------------------------------------------

@given(batch=st.integers(1, 3), length=st.integers(1, 7), n_experts=st.integers(2, 5), data=st.data(),
       inner=st.sampled_from(["swiglu", "relu", {"name": "gelu", "bias": True}]), seed=st.integers(0, 99))
def test_it_is_the_loop_over_tokens(batch: int, length: int, n_experts: int, data: st.DataObject, inner: Any,
                                    seed: int) -> None:
    torch.manual_seed(seed)
    lengths = data.draw(st.lists(st.integers(1, length), min_size=batch, max_size=batch))
    side = data.draw(st.sampled_from(["left", "right"]))
    moe = mixture(n_experts=n_experts, top_k=data.draw(st.integers(1, n_experts)), inner=inner, balance=0.3)
    x = torch.randn(batch, length, 6, dtype=F64)
    layout = Layout.from_lengths(lengths, length, side)
    context = Context(layout)
    out = moe(x, context)
    expected, loss = oracle(moe, x[layout.real])
    assert out.shape == x.shape
    torch.testing.assert_close(out[layout.real], expected, atol=1e-10, rtol=0)
    assert (out[~layout.real] == 0).all()
    assert [(r.name, r.loss) for r in context.records] == [("moe-balance", True)]
    assert context.records[0].value.item() == pytest.approx(loss, abs=1e-10)


def test_with_all_experts_chosen_it_is_the_dense_mixture() -> None:
    moe, x = mixture(n_experts=3, top_k=3), torch.randn(2, 5, 6, dtype=F64)
    weights = moe.router(x).softmax(dim=-1)
    dense = sum(weights[..., e:e + 1] * moe.experts[e](x) for e in range(3))
    torch.testing.assert_close(moe(x), dense, atol=1e-10, rtol=0)


def test_a_token_depends_on_itself_alone() -> None:
    moe, x = mixture(n_experts=4), torch.randn(3, 5, 6, dtype=F64)
    whole = moe(x)
    for b in range(3):
        for t in range(5):
            torch.testing.assert_close(moe(x[b:b + 1, t:t + 1]), whole[b:b + 1, t:t + 1], atol=1e-10, rtol=0)
    torch.testing.assert_close(moe(x.flip(0, 1)), whole.flip(0, 1), atol=1e-10, rtol=0)


def test_meta_construction_makes_no_tensor() -> None:
    with torch.device("meta"):
        moe = MixtureOfExperts(6, 8, n_experts=3)
    assert {p.device.type for p in moe.parameters()} == {"meta"}
    assert [p.shape for p in moe.parameters()] == [p.shape for p in mixture(n_experts=3).parameters()]


def test_bfloat16_autocast() -> None:
    moe, x = MixtureOfExperts(16, 32, n_experts=4, top_k=4), torch.randn(2, 9, 16, requires_grad=True)
    context = Context.plain(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = moe(x, context)
        assert out.dtype == moe.experts[0](x).dtype == torch.bfloat16
    assert context.records[0].value.dtype == torch.float32
    torch.testing.assert_close(out.float(), moe(x), atol=0.03, rtol=0.03)
    (out.float().sum() + context.records[0].value).backward()
    for p in moe.parameters():
        assert p.grad is not None
        assert p.grad.dtype == torch.float32
        assert p.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_every_dtype_is_kept_and_the_loss_is_at_least_float32(dtype: torch.dtype) -> None:
    context = Context(Layout.from_lengths([4, 2]))
    assert mixture().to(dtype)(torch.randn(2, 4, 6, dtype=dtype), context).dtype == dtype
    assert context.records[0].value.dtype == (F64 if dtype == F64 else torch.float32)


# --- gradients --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_task_alone_teaches_the_router_and_every_expert(top_k: int) -> None:
    moe = mixture(n_experts=3, top_k=top_k, balance=0.0)
    moe(torch.randn(4, 16, 6, dtype=F64)).pow(2).sum().backward()
    assert moe.router.weight.grad is not None
    assert (moe.router.weight.grad.abs().amax(dim=1) > 1e-6).all()
    assert all(p.grad is not None and p.grad.abs().max() > 1e-6 for p in moe.experts.parameters())


def test_gradients_are_those_of_the_loop() -> None:
    moe, x = mixture(n_experts=3), torch.randn(1, 7, 6, dtype=F64, requires_grad=True)
    leaves = [x, *moe.parameters()]
    gradients = torch.autograd.grad(moe(x).pow(2).sum(), leaves)
    p = moe.router(x[0]).softmax(dim=-1)
    top = p.topk(2).indices
    chosen = torch.zeros_like(p).scatter(1, top, 1.0) * p
    weights = chosen / chosen.sum(dim=-1, keepdim=True)
    dense = sum(weights[:, e:e + 1] * moe.experts[e](x)[0] for e in range(3))
    for gradient, expected in zip(gradients, torch.autograd.grad(dense.pow(2).sum(), leaves)):
        torch.testing.assert_close(gradient, expected, atol=1e-10, rtol=0)


def test_an_expert_without_tokens_has_zero_gradients() -> None:
    moe = mixture(n_experts=3, top_k=1)
    with torch.no_grad():
        moe.router.weight.zero_()[0] = 9.0
    moe(torch.ones(1, 4, 6, dtype=F64)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in moe.experts[1].parameters())


# --- balance ----------------------------------------------------------------------------------------------------------

def loss_of(moe: MixtureOfExperts, x: Tensor, layout: Layout | None = None) -> Tensor:
    context = Context.plain(x) if layout is None else Context(layout)
    moe(x, context)
    (record,) = context.records
    return record.value


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_an_even_router_costs_exactly_balance(top_k: int) -> None:
    moe = mixture(4, n_experts=4, top_k=top_k, balance=0.25)
    with torch.no_grad():  # token t prefers expert t, then t + 1, ...: each expert gets as much as any other
        moe.router.weight.copy_(torch.stack([torch.arange(4.0).roll(e) for e in range(4)]))
    assert loss_of(moe, torch.eye(4, dtype=F64)[None]).item() == pytest.approx(0.25, abs=1e-15)


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_collapsed_router_costs_as_many_times_more_as_experts_are_idle(top_k: int) -> None:
    moe = mixture(n_experts=8, top_k=top_k, balance=0.25)
    with torch.no_grad():
        moe.router.weight.fill_(-50.0)[:top_k] = 50.0
    assert loss_of(moe, torch.ones(2, 5, 6, dtype=F64)).item() == pytest.approx(0.25 * 8 / top_k, abs=1e-12)


def test_descending_the_loss_spreads_the_load() -> None:
    moe, x = mixture(n_experts=4, top_k=1, balance=1.0), torch.randn(4, 32, 6, dtype=F64)
    x[..., 0] = 1.0
    with torch.no_grad():
        moe.router.weight[0, 0] += 4.0
    optimizer = torch.optim.Adam(moe.router.parameters(), lr=0.05)
    first = loss_of(moe, x).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(moe, x).backward()
        optimizer.step()
    assert first > 2.5
    assert loss_of(moe, x).item() < 1.2


def test_padding_counts_for_nothing_whatever_it_holds() -> None:
    moe, x = mixture(n_experts=3, inner={"name": "moe", "n_experts": 2, "top_k": 1}), torch.randn(2, 5, 6, dtype=F64)
    layout = Layout.from_lengths([5, 2])
    padded, dense = Context(layout), Context.plain(x[layout.real][None])
    x[1, 2:] = math.nan
    out, expected = moe(x, padded), moe(x[layout.real][None], dense)
    assert out.isfinite().all()
    torch.testing.assert_close(out[layout.real], expected[0], atol=1e-10, rtol=0)
    assert len(padded.records) == len(dense.records) == 1 + 3
    for record, expected_record in zip(padded.records, dense.records):
        torch.testing.assert_close(record.value, expected_record.value, atol=1e-10, rtol=0)
    loss = padded.auxiliary_loss()
    assert loss is not None
    (loss + out.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in moe.parameters())


def test_facts_set_to_their_cautious_values_change_nothing() -> None:
    moe, x = mixture(), torch.randn(2, 5, 6, dtype=F64)
    cautious = Layout.from_documents(torch.ones(2, 5, dtype=torch.long))
    assert cautious.padded
    torch.testing.assert_close(moe(x, Context(cautious)), moe(x), atol=1e-10, rtol=0)
    torch.testing.assert_close(loss_of(moe, x, cautious), loss_of(moe, x), atol=1e-10, rtol=0)


def test_nothing_but_padding() -> None:
    moe, x = mixture(), torch.randn(2, 3, 6, dtype=F64)
    context = Context(Layout.from_documents(torch.zeros(2, 3, dtype=torch.long)))
    assert not moe(x, context).any()
    assert context.records[0].value.item() == 0


def test_no_loss_in_evaluation_nor_at_weight_zero() -> None:
    x = torch.randn(2, 3, 6, dtype=F64)
    for moe in (mixture().eval(), mixture(balance=0.0)):
        context = Context.plain(x)
        moe(x, context)
        assert context.records == []


# --- in a model -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("inner", ["swiglu", {"name": "moe", "n_experts": 2, "top_k": 1}])
def test_recomputing_activations_counts_the_loss_once_and_keeps_gradients(inner: Any) -> None:
    tokens, layout = torch.randint(19, (2, 8)), Layout.from_lengths([8, 5])
    results = []
    for again in (False, True):
        torch.manual_seed(1)
        model = Transformer(tiny(dropout=0.1, activation_checkpointing=again, ffn={"inner": inner})).to(F64)
        torch.manual_seed(2)
        context = Context(layout)
        out = model(tokens, context)
        count, loss = len(context.records), context.auxiliary_loss()
        assert loss is not None
        (out[layout.real].logsumexp(-1).sum() + loss).backward()
        assert len(context.records) == count == (2 if inner == "swiglu" else 2 * (1 + 4))
        results.append((loss, {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(results[0], results[1], atol=1e-12, rtol=0)


def test_packed_documents_are_as_separate_ones() -> None:
    model = Transformer(tiny()).to(F64)
    tokens = torch.randint(19, (1, 12))
    out = model(tokens, Context(Layout.from_documents(torch.tensor([[1] * 5 + [2] * 4 + [0] * 3]))))
    for start, stop in ((0, 5), (5, 9)):
        torch.testing.assert_close(out[:, start:stop], model(tokens[:, start:stop]), atol=1e-10, rtol=0)


@pytest.mark.parametrize("chunks", [[1] * 9, [4, 1, 3, 1]])
def test_decoding_step_by_step_is_the_full_pass(chunks: list[int]) -> None:
    model = Transformer(tiny()).to(F64).eval()
    tokens = torch.randint(19, (3, 9))
    state = model.init_state(3, 9)
    steps = torch.cat([model(part, state=state) for part in tokens.split(chunks, dim=1)], dim=1)
    torch.testing.assert_close(steps, model(tokens), atol=1e-10, rtol=0)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = Transformer(tiny(ffn={"inner": {"name": "gelu", "bias": True}})).eval()
    model.save_pretrained(tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "config.json").read_text())
    assert saved["model"]["ffn"] == {"name": "miniformer-moe:moe", "n_experts": 4, "top_k": 2, "balance": 0.01,
                                     "inner": {"name": "gelu", "bias": True}}
    assert saved["providers"]["miniformer-moe"] == importlib.metadata.version("miniformer-moe")
    again = Transformer.from_pretrained(tmp_path / "model")
    tokens = torch.randint(19, (2, 8))
    assert torch.equal(again(tokens), model(tokens))


def test_a_layer_pattern_mixes_it_with_dense_layers() -> None:
    config = tiny(n_layers=3, ffn={}, layers=[{"ffn": "swiglu"}, {"repeat": 2}])
    context = Context.plain(tokens := torch.randint(19, (2, 4)))
    model = Transformer(config)
    model(tokens, context)
    assert [isinstance(m.ffn, MixtureOfExperts) for m in model.stack.blocks] == [False, True, True]
    assert len(context.records) == 2


# --- names, specs, errors ---------------------------------------------------------------------------------------------

def test_the_installed_distribution_provides_it() -> None:
    registry = Registry(discover())
    (entry,) = [e for e in registry.entries("ffn") if e.distribution == "miniformer-moe"]
    assert (entry.name, entry.state.value, entry.saved) == ("moe", "available", "miniformer-moe:moe")
    assert entry.provider == f"miniformer-moe {importlib.metadata.version('miniformer-moe')}"
    assert registry.load("ffn", "moe") is registry.load("ffn", "miniformer-moe:moe") is MixtureOfExperts


def test_the_package_imports_only_what_a_third_party_can() -> None:
    allowed = {"torch", "pydantic", "miniformer.kernel", *sys.stdlib_module_names}
    for file in Path(miniformer_moe.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {name.name for name in node.names} <= allowed
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module in allowed


def test_a_spec_comes_back_from_json() -> None:
    config = tiny(ffn={"top_k": 3, "inner": {"name": "moe", "inner": "relu"}})
    assert TransformerConfig.model_validate_json(config.model_dump_json()) == config
    inner = config.ffn.options["inner"]
    assert (inner["name"], inner["n_experts"], inner["inner"]["name"]) == ("miniformer-moe:moe", 8, "relu")
    assert resolve("ffn", resolve("ffn", "moe")) == resolve("ffn", "moe")


def test_nested_options_reach_the_experts() -> None:
    moe = build(FeedForward, {"name": "moe", "n_experts": 3, "inner": {"name": "gelu", "bias": True}}, 6, 8)
    assert isinstance(moe, MixtureOfExperts)
    assert len(moe.experts) == 3
    for expert in moe.experts:
        assert isinstance(expert.up, nn.Linear)
        assert expert.up.bias is not None
        assert expert.up.out_features == 8


@pytest.mark.parametrize(("options", "message"), [
    ({"n_expert": 4}, "no 'n_expert' here; did you mean 'n_experts'"),
    ({"n_experts": 1}, "n_experts: input should be greater than or equal to 2; found 1"),
    ({"top_k": 0}, "top_k: input should be greater than or equal to 1; found 0"),
    ({"balance": -1}, "balance: input should be greater than or equal to 0; found -1"),
    ({"balance": math.inf}, "balance: input should be a finite number; found inf"),
    ({"inner": "rope"}, "there is no ffn named 'rope'"),
    ({"inner": {"name": "gelu", "bais": True}}, "ffn gelu.bais: there is no 'bais' here; did you mean 'bias'"),
    ({"top_k": 5, "n_experts": 4}, "top_k is 5 and n_experts is 4"),
])
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TransformerConfig(d_model=16, n_heads=2, ffn={"name": "moe", **options})


@pytest.mark.parametrize("top_k", [0, 5])
def test_the_class_itself_refuses_an_impossible_top_k(top_k: int) -> None:
    with pytest.raises(ValueError, match=f"top_k is {top_k} and n_experts is 4"):
        MixtureOfExperts(6, 8, n_experts=4, top_k=top_k)
    with pytest.raises(SpecError, match="top_k is 5 and n_experts is 4"):
        build(FeedForward, {"name": "moe", "n_experts": 4, "top_k": 5}, 6, 8)
