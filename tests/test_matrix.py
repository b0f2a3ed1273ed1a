"""Every component works with every other, or the pair is refused with a sentence that names the two.

Components, directions and tasks come from the registry. CI runs a covering array, in which every pair occurs; MATRIX=full runs
the whole product.
"""

import itertools
import os
from collections import OrderedDict
from functools import cache

import pytest
import torch
from allpairspy import AllPairs

from miniformer.config.matrix import DIRECTIONS, names, refusal, refused_pairs
from miniformer.config.model_config import TransformerConfig
from miniformer.data.packing import PackedRows
from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel import Context, Layout, SpecError, StateError, build, current_registry
from miniformer.kernel.task import Task
from miniformer.model.assemblies import assembly_for
from miniformer.model.seq2seq_transformer import Seq2SeqTransformer
from miniformer.model.transformer import Transformer

SIZES = {"vocab_size": 40, "d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 24, "max_seq_len": 24}
KINDS = OrderedDict((kind, names(kind)) for kind in ("attention", "position", "ffn", "norm"))
KINDS["direction"] = list(DIRECTIONS)
TASKS = names("task")


def rows():
    if os.environ.get("MATRIX") == "full":
        return list(itertools.product(*KINDS.values()))
    return [tuple(row) for row in AllPairs(KINDS)]


def config_of(attention, position, ffn, norm, direction, **fields):
    return TransformerConfig(**{**SIZES, "attention": attention, "position": position, "ffn": ffn, "norm": norm,
                                "causal": DIRECTIONS[direction], **fields})


ROWS, REFUSED = [], []
for row in rows():
    try:
        config_of(*row)
        ROWS.append(row)
    except SpecError as error:
        REFUSED.append((row, str(error)))


@pytest.fixture(params=ROWS, ids="-".join)
def model(request):
    return Transformer(config_of(*request.param)).double().eval()


def test_a_refusal_is_a_sentence_that_names_the_parts():
    assert [(row, why) for row, why in REFUSED if not any(repr(name) in why for name in row)] == []


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


def task_rows():
    values = [*list(KINDS.values())[:4], TASKS]
    found = itertools.product(*values) if os.environ.get("MATRIX") == "full" else AllPairs(values)
    return [tuple(row) for row in found if not refused(row)]


def refused(row):
    """Whether the model that a row's task wants cannot be built; the refusals themselves are tested above."""
    *parts, name = row
    causal = current_registry().load("task", name).causal
    return refusal(next(d for d, c in DIRECTIONS.items() if c == causal), **dict(zip(KINDS, parts, strict=False)))


@pytest.mark.parametrize("row", task_rows(), ids="-".join)
def test_a_task_trains_it(row):
    *parts, name = row
    task, examples, tokenizer = examples_of(name)
    direction = next(d for d, causal in DIRECTIONS.items() if causal == task.causal)
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
        one, other = pair.split(" with ")[0].split()[1], pair.split(" with ")[1].split()[1]
        assert repr(one) in why or repr(other) in why


def test_the_matrix_is_printed(cli):
    text = cli("list-components", "--matrix").stdout
    assert text.splitlines()[0].split() == ["attention", *names("position")]
    for attention in names("attention"):
        assert f"\n{attention} " in text


def test_shorthands_are_covered_by_what_they_stand_for():
    for entry in current_registry().entries("attention"):
        cls = current_registry().load("attention", entry.name)
        if cls.stands_for:
            config = TransformerConfig(**SIZES, attention=entry.name)
            assert config.attention.name in KINDS["attention"]
