"""With a tokenizer that marks where a text ends (BERT, T5), whole texts end and texts to go on from do not."""

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from miniformer.data.tokenizer import Tokenizer
from miniformer.kernel import Task, build

CLS, SEP, CAT, MAT = 1, 2, 4, 5


@pytest.fixture
def tokenizer():
    backend = Backend(models.WordLevel({"[PAD]": 0, "[CLS]": CLS, "[SEP]": SEP, "[UNK]": 3, "cat": CAT, "mat": MAT}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)])
    return Tokenizer.of(backend)


@pytest.mark.parametrize(("name", "options", "record"), [
    ("classification", {"labels": ["x", "y"]}, {"input": "cat mat", "label": "x"}),
    ("multilabel", {"labels": ["x"]}, {"input": "cat mat", "labels": ["x"]}),
    ("token-classification", {"labels": ["x", "y"]}, {"tokens": ["cat", "mat"], "labels": ["x", "x"]}),
])
def test_an_input_ends(tokenizer, name, options, record):
    task = build(Task, {"name": name, **options})
    example = task.encode(task.Record(**record), tokenizer)
    assert example.tokens == [CLS, CAT, MAT, SEP]
    assert task.collate([example]).inputs.tolist() == [[CLS, CAT, MAT, SEP]]


def test_a_source_ends_and_a_prompt_does_not(tokenizer):
    seq2seq, modeling = build(Task, "seq2seq"), build(Task, "language-modeling")
    example = seq2seq.encode(seq2seq.Record(source="cat", target="mat"), tokenizer)
    assert (example.source, example.tokens) == ([CLS, CAT, SEP], [CLS, MAT, SEP])
    assert seq2seq.prompt("cat", tokenizer) == [CLS, CAT, SEP]
    assert modeling.prompt("cat", tokenizer) == [CLS, CAT]


def test_both_texts_of_a_pair_end(tokenizer):
    task = build(Task, "embedding")
    example = task.encode(task.Record(anchor="cat", positive="mat"), tokenizer)
    assert [list(part) for part in (example.tokens, example.target)] == [[CLS, CAT, SEP], [CLS, MAT, SEP]]
