import json

import pytest
from click.testing import CliRunner

from miniformer.cli import check, describe
from miniformer.cli.describe import command
from miniformer.kernel import Entry, FeedForward, Norm, Registry, Slot, discover, use_registry


def test_it_says_what_a_component_is_and_what_it_takes(cli):
    text = cli("describe", "mha").stdout
    assert text.startswith("attention mha  (miniformer 0.1.0, miniformer.model.attention:MultiHeadAttention)\n")
    assert "sizes, from the model: d_model, n_heads" in text
    assert "  n_kv_heads: integer >= 1 or null, default null\n" in text
    assert "  dropout: number >= 0 and < 1, default 0.0\n" in text


def test_a_name_of_several_kinds_shows_them_all(cli):
    text = cli("describe", "classification").stdout
    assert text.index("head classification") < text.index("task classification")
    for args in (("classification", "--kind", "head"), ("head", "classification")):
        assert cli("describe", *args).stdout.startswith("head classification")


@pytest.mark.parametrize(("args", "told"), [
    (("hed", "classification"), "there is no kind 'hed'; did you mean 'head'"),
    (("head", "classification", "now"), "expected [KIND] NAME; found head classification now"),
    (("head", "classification", "--kind", "task"), "expected [KIND] NAME; found head classification and --kind task"),
])
def test_what_is_no_kind_and_name_is_told(args, told):
    failed = CliRunner().invoke(command, args)
    assert told in failed.output + str(failed.exception)


@pytest.mark.parametrize("of", [describe.command, check.command])
@pytest.mark.parametrize(("name", "told"), [
    ("moe", "there is no component named 'moe'\n  there is an ffn of that name in miniformer-moe; to get it: pip install "
            "miniformer-moe\n"),
    ("bert-mlm", "there is a head of that name in miniformer-hf; to get it: pip install miniformer-hf\n"),
    ("acme:gate", "there is no component named 'acme:gate'\n  to get it: pip install acme\n"),
    ("swigul", "there is no component named 'swigul'; did you mean 'swiglu'")])
def test_a_component_that_is_not_installed_says_what_to_install(of, name, told):
    ours = Registry([entry for entry in discover() if entry.distribution == "miniformer"])
    with use_registry(ours):
        assert told in str(CliRunner().invoke(of, [name]).exception)


class Mixture:
    """Of several."""

    def __init__(self, *, inner: Slot[FeedForward] = "swiglu", other: Slot[Norm] | None = None,
                 words: frozenset[str] = frozenset("hgfedcba")):
        pass


def test_an_option_that_is_a_component_says_its_kind_and_a_set_is_in_order():
    with use_registry(Registry([Entry("extension", "mixture", f"{__name__}:Mixture", "acme", "1")])):
        text = CliRunner().invoke(command, ["mixture"]).output
    assert '  inner: component of kind ffn, default "swiglu"\n' in text
    assert "  other: component of kind norm or null, default null\n" in text
    assert '  words: array, default ["a", "b", "c", "d", "e", "f", "g", "h"]\n' in text


def test_the_schema_of_the_options_is_json(cli):
    assert json.loads(cli("describe", "rope", "--json").stdout)["properties"]["pct"]["maximum"] == 1


def test_an_unknown_name_gets_the_nearest(cli):
    assert "there is no component named 'swigloo'; did you mean 'swiglu'" in cli("describe", "swigloo", code=2).stderr
