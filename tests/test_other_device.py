"""On another device than the CPU models write the same texts and train by the same gradients; see `fake_device`."""

import pytest
import torch
from depth import every
from fake_device import device, move
from plain_step import plain_step
from writing_models import BYTES, writing

from miniformer.bench.contestant import MadeUp, Setting, batches, completed
from miniformer.decoding.beam_search import Beams
from miniformer.decoding.sampling import Sampling
from miniformer.inference.engine import Engine
from miniformer.kernel import current_registry
from miniformer.tasks import metrics
from miniformer.train.module import MiniFormerLitModule
from miniformer.train.train_config import TrainConfig

OURS = {kind: [entry.name for entry in current_registry().entries(kind) if entry.distribution == "miniformer"]
        for kind in ("attention", "position", "ffn", "norm", "task")}
PROMPTS = ["some", "naïve text", "more words here"]
GREEDY, DRAWN = Sampling(0.0), Sampling(1.0, top_k=4, top_p=0.9, repetition_penalty=1.1)


def written(model):
    """Texts written greedily, drawn and searched for, and by steps with static states, if there can be some."""
    engine = Engine(model, BYTES, batch_size=2)
    found = [[answer.tokens for answer in engine.generate(PROMPTS, sampling, max_new_tokens=6, seed=1)]
             for sampling in (GREEDY, DRAWN)]
    found += [[answer.tokens for answer in answers] for answers in engine.search(PROMPTS[:2], Beams(2), max_new_tokens=4)]
    engine._step = plain_step
    return [*found, [answer.tokens for answer in engine.generate(PROMPTS, GREEDY, max_new_tokens=6)]]


@pytest.mark.parametrize(("kind", "name", "has_source"), [
    *((kind, name, False) for kind in ("attention", "position", "ffn", "norm") for name in OURS[kind]),
    *every(3, [(kind, name, True) for kind in ("attention", "position") for name in OURS[kind]])])
def test_texts_are_the_same(kind, name, has_source):
    model = writing(has_source, **{kind: name}).float()
    expected = written(model)
    with device(), torch.inference_mode():  # in which writing would make no view of what is moved outside of it
        assert written(move(model)) == expected


@pytest.mark.usefixtures("few_sources")
@pytest.mark.parametrize("name", OURS["task"])
def test_losses_gradients_and_metrics_are_the_same(name, monkeypatch):
    monkeypatch.setattr(metrics, "NO_FLOAT64", {"meta"})
    model = {"d_model": 16, "n_heads": 2, "n_layers": 1, "vocab_size": 64}
    setting = Setting(batch_size=3, length=12, precision=32, decode_precision=32)
    run = completed(TrainConfig(task=name, model_config=model), setting)
    batch = batches(run, setting)[0]

    def step(module, batch):
        module.zero_grad()
        term = module._loss(batch)
        (term.sum / term.weight).backward()
        gradients = {name: parameter.grad.cpu() for name, parameter in module.named_parameters()}
        module._start_measuring()
        module._measure(batch)
        return float(term.sum.detach()), gradients, {name: float(metric.compute()) for name, metric in module.held_out.items()}

    torch.manual_seed(0)
    module = MiniFormerLitModule(run, MadeUp(64, 12))
    expected = step(module, batch)
    with device() as there:
        move(module)._device = there
        for one, other in zip(step(module, module.transfer_batch_to_device(batch, there, 0)), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_device_is_one_that_a_tensor_of_the_cpu_cannot_meet():
    with device() as there:
        with pytest.raises(RuntimeError, match="same device"):
            torch.ones(2, device=there) + torch.ones(2)
        with pytest.raises(RuntimeError, match="same device"):
            torch.nn.functional.linear(torch.ones(2, device=there), torch.ones(2, 2))
        with pytest.raises(TypeError, match="float64"):
            torch.ones(2, device=there).double()
        assert (torch.ones(2, device=there) + torch.tensor(1)).tolist() == [2, 2]
