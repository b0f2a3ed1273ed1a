import json


def test_it_says_what_a_component_is_and_what_it_takes(cli):
    text = cli("describe", "mha").stdout
    assert text.startswith("attention mha  (miniformer 0.1.0, miniformer.model.attention:MultiHeadAttention)\n")
    assert "sizes, from the model: d_model, n_heads" in text
    assert "  n_kv_heads: integer >= 1 or null, default null\n" in text
    assert "  dropout: number >= 0 and < 1, default 0.0\n" in text


def test_a_name_of_several_kinds_shows_them_all(cli):
    text = cli("describe", "classification").stdout
    assert text.index("head classification") < text.index("task classification")
    assert "task classification" not in cli("describe", "classification", "--kind", "head").stdout


def test_the_schema_of_the_options_is_json(cli):
    assert json.loads(cli("describe", "rope", "--json").stdout)["properties"]["pct"]["maximum"] == 1


def test_an_unknown_name_gets_the_nearest(cli):
    assert "there is no component named 'swigloo'; did you mean 'swiglu'" in cli("describe", "swigloo", code=2).stderr
