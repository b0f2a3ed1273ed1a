"""Masked language modelling: what is hidden, that it is a function of the row and its draw, and what is measured."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from small_tokenizers import with_gaps
from task_models import loss_of, measured, model_for, predictions_of

from miniformer.data.packing import PackedRows
from miniformer.data.prepare import prepare_data
from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel import DataError, resolve
from miniformer.kernel.task import Example, Split
from miniformer.tasks.language_modeling import TextRecord
from miniformer.tasks.masked_lm import MaskedLanguageModeling

TOKENIZER = Tokenizer.train(["the cat sat on the mat"] * 9, 270)
TASK = MaskedLanguageModeling(**MaskedLanguageModeling().fit_tokenizer(TOKENIZER))
MODEL = model_for(TASK, TOKENIZER.vocab_size)
V = TOKENIZER.vocab_size
TEXTS = ["the cat sat on the mat", "a mat", "on the cat " * 9]


def examples(texts=TEXTS):
    return [TASK.encode(TextRecord(text=text), TOKENIZER) for text in texts]


def rows(texts=TEXTS, length=64, draw=0):
    packed = PackedRows(examples(texts), length)
    return [replace(packed[i], draw=draw) for i in range(len(packed))]


def test_ids_that_no_token_has_are_never_shown():
    tokenizer = Tokenizer.of(with_gaps())
    task = MaskedLanguageModeling(**MaskedLanguageModeling(mask_rate=1.0).fit_tokenizer(tokenizer), mask_rate=1.0)
    row = PackedRows([task.encode(TextRecord(text="abc" * 400), tokenizer)], 1200)[0]
    batch = task.collate([row])
    assert {*batch.inputs[0].tolist()} == {2, 6, 20, 30}, "the mask and the letters"


def long_row(draw=0, length=20_000):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, V, (length,), generator=generator)
    return replace(PackedRows([Example(tokens.tolist())], length)[0], draw=draw)


def test_the_tokenizer_says_what_hides_a_token():
    assert TASK.fit_tokenizer(TOKENIZER) == {"mask_id": 3, "special": [0, 1, 2, 3, 4], "n_tokens": V}


def test_a_tokenizer_without_mask_token_is_told(tmp_path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    tokenizer = Tokenizer.of(Backend(models.WordLevel({"a": 0, "b": 1})))
    with pytest.raises(DataError, match="tokenizer: the tokenizer has no mask token"):
        prepare_data(resolve("task", "masked-lm"), str(path), tokenizer=tokenizer)


def test_of_the_hidden_tokens_eight_in_ten_are_masked_one_is_another_and_one_stays():
    row = long_row()
    batch = TASK.collate([row])
    chosen = batch.targets["chosen"][0]
    assert int(chosen.sum()) == round(0.15 * len(chosen))
    shown, right = batch.inputs[0, chosen], row.tokens[chosen]
    kinds = Counter("mask" if s == 3 else "kept" if s == r else "other" for s, r in zip(shown.tolist(), right.tolist()))
    for kind, part in (("mask", 0.8), ("other", 0.1), ("kept", 0.1)):
        assert kinds[kind] / len(right) == pytest.approx(part, abs=0.03)
    assert len(set(shown[(shown != right) & (shown != 3)].tolist())) > 100, "any token may stand there"
    assert int(shown[shown != 3].min()) >= 5, "but no special one"


def test_all_else_is_shown_as_it_is():
    row = long_row()
    batch = TASK.collate([row])
    assert torch.equal(batch.inputs[0][~batch.targets["chosen"][0]], row.tokens[~batch.targets["chosen"][0]])
    assert torch.equal(batch.targets["token"][0], row.tokens)


def test_special_tokens_and_padding_are_never_hidden():
    always = MaskedLanguageModeling(mask_rate=1.0, **TASK.fit_tokenizer(TOKENIZER))
    batch = always.collate(rows())
    assert torch.equal(batch.targets["chosen"], (batch.targets["token"] >= 5) & batch.layout.real)


def test_of_a_short_row_one_token_is_hidden_and_of_an_empty_one_none():
    assert int(TASK.collate(rows(["a"])).targets["chosen"].sum()) == 1
    assert int(TASK.collate(rows([""])).targets["chosen"].sum()) == 0
    assert int(loss_of(MODEL, TASK, TASK.collate(rows([""]))).weight) == 0


def test_a_draw_decides_what_is_hidden():
    one, same, other = (TASK.collate([long_row(draw, 200)]).targets["chosen"] for draw in (7, 7, 8))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_rows_of_one_draw_are_hidden_each_in_its_own_way():
    chosen = TASK.collate(rows(["the cat sat on the mat" * 9, "mat the on sat cat the" * 9], 64)[:2]).targets["chosen"]
    assert not torch.equal(chosen[0], chosen[1])


def test_padding_and_neighbours_have_no_say():
    wide, alone = TASK.collate(rows(TEXTS[:1], 64)), TASK.collate(rows(TEXTS[:1], len(examples()[0].tokens)))
    assert torch.equal(wide.targets["chosen"][:, :alone.inputs.shape[1]], alone.targets["chosen"])
    torch.testing.assert_close(loss_of(MODEL, TASK, wide).sum, loss_of(MODEL, TASK, alone).sum, rtol=0, atol=1e-10)


def naive():
    """(loss in nats, right) of each hidden token, from the logits at every place."""
    batch = TASK.collate(rows())
    with torch.no_grad():
        from miniformer.kernel import Context
        logits = MODEL(batch.inputs, Context(batch.layout))
    return [[(float(-logits[b, t].log_softmax(dim=-1)[right[t]]), int(logits[b, t].argmax()) == right[t])
             for t in range(len(right)) if batch.targets["chosen"][b, t]]
            for b, right in enumerate(batch.targets["token"].tolist())]


def test_the_loss_is_the_cross_entropy_of_what_is_hidden():
    term, expected = loss_of(MODEL, TASK, TASK.collate(rows())), [one for row in naive() for one in row]
    assert float(term.sum) == pytest.approx(sum(nats for nats, _ in expected), abs=1e-9)
    assert int(term.weight) == len(expected)


def test_metrics_are_over_what_is_hidden():
    expected = [one for row in naive() for one in row]
    found = measured(MODEL, TASK, TOKENIZER, [TASK.collate([row]) for row in rows()])
    assert found["perplexity"] == pytest.approx(math.exp(sum(nats for nats, _ in expected) / len(expected)))
    assert found["accuracy"] == pytest.approx(sum(right for _, right in expected) / len(expected))


def test_a_prediction_counts_what_is_hidden():
    expected = [{"nats": pytest.approx(sum(n for n, _ in row)), "tokens": len(row), "right": sum(r for _, r in row)}
                for row in naive()]
    assert predictions_of(MODEL, TASK, TASK.collate(rows())) == expected


def test_the_unigram_baseline_is_that_of_counted_tokens():
    split = [Split([TextRecord(text=t) for t in texts], examples(texts)) for texts in (["the cat", "the mat"], ["the a cat"])]
    known, wanted = (Counter(i for e in s.examples for i in e.tokens if i >= 5) for s in split)
    total = sum(known.values()) + V - 5
    nats = -sum(n * math.log((known[i] + 1) / total) for i, n in wanted.items()) / sum(wanted.values())
    found = TASK.baselines(*split, TOKENIZER)["unigram"]
    assert found["loss"] == pytest.approx(nats) and found["perplexity"] == pytest.approx(math.exp(nats))
    assert found["accuracy"] == pytest.approx(wanted[max(known, key=known.__getitem__)] / sum(wanted.values()))


def test_without_a_tokenizer_it_says_what_is_missing():
    with pytest.raises(ValueError, match="come from a tokenizer"):
        MaskedLanguageModeling().collate(rows())


def test_a_batch_of_empty_texts_is_measured():
    """Of nothing but special tokens nothing is hidden."""
    batch = TASK.collate(rows([""], 4))
    assert int(loss_of(MODEL, TASK, batch).weight) == 0
    together = measured(MODEL, TASK, TOKENIZER, [batch, TASK.collate(rows())])
    assert together == measured(MODEL, TASK, TOKENIZER, [TASK.collate(rows())])


def test_texts_of_special_tokens_alone_have_nothing_to_hide():
    special = TOKENIZER.bos_id, TOKENIZER.pad_id
    assert TASK.unmeasurable([Example(list(special)), Example([])]) == "no text has a token that may be hidden"
    assert TASK.unmeasurable([Example([]), Example([special[0], TOKENIZER.encode("a")[-1]])]) is None
