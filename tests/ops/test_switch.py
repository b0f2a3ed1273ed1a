"""Plain torch gives what the fast paths give, and the switch between them works where and when it says."""

import logging
import os
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from writing_models import BYTES, writing

import miniformer
from miniformer.config.model_config import TransformerConfig
from miniformer.inference.engine import Engine
from miniformer.model import head
from miniformer.model.seq2seq_transformer import Seq2SeqTransformer
from miniformer.model.transformer import Transformer
from miniformer.ops import attention_kernels as kernels
from miniformer.ops import linear as products
from miniformer.ops import switch
from miniformer.ops.linear import speed_up

available = pytest.mark.skipif(not products.AVAILABLE, reason="linear layers have no fast path on this processor")
SMALL = {"vocab_size": 11, "d_model": 8, "n_heads": 2, "n_layers": 2, "max_seq_len": 96}
B, T = 2, 80
"""More tokens than `sdpa` is the fastest for."""


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Fast paths are on, whatever the environment says, and small matrices are large enough for them."""
    for name in ("ENOUGH", "LARGE"):
        monkeypatch.setattr(products, name, 1)
    with miniformer.plain(False):
        yield


def transformer(**fields):
    torch.manual_seed(1)
    return Transformer(TransformerConfig(**SMALL, causal=True, **fields))


def seq2seq(**fields):
    torch.manual_seed(1)
    return Seq2SeqTransformer(TransformerConfig(**SMALL, **fields))


def loss_of(model):
    """The training loss of a batch, the same for every model of a class."""
    ids = torch.randint(11, (B, T), generator=torch.Generator().manual_seed(0))

    def readout(hidden, model_head):
        return model_head.cross_entropy(hidden, ids.roll(-1, dims=1)) / ids.numel()

    return model(ids, ids, readout=readout)[0] if isinstance(model, Seq2SeqTransformer) else model(ids, readout=readout)


def loss_and_gradients(model, dtype):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = loss_of(model)
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


@pytest.fixture
def fast_calls(monkeypatch):
    """The names of the fast paths that ran."""
    calls = set()

    def noting(owner, name):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **options: calls.add(name) or original(*args, **options))

    noting(kernels, "blockwise")
    noting(products, "_multiply")
    noting(head, "linear_cross_entropy")
    return calls


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("make", [transformer, seq2seq])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_and_gradients_agree_within_rounding(make, dtype, tolerance, checkpointing, fast_calls):
    model = make(activation_checkpointing=checkpointing)
    fast = loss_and_gradients(model, dtype)
    assert fast_calls >= {"blockwise", "linear_cross_entropy"}
    fast_calls.clear()
    with miniformer.plain():
        plain = loss_and_gradients(model, dtype)
    assert not fast_calls
    for one, other in zip(fast, plain, strict=True):
        assert float((one - other).norm()) <= tolerance * max(float(other.norm()), 1e-3)


@pytest.mark.parametrize("make", [transformer, seq2seq])
@pytest.mark.parametrize("fields", [{}, {"attention": "mla"}])
def test_decoding_agrees(make, fields, fast_calls):
    model = make(**fields).eval()
    prompt = torch.randint(11, (B, 70))
    fast = model.generate(prompt, 12, do_sample=False)
    assert fast_calls or not products.AVAILABLE
    fast_calls.clear()
    with miniformer.plain():
        assert torch.equal(model.generate(prompt, 12, do_sample=False), fast)
    assert not fast_calls


@available
def test_a_built_model_follows_the_switch_both_ways_and_nested(fast_calls):
    layer, x = nn.Linear(3, 6), torch.randn(4, 3)
    with miniformer.plain():
        speed_up(layer)  # built inside

    def takes_the_fast_path():
        fast_calls.clear()
        with torch.no_grad():
            torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
        return bool(fast_calls)

    assert takes_the_fast_path()
    with miniformer.plain():
        assert not takes_the_fast_path()
        with miniformer.plain(False):
            assert takes_the_fast_path()
            with miniformer.plain():
                assert not takes_the_fast_path()
            assert takes_the_fast_path()
        assert not takes_the_fast_path()
    assert takes_the_fast_path()


def test_the_switch_ends_with_an_error():
    with pytest.raises(KeyError), miniformer.plain():
        raise KeyError
    assert not switch.is_plain()


def test_the_switch_belongs_to_the_thread_that_set_it():
    set_here, looked_there, seen = threading.Event(), threading.Event(), []

    def switches():
        with miniformer.plain():
            set_here.set()
            looked_there.wait(10)
            seen.append(switch.is_plain())

    thread = threading.Thread(target=switches)
    thread.start()
    set_here.wait(10)
    assert not switch.is_plain()
    looked_there.set()
    thread.join(10)
    assert seen == [True]


def test_a_checkpointed_block_runs_again_as_it_ran_first(fast_calls):
    model = transformer(activation_checkpointing=True)
    with miniformer.plain():
        loss = loss_of(model)
    loss.backward()
    assert "blockwise" not in fast_calls


def test_blocks_that_were_compiled_are_not_called_as_graphs(monkeypatch):
    from miniformer.model.block import Block, compile_blocks

    graphs = []
    monkeypatch.setattr(Block, "compile", lambda self: setattr(
        self, "_compiled_call_impl", lambda *args: graphs.append(1) or self._call_impl(*args)))
    model, ids = transformer(), torch.zeros(1, 3, dtype=torch.long)
    compile_blocks(model)
    with miniformer.plain():
        model(ids)
    assert not graphs
    model(ids)
    assert len(graphs) == 2


def test_a_decoding_step_is_not_compiled():
    with miniformer.plain():
        feed = Engine(writing(), BYTES, compile=True)
        assert type(feed.start([feed.encode("ab", 3)])).__name__ == "Feed"
    assert type(feed.start([feed.encode("ab", 3)])).__name__ == "StaticFeed"


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True])
def test_a_graph_is_made_with_the_paths_that_the_switch_says(plain):
    torch._dynamo.reset()
    layer, operators = nn.Linear(3, 6), []
    speed_up(layer)

    def backend(graph, inputs):
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    with torch.no_grad(), miniformer.plain(plain):
        torch.compile(layer, backend=backend, fullgraph=True)(torch.randn(4, 3))
    assert any("miniformer" in operator for operator in operators) == (products.AVAILABLE and not plain)


@pytest.mark.parametrize(("value", "plain"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_the_environment_switches_a_whole_process(value, plain):
    environment = {name: text for name, text in os.environ.items() if name != "MINIFORMER_PLAIN"}
    code = ("import threading\nfrom miniformer.ops.switch import is_plain\nprint(is_plain())\n"
            "thread = threading.Thread(target=lambda: print(is_plain()))\nthread.start()\nthread.join()")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
                          env=environment if value is None else {**environment, "MINIFORMER_PLAIN": value})
    assert done.stdout.split() == [str(plain)] * 2


def test_importing_the_package_imports_no_torch(fresh_python):
    assert fresh_python("import sys\nimport miniformer\nminiformer.plain\nprint('torch' in sys.modules)") == "False"


def test_a_debug_line_says_once_which_path_ran(caplog):
    switch.log_path.cache_clear()
    model = transformer()
    with caplog.at_level(logging.DEBUG, logger="miniformer.ops.switch"):
        for _ in range(2):
            loss_of(model)
            with miniformer.plain():
                loss_of(model)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(set(lines))
    assert {"attention: blockwise", "attention: sdpa", "loss of a vocabulary: a part of the scores at a time",
            "loss of a vocabulary: all scores at once"} <= set(lines)
    assert "linear layers: F.linear (plain torch)" in lines


def test_names_that_a_torch_lacks_lead_to_plain_torch(monkeypatch):
    from miniformer.ops import torch_private

    layer = nn.Linear(2, 2)
    assert not torch_private.has_hooks(layer)
    monkeypatch.delattr(nn.Module, "_forward_hooks", raising=False)
    del layer.__dict__["_forward_hooks"]
    assert torch_private.has_hooks(layer)
    weights = torch.randn(3, 4, dtype=torch.float64).softmax(-1)
    grad = torch.randn(3, 4, dtype=torch.float64)
    expected = torch_private.softmax_gradient(grad, weights)
    monkeypatch.delattr(torch, "_softmax_backward_data")
    torch.testing.assert_close(torch_private.softmax_gradient(grad, weights), expected)
