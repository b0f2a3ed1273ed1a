"""One division per optimizer step; extensions and auxiliary losses; a loss that is not finite ends the run; what a data
module decides."""

import json
import warnings
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from miniformer.kernel import (
    Entry,
    Example,
    FeedForward,
    LossTerm,
    Registry,
    RunError,
    SpecError,
    discover,
    hookimpl,
    use_registry,
)
from miniformer.train.datamodule import MiniFormerDataModule
from miniformer.train.module import MiniFormerLitModule
from miniformer.train.specs import with_data_decisions
from miniformer.train.train_config import TrainConfig

MODEL = {"vocab_size": 30, "d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 16}


class Recording(MiniFormerLitModule):
    """Notes the gradients of each optimizer step as they are when they would be clipped."""

    def __init__(self, config):
        super().__init__(config)
        self.gradients = []

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.gradients.append([p.grad.clone() for p in self.model.parameters()])


def fit(module, batches, **options):
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, precision="64-true", logger=False,
                         enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **options)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return module


def lm_config(**fields):
    return TrainConfig(model_config={**MODEL, **fields.pop("model", {})}, lr=1e-15, **fields)


def row(documents):
    """A packed row of 12 columns with documents of the given lengths and padding after them."""
    numbers = [n + 1 for n, length in enumerate(documents) for _ in range(length)]
    numbers += [0] * (12 - len(numbers))
    tokens = torch.randint(0, 30, (12,))
    last = [i == 11 or numbers[i] != numbers[i + 1] or numbers[i] == 0 for i in range(12)]
    following = torch.tensor([-1 if last[i] else int(tokens[i + 1]) for i in range(12)])
    return Example(tokens, documents=torch.tensor(numbers), following=following)


def labelled(length):
    return Example(torch.randint(0, 30, (length,)).tolist(), target=length % 3)


def lm():
    return lm_config(), [row([12]), row([5, 3]), row([2]), row([1, 1, 1]), row([4, 8])]


def classification():
    config = TrainConfig(task={"name": "classification", "labels": ["a", "b", "c"]}, lr=1e-15,
                         model_config={**MODEL, "output_dim": 3})
    return config, [labelled(length) for length in (3, 9, 2, 5, 7)]


def seq2seq():
    config = TrainConfig(task="seq2seq", lr=1e-15, model_config=MODEL)
    return config, [Example(torch.randint(0, 30, (n + 2,)).tolist(), source=torch.randint(0, 30, (9 - n,)).tolist())
                    for n in (3, 8, 2, 5, 7)]


@pytest.mark.parametrize("case", [lm, classification, seq2seq])
@pytest.mark.parametrize("cuts", [(1, 4), (3, 4), (2, 3)])
def test_ragged_accumulated_batches_have_the_gradient_of_the_one_big_batch(case, cuts):
    config, examples = case()
    parts = [examples[a:b] for a, b in zip((0, *cuts), (*cuts, len(examples)), strict=True)]
    torch.manual_seed(1)
    whole = Recording(config)
    torch.manual_seed(1)
    micro = Recording(config)
    fit(whole, [whole.task.collate(examples)])
    fit(micro, [micro.task.collate(part) for part in parts], accumulate_grad_batches=3)
    assert len(whole.gradients) == len(micro.gradients) == 1
    for one, other in zip(whole.gradients[0], micro.gradients[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_tokens_of_sources_count_in_the_rate():
    config, examples = seq2seq()
    module = Recording(config)
    fit(module, [module.task.collate(examples)])
    assert module.tokens == sum(len(e.tokens) - 1 + len(e.source) for e in examples)


def test_the_gradient_is_that_of_the_mean_over_predicted_tokens():
    config, examples = lm()
    torch.manual_seed(1)
    module = fit(Recording(config), [])
    torch.manual_seed(1)
    module = Recording(config)
    batch = module.task.collate(examples)
    fit(module, [batch])
    torch.manual_seed(1)
    naive = Recording(config).double()
    term = naive._loss(batch)
    (term.sum / term.weight).backward()
    for got, parameter in zip(module.gradients[0], naive.model.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, rtol=1e-9, atol=1e-12)


def test_an_incomplete_last_step_is_divided_by_what_it_holds():
    config, examples = lm()
    torch.manual_seed(1)
    module = Recording(config)
    fit(module, [module.task.collate([e]) for e in examples], accumulate_grad_batches=4)
    torch.manual_seed(1)
    alone = Recording(config)
    fit(alone, [alone.task.collate([e]) for e in examples[4:]])
    assert len(module.gradients) == 2
    for got, wanted in zip(module.gradients[1], alone.gradients[0], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-9)  # the first step moved the weights by 1e-15


def test_an_optimizer_may_compute_the_loss_more_than_once_a_step():
    class Twice(Recording):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.model.parameters(), lr=1e-15, max_iter=2, tolerance_change=0, tolerance_grad=0)

    config, examples = lm()
    torch.manual_seed(0)
    module = Twice(config)
    first, second, *_ = fit(module, [module.task.collate(examples)]).gradients
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)  # and not the sum of both


def test_a_loss_that_is_not_finite_ends_the_run():
    config, examples = lm()
    module = Recording(config)
    with torch.no_grad():
        module.model.embedding.weight[3:] = float("nan")
    with pytest.raises(RunError, match=r"the loss is nan at step 0;.*learning rate"):
        fit(module, [module.task.collate(examples)])


# --- auxiliary losses and extensions

class Taxed(FeedForward):
    """A feed-forward that records a loss of 0.5 in training."""

    def __init__(self, d_model, d_ff):
        super().__init__(d_model, d_ff)
        self.weight = torch.nn.Parameter(torch.ones(d_model))

    def forward(self, x, context):
        context.record("tax", 0.5 * self.weight.mean(), loss=True)
        return x * self.weight


class Doubling:
    """Doubles the loss and the batch's first token; notes what it was asked."""

    def __init__(self, *, factor: float = 2.0):
        self.factor, self.asked = factor, []

    @hookimpl
    def model_assembled(self, model):
        self.asked.append(type(model).__name__)

    @hookimpl
    def optimizer_groups(self, groups):
        groups[0]["lr"] = 0.125

    @hookimpl(wrapper=True)
    def loss(self, loss):
        term = yield
        return LossTerm(term.sum * self.factor, term.weight)


@pytest.fixture
def registry():
    extra = [Entry("ffn", "taxed", f"{__name__}:Taxed", "acme", "1"),
             Entry("extension", "doubling", f"{__name__}:Doubling", "acme", "1")]
    with use_registry(Registry([*discover(), *extra])) as it:
        it._classes.update({("ffn", "acme:taxed"): Taxed, ("extension", "acme:doubling"): Doubling})
        yield it


def loss_of(config, examples):
    torch.manual_seed(1)
    module = MiniFormerLitModule(config).double()
    return module, module._loss(module.task.collate(examples))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_recorded_loss_counts_as_much_as_the_batch_weighs(registry, recompute):
    _, examples = lm()
    plain = {"ffn": "taxed", "activation_checkpointing": recompute}
    module, term = loss_of(lm_config(model=plain), examples)
    module.eval()
    task_only = module.task.loss
    bare = module.model(module.task.collate(examples).inputs, None, readout=lambda h, head: 0)
    assert bare == 0
    batch = module.task.collate(examples)
    from miniformer.kernel import Context
    alone = module.model(batch.inputs, Context(batch.layout), readout=lambda h, head: task_only(h, head, batch))
    torch.testing.assert_close(term.sum, alone.sum + 2 * 0.5 * term.weight)  # two layers, 0.5 each


def test_an_extension_acts_where_it_is_named_and_only_there(registry):
    _, examples = lm()
    _, plain = loss_of(lm_config(), examples)
    module, doubled = loss_of(lm_config(extensions={"doubling": {"factor": 3}}), examples)
    torch.testing.assert_close(doubled.sum, 3 * plain.sum)
    assert module.hooks.get_plugin("acme:doubling").asked == ["Transformer"]


def test_an_extension_changes_the_parameter_groups(registry):
    _, examples = lm()
    module = Recording(lm_config(extensions={"doubling": None}))
    fit(module, [module.task.collate(examples)])
    assert [g["initial_lr"] for g in module.optimizers().param_groups] == [0.125, 1e-15]


def test_an_unknown_option_of_an_extension_is_refused(registry):
    with pytest.raises(SpecError, match=r"factr.*did you mean 'factor'"):
        MiniFormerLitModule(lm_config(extensions={"doubling": {"factr": 3}}))


# --- the pair of a module and a data module that are made of one config

SMALL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 16}


@pytest.fixture
def valued(tmp_path):
    """A JSONL file of texts and numbers far from 0."""
    path = tmp_path / "valued.jsonl"
    path.write_text("".join(json.dumps({"input": "x" * n, "value": 1000.0 + 100 * n}) + "\n" for n in range(1, 31)))
    return path


@pytest.fixture
def pair_of(tmp_path):
    """A function that makes both of one config."""
    def make(path, task, cls=MiniFormerLitModule, **fields):
        config = TrainConfig(**{"train_path": str(path), "task": task, "batch_size": 4, "work_dir": str(tmp_path),
                                "tokenizer_vocab_size": 300, "model_config": SMALL, "cache": False, **fields})
        return cls(config), MiniFormerDataModule(config)

    return make


def by_hand(tmp_path):
    """The trainer of someone who has one of their own."""
    return pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, default_root_dir=tmp_path, max_steps=2, val_check_interval=2)


@pytest.mark.parametrize(("task", "files", "measured"), [
    ("language_modeling", "texts", {"loss", "perplexity", "bits_per_byte"}),
    ("masked-lm", "texts", {"loss", "perplexity", "accuracy"}),
    ("classification", "labelled", {"loss", "accuracy", "f1"}), ("regression", "valued", {"loss", "mse", "mae", "r2"}),
    ("seq2seq", "pairs", {"loss", "perplexity", "accuracy", "exact_match"})])
def test_a_module_takes_from_its_data_module_what_the_data_decide(tmp_path, request, pair_of, task, files, measured):
    module, data = pair_of(request.getfixturevalue(files), task)
    trainer = by_hand(tmp_path)
    trainer.fit(module, datamodule=data)
    assert set(trainer.callback_metrics) >= {f"val_{name}" for name in measured}
    assert module.model.config.n_outputs == data.data.task.n_outputs(module.model.config.vocab_size)
    assert module.task is data.data.task and module.tokenizer is data.data.tokenizer


def test_a_number_is_measured_in_its_own_unit(tmp_path, valued, pair_of):
    module, data = pair_of(valued, "regression")
    [values] = by_hand(tmp_path).validate(module, datamodule=data, verbose=False)
    held_out = torch.tensor([record.value for record in data.data.val.records])
    off = float((held_out - data.data.task.mean).abs().mean())  # its head starts at 0
    assert values["val_mae"] == pytest.approx(off, rel=1e-4)


def test_without_a_tokenizer_or_a_data_module_the_loss_is_measured(tmp_path):
    config, examples = classification()
    module = MiniFormerLitModule(config)
    loader = DataLoader([module.task.collate(examples)], batch_size=None)
    [values] = by_hand(tmp_path).validate(module, loader, verbose=False)
    assert set(values) == {"val_loss"}


def test_a_task_that_learnt_nothing_is_told_how_it_is_fitted(labelled, pair_of):
    module, data = pair_of(labelled, "classification")
    module.tokenizer = data.data.tokenizer
    with pytest.raises(SpecError, match=r"'classification' cannot be measured before.*with_data_decisions\(config, data\)"):
        module.measures()


def test_weights_that_fit_are_kept_where_the_data_decide_another_size(tmp_path, labelled, pair_of):
    module, data = pair_of(labelled, "classification")
    before = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    by_hand(tmp_path).validate(module, datamodule=data, verbose=False)
    after = module.model.state_dict()
    assert {name for name in after if after[name].shape != before[name].shape} == {"head.out.weight", "head.out.bias"}
    assert all(torch.equal(after[name], before[name]) for name in after if not name.startswith("head."))


@pytest.mark.parametrize(("fields", "text"), [
    ({"task": {"name": "classification", "labels": ["fruit", "tool", "star"]}},
     r"task.labels is \['fruit', 'tool', 'star'\] in the module, and \['fruit', 'tool'\] in the data module; "
     r".*with_data_decisions"),
    ({"task": "language-modeling"}, r"the module's task is 'language-modeling', and the data module's 'classification'"),
    ({"model_config": {**SMALL, "output_dim": 7}}, r"output_dim is 7, and task 'classification' has 2 outputs"),
    ({"model_config": {**SMALL, "vocab_size": 40}}, r"vocab_size is 40, and the tokenizer has \d+ tokens")])
def test_a_module_of_something_else_than_the_data_is_refused(tmp_path, labelled, pair_of, fields, text):
    _, data = pair_of(labelled, "classification")
    with pytest.raises(SpecError, match=text):
        by_hand(tmp_path).fit(MiniFormerLitModule(data.config.with_fields(**fields)), datamodule=data)


@pytest.mark.parametrize(("warmup_steps", "first"), [(None, 1 / 11), (0, 1.0), (3, 1 / 4)])
def test_a_run_warms_up_for_a_twentieth_of_its_steps_unless_told_otherwise(monkeypatch, warmup_steps, first):
    monkeypatch.setattr(MiniFormerLitModule, "trainer", SimpleNamespace(estimated_stepping_batches=200))
    config = TrainConfig(model_config=MODEL, lr=0.5, warmup_steps=warmup_steps)
    optimizer = MiniFormerLitModule(config).configure_optimizers()["optimizer"]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5 * first] * 2)


def test_a_resolved_config_decides_the_same(tmp_path, labelled, pair_of):
    _, data = pair_of(labelled, "classification")
    module = MiniFormerLitModule(with_data_decisions(data.config, data.data))
    built = module.model
    by_hand(tmp_path).fit(module, datamodule=data)
    assert module.model is built


@pytest.mark.parametrize("only_weights", [False, True])
def test_a_checkpoint_is_loaded_by_itself(tmp_path, labelled, pair_of, only_weights):
    module, data = pair_of(labelled, "classification")
    trainer = by_hand(tmp_path)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "mine.ckpt", weights_only=only_weights)
    again = MiniFormerLitModule.load_from_checkpoint(tmp_path / "mine.ckpt")
    assert again.task.labels == ("fruit", "tool")
    weights = again.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in module.state_dict().items())
    measured = [by_hand(tmp_path).validate(one, datamodule=data, verbose=False) for one in (module, again)]
    assert measured[0] == measured[1]


def test_a_trainer_of_ones_own_has_nothing_to_say_about_the_module(tmp_path, texts, pair_of, caplog):
    module, data = pair_of(texts, "language-modeling")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        by_hand(tmp_path).fit(module, datamodule=data)
    assert not [one for one in said if "transfer_batch_to_device" in str(one.message)]
    assert "transfer_batch_to_device" not in caplog.text
