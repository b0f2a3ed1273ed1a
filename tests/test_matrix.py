"""Every component works with every other, or the pair is refused with a sentence that names the two.

Components, directions and tasks come from the registry. CI runs a covering array, in which every pair occurs; MATRIX=full runs
the whole product.
"""

import itertools
import os
from functools import cache

import pytest
import torch
from covering_array import covering

from miniformer.config.matrix import DIRECTIONS, names, refusal, refused_pairs
from miniformer.config.model_config import TransformerConfig
from miniformer.config.slots import LAYER_SLOTS
from miniformer.data.packing import PackedRows
from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel import Context, Layout, StateError, build, current_registry
from miniformer.kernel.task import Task
from miniformer.model.assemblies import assembly_for
from miniformer.model.seq2seq_transformer import Seq2SeqTransformer
from miniformer.model.transformer import Transformer

SIZES = {"vocab_size": 40, "d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 24, "max_seq_len": 24}
KINDS = {**{kind: names(kind) for kind in LAYER_SLOTS}, "direction": list(DIRECTIONS)}


FULL = os.environ.get("MATRIX") == "full"


def possible(row):
    """Whether the parts of a row go together, in its direction or in some."""
    parts = {kind: name for kind, name in row.items() if kind in LAYER_SLOTS}
    return any(not refusal(direction, **parts) for direction in DIRECTIONS if row.get("direction", direction) == direction)


def rows(choices):
    if FULL:
        return [row for row in itertools.product(*choices.values()) if possible(dict(zip(choices, row, strict=True)))]
    return covering(choices, possible)


def config_of(attention, position, ffn, norm, direction, **fields):
    return TransformerConfig(**{**SIZES, "attention": attention, "position": position, "ffn": ffn, "norm": norm,
                                "causal": DIRECTIONS[direction], **fields})


ROWS = rows(KINDS)


@pytest.fixture(params=ROWS, ids="-".join)
def model(request):
    return Transformer(config_of(*request.param)).double().eval()


def test_every_pair_that_can_be_occurs():
    """A pair is refused by itself, or there is a row with it: what else is in a refused row is not lost."""
    refused = {frozenset(pair.split(" as ")[0].split(" with ")) for pair, _ in refused_pairs()}
    for (one, ones), (other, others) in itertools.combinations(KINDS.items(), 2):
        for a, b in itertools.product(ones, others):
            pair = frozenset((f"{one} {a}", f"{other} {b}"))
            occurs = any((row[one], row[other]) == (a, b) for row in (dict(zip(KINDS, row, strict=True)) for row in ROWS))
            assert occurs != (pair in refused), pair


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_its_parameters_are_counted_before_it_is_built(row):
    config = config_of(*row)
    forms = [Transformer] if config.causal else [Transformer, Seq2SeqTransformer]
    for form in forms:
        assert config.parameter_count(form.assembly) == sum(p.numel() for p in form(config).parameters())


def run(model, ids, layout=None):
    with torch.no_grad():
        return model(ids, None if layout is None else Context(layout))


def test_it_does_what_its_components_promise(model):
    ids = torch.randint(0, 40, (2, 9))
    alone = run(model, ids[:, :6])
    scale = alone.abs().max()

    padded = torch.cat([ids[:, :6], torch.zeros(2, 3, dtype=torch.long)], dim=1)
    right = run(model, padded, Layout.from_lengths([6, 6], 9))[:, :6]
    left = run(model, padded.roll(3, dims=1), Layout.from_lengths([6, 6], 9, side="left"))[:, 3:]
    documents = torch.tensor([[1] * 6 + [2] * 3] * 2)
    packed = run(model, ids, Layout.from_documents(documents))
    for name, found in (("right padding", right), ("left padding", left), ("packing", packed[:, :6])):
        assert (found - alone).abs().max() < 1e-9 * scale, name
    assert (packed[:, 6:] - run(model, ids[:, 6:])).abs().max() < 1e-9 * scale

    if model.config.causal:
        assert (run(model, ids)[:, :6] - alone).abs().max() < 1e-9 * scale
        try:
            state = model.init_state(2, 9)
        except StateError:
            return
        with torch.no_grad():
            steps = torch.cat([model(part, state=state) for part in ids.split([4, 1, 3, 1], dim=1)], dim=1)
        assert (steps - run(model, ids)).abs().max() < 1e-9 * scale
    else:
        changed = ids.clone()
        changed[:, -1] = (changed[:, -1] + 1) % 40
        assert (run(model, changed)[:, 0] != run(model, ids)[:, 0]).any(), "an encoder sees what comes later"


@pytest.mark.parametrize("row", [row for row in ROWS if not DIRECTIONS[row[-1]]], ids="-".join)
@torch.no_grad()
def test_as_encoder_and_decoder_it_does_what_its_components_promise(row):
    model = Seq2SeqTransformer(config_of(*row)).double().eval()
    source, target = torch.randint(0, 40, (2, 7)), torch.randint(0, 40, (2, 9))
    alone = model(source[:, :5], target)[0]
    scale = alone.abs().max()
    changed = target.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 40
    for side, columns in (("right", source), ("left", source.roll(2, dims=1))):
        padded, _, _ = model(columns, target, source_layout=Layout.from_lengths([5, 5], 7, side=side))
        assert (padded - alone).abs().max() < 1e-9 * scale, side
    assert (model(source[:, :5], changed)[0] - alone)[:, :6].abs().max() < 1e-9 * scale
    assert (model(source, target)[0] != alone).any(), "the decoder looks at its source"
    try:
        state = model.init_state(model.encode(source[:, :5]), 9)
    except StateError:
        return
    steps = torch.cat([model(state.memory, part, state=state)[0] for part in target.split([4, 1, 3, 1], dim=1)], dim=1)
    assert (steps - alone).abs().max() < 1e-9 * scale


def test_it_learns_and_is_saved(model, tmp_path):
    model.train()
    ids = torch.randint(0, 40, (3, 8))
    model(ids).square().mean().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []
    model.float().save_pretrained(tmp_path / "model")
    loaded = Transformer.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    assert torch.equal(run(loaded, ids), run(model.eval(), ids))


@cache
def examples_of(task_name):
    """The task fitted to a few of its embedded records, their examples, and the tokenizer."""
    task = build(Task, task_name)
    records = [record for _, record in itertools.islice(task.stdlib(), 400)][::40]
    tokenizer = Tokenizer.train((text for record in records for text in task.texts(record)), 300)
    task = build(Task, {"name": task_name, **task.fit(records), **task.fit_tokenizer(tokenizer)})
    found = [example for record in records for example in task.examples(record, tokenizer, None if task.packs else 24)]
    return task, list(PackedRows(found, 24))[:4] if task.packs else found[:16], tokenizer


def direction_of(task):
    """The direction of the model that a task trains."""
    causal = current_registry().load("task", task).causal
    return next(direction for direction, value in DIRECTIONS.items() if value == causal)


WITH_TASK = {**{kind: KINDS[kind] for kind in LAYER_SLOTS}, "task": names("task")}


@pytest.mark.parametrize("row", [row for row in rows(WITH_TASK) if not refusal(
    direction_of(row[-1]), **dict(zip(LAYER_SLOTS, row, strict=False)))], ids="-".join)
def test_a_task_trains_it(row):
    *parts, name = row
    task, examples, tokenizer = examples_of(name)
    direction = direction_of(name)
    fields = {"vocab_size": tokenizer.vocab_size, "head": task.head}
    if task.n_outputs(tokenizer.vocab_size) != tokenizer.vocab_size:
        fields["output_dim"] = task.n_outputs(tokenizer.vocab_size)
    model = assembly_for(task.has_source)(config_of(*parts, direction, **fields))
    batch = task.collate(examples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        term = model.read(batch, readout=lambda hidden, head: task.loss(hidden, head, batch))
        (term.sum / term.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(term.sum.detach() / term.weight))
    assert losses[-1] < losses[0]


def test_every_refusal_is_a_sentence_that_names_the_two_parts():
    for pair, why in refused_pairs():
        one, other = (part.split()[1] for part in pair.split(" with "))
        assert repr(one) in why and (repr(other) in why or "causal" in why), why


def test_the_matrix_is_printed(cli):
    text = cli("list-components", "--matrix").stdout
    assert text.splitlines()[0].split() == ["attention", *names("position")]
    for attention in names("attention"):
        assert f"\n{attention} " in text


def test_shorthands_are_covered_by_what_they_stand_for():
    for entry in current_registry().entries("attention"):
        cls = current_registry().load("attention", entry.name)
        if cls.shorthand_for:
            config = TransformerConfig(**SIZES, attention=entry.name)
            assert config.attention.name in KINDS["attention"]
