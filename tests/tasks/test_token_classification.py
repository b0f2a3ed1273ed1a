"""Token classification: a word's first piece speaks for it, whatever is cut off."""

import pytest
import torch
from task_models import loss_of, measured, model_for, predictions_of

from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel.task import Split
from miniformer.tasks.token_classification import TaggedRecord, TokenClassification, WordsInput, token_kinds

LABELS = ("noun", "verb", 7)
TASK = TokenClassification(labels=LABELS)
TOKENIZER = Tokenizer.train([" the cat sat on the mat"] * 9, 275)
RECORDS = [TaggedRecord(tokens=tokens.split(), labels=[LABELS[len(t) % 3] for t in tokens.split()])
           for tokens in ("the cat sat", "a", "extraordinarily on naïve mat 🦜", "sat the the")]
EXAMPLES = [TASK.encode(record, TOKENIZER) for record in RECORDS]
MODEL = model_for(TASK, TOKENIZER.vocab_size)
BATCH = TASK.collate(EXAMPLES)


def answers():
    """(log-probabilities, right label) of each word, from each record run alone, at the word's first piece."""
    found = []
    for record in RECORDS:
        tokens, first = TOKENIZER.encode(""), []
        for word in record.tokens:
            first.append(len(tokens))
            tokens = tokens + TOKENIZER.encode(" " + word)[1:]
        with torch.no_grad():
            scores = MODEL(torch.tensor([tokens]))[0].log_softmax(dim=-1)
        found.append([(scores[t], LABELS.index(label)) for t, label in zip(first, record.labels, strict=True)])
    return found


def test_words_and_labels_are_as_many():
    with pytest.raises(ValueError, match="1 labels for 2 tokens; expected one for each"):
        TaggedRecord(tokens=["a", "b"], labels=["x"])


def test_a_sentence_has_words():
    with pytest.raises(ValueError, match="tokens"):
        TaggedRecord(tokens=[], labels=[])


def test_pieces_are_those_of_the_sentence():
    assert TOKENIZER.decode(EXAMPLES[2].tokens) == " extraordinarily on naïve mat 🦜"
    assert EXAMPLES[2].tokens[0] == TOKENIZER.bos_id and TOKENIZER.bos_id not in EXAMPLES[2].tokens[1:]


def test_the_tokenizer_learns_words_as_they_are_encoded():
    assert list(TASK.texts(RECORDS[0])) == [" the", " cat", " sat"]
    assert len(TOKENIZER.encode(" cat")) == 2


def test_labels_are_learnt_from_all_words():
    assert TokenClassification().fit(RECORDS) == {"labels": [7, "noun", "verb"]}


def test_the_loss_is_the_cross_entropy_of_the_words():
    term = loss_of(MODEL, TASK, BATCH)
    assert float(term.sum) == pytest.approx(-sum(float(s[right]) for row in answers() for s, right in row), abs=1e-9)
    assert int(term.weight) == sum(len(record.tokens) for record in RECORDS)


def test_metrics_are_over_words():
    pairs = [(int(s.argmax()), right) for row in answers() for s, right in row]
    found = measured(MODEL, TASK, TOKENIZER, [BATCH])
    assert found["accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    there = {label for pair in pairs for label in pair}
    scores = [2 * sum(a == b == c for a, b in pairs) / sum((a == c) + (b == c) for a, b in pairs) for c in there]
    assert found["f1"] == pytest.approx(sum(scores) / len(scores))


def test_a_prediction_is_a_label_for_each_word():
    expected = [{"labels": [LABELS[int(s.argmax())] for s, _ in row]} for row in answers()]
    assert predictions_of(MODEL, TASK, BATCH) == expected


def test_words_that_are_cut_off_have_no_label():
    asked = TASK.question(WordsInput(tokens=RECORDS[2].tokens), TOKENIZER)
    cut = TASK.cut(asked, 4)
    assert len(cut.tokens) == 4
    [found] = predictions_of(MODEL, TASK, TASK.collate([cut]))
    assert found["labels"][0] in LABELS and found["labels"][1:] == [None] * 4


def test_a_sentence_that_is_cut_is_trained_on_as_far_as_it_goes():
    cut = TASK.cut(EXAMPLES[2], 4)
    assert int(loss_of(MODEL, TASK, TASK.collate([cut])).weight) == 1


def test_a_word_that_is_nothing_to_the_tokenizer_is_told():
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    backend = Backend(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match=r"field 'tokens': token 2, '\\n', is nothing to this tokenizer"):
        TASK.encode(TaggedRecord(tokens=["a", "\n"], labels=["noun", "verb"]), Tokenizer.of(backend))


def test_baselines_are_the_commonest_label_and_each_word_s():
    def split(*pairs):
        record = TaggedRecord(tokens=[word for word, _ in pairs], labels=[label for _, label in pairs])
        return Split([record], [TASK.encode(record, TOKENIZER)])

    train = split(("a", "noun"), ("b", "verb"), ("c", "noun"), ("b", "verb"), ("b", "noun"))
    held_out = split(("a", "noun"), ("b", "verb"), ("new", "noun"), ("a", "verb"))
    assert TASK.baselines(train, held_out, TOKENIZER) == {"always 'noun'": {"accuracy": 0.5},
                                                          "each word's usual": {"accuracy": 0.75}}


def test_baselines_are_of_the_words_that_the_model_is_measured_on():
    """A word that is cut off counts for neither."""
    record = TaggedRecord(tokens=["a", "b"], labels=["noun", "verb"])
    cut = Split([record], [TASK.cut(TASK.encode(record, TOKENIZER), 3)])
    whole = Split([record], [TASK.encode(record, TOKENIZER)])
    assert [piece for piece in cut.examples[0].target.pieces if piece >= 0] == [0]
    assert TASK.baselines(whole, cut, TOKENIZER)["always 'noun'"] == {"accuracy": 1.0}


def test_one_label_only_is_refused():
    with pytest.raises(ValueError, match="every record has the label 'x'"):
        TokenClassification().fit([TaggedRecord(tokens=["a"], labels=["x"])] * 2)
    with pytest.raises(ValueError, match="labels: 'x' is the only one"):
        TokenClassification(labels=("x",))


def test_kinds_of_python_s_tokens():
    source = "def f(x):  # why\n    return 'a' + 1.5\n"
    assert list(token_kinds(source)) == [
        ("def", "keyword"), ("f", "name"), ("(", "operator"), ("x", "name"), (")", "operator"), (":", "operator"),
        ("# why", "comment"), ("return", "keyword"), ("'a'", "string"), ("+", "operator"), ("1.5", "number")]


def test_a_batch_without_a_word_is_not_measured():
    cut = TASK.collate([TASK.cut(EXAMPLES[0], 1)])
    assert measured(MODEL, TASK, TOKENIZER, [BATCH, cut]) == measured(MODEL, TASK, TOKENIZER, [BATCH])


def test_a_length_without_room_for_a_word_is_refused():
    with pytest.raises(ValueError, match="max_seq_len 1 has no room for a word; expected at least 2"):
        TASK.examples(RECORDS[0], TOKENIZER, 1)
    assert [len(example.tokens) for example in TASK.examples(RECORDS[0], TOKENIZER, 2)] == [2]
