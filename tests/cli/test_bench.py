"""`miniformer bench`: the table, its JSON, and what it refuses. Times are not tested, they are the machine's."""

import json

import pytest
from depth import thorough

from miniformer.cli.bench import _print, command
from miniformer.kernel import UserError

SPEC = "vocab_size: 300, d_model: 16, n_heads: 2, n_layers: 1, max_seq_len: 16"


@pytest.fixture
def specs(tmp_path):
    (tmp_path / "a.yaml").write_text(f"{{{SPEC}, causal: true}}")
    (tmp_path / "b.yaml").write_text(f"{{model_config: {{{SPEC}, ffn: gelu}}, task: language-modeling, lr: 0.001}}")
    (tmp_path / "encoder.yaml").write_text(f"{{{SPEC}}}")
    (tmp_path / "short.yaml").write_text(f"{{{SPEC}, causal: true, position: learned}}")
    (tmp_path / "typo.yaml").write_text(f"{{{SPEC}, causal: true, ffn: swigloo}}")
    (tmp_path / "odd.yaml").write_text(f"{{{SPEC}, causal: true, head: regression}}")


def figures(rate, ratio, **more):
    return {"tokens_per_second": rate, "lowest": rate - 1, "highest": rate + 1, "ratio": ratio, "ratio_lowest": ratio,
            "ratio_highest": ratio, "peak_bytes": 2**29, **more}


def test_the_table_is_that_of_the_figures(capsys):
    setting = {"device": "cpu", "threads": 2, "rounds": 3, "seconds": 1.0, "batch_size": 4, "length": 64, "prompt": 16,
               "precision": "bf16", "decode_precision": 32, "gemm_flops": 123e9}
    _print({"setting": setting, "contestants": [
        {"name": "mine", "parameters": 1000, "train": figures(1500.0, 1.0, mfu=0.25),
         "decode": [{"batch_size": 1, **figures(50.0, 1.0)}]},
        {"name": "an-encoder", "parameters": 20000, "train": figures(3000.0, 2.0, mfu=None), "decode": []}]})
    assert capsys.readouterr().out == """\
cpu, 2 threads; medians of 3 rounds of 1 s, lowest to highest

training, 4 x 64 tokens, bf16; the machine's matrix product: 123 GFLOP/s
            parameters  tokens/s           range  ratio         range   memory          MFU
mine             1,000     1,500  1,499 to 1,501   1.00  1.00 to 1.00  512 MiB         25 %
an-encoder      20,000     3,000  2,999 to 3,001   2.00  2.00 to 2.00  512 MiB  not counted
MFU: the operations of the model's own forward and backward passes, as a share of that product's rate

decoding, 1 x 16 + 48 tokens, greedy, fp32
            parameters  tokens/s         range  ratio         range   memory
mine             1,000      50.0  49.0 to 51.0   1.00  1.00 to 1.00  512 MiB
an-encoder      20,000  does not write
"""


def test_more_than_the_machine_s_own_rate_is_explained_where_it_is_shown(capsys):
    setting = {"device": "cpu", "threads": 2, "rounds": 3, "seconds": 1.0, "batch_size": 4, "length": 64, "prompt": 16,
               "precision": 32, "decode_precision": 32, "gemm_flops": 123e9}
    for mfu, explained in ((1.33, True), (0.9, False)):
        _print({"setting": setting, "contestants": [
            {"name": "mine", "parameters": 1000, "train": figures(1500.0, 1.0, mfu=mfu), "decode": []}]})
        assert ("MFU above 100 % is no error: " in capsys.readouterr().out) == explained


@pytest.mark.parametrize(("args", "text"), [
    (["a.yaml", "--against", "nowhere.yaml"], "nowhere.yaml: there is no run, model or file of that name"),
    (["a.yaml", "--rounds", "0"], "0 is not in the range x>=1"),
])
def test_what_cannot_be_read_is_told(cli, specs, args, text):
    assert text in cli("bench", *args, code=2).stderr


@pytest.mark.parametrize(("args", "text"), [
    (["a.yaml", "--against", "typo.yaml"], "typo.yaml:1: there is no ffn named 'swigloo'"),
    (["a.yaml", "--against", "short.yaml", "--length", "32"], "short.yaml: rows of 32 tokens"),
    (["encoder.yaml", "--only", "decode"], "none of these models writes"),
    (["odd.yaml"], "odd.yaml:1: no task trains a decoder (causal: true) with head 'regression'"),
])
def test_what_cannot_be_compared_is_told(specs, tmp_path, monkeypatch, args, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        command.main(args, standalone_mode=False)
    assert str(raised.value).startswith(text)


@pytest.mark.slow
@thorough  # CI runs the README's own call of `bench`
def test_two_specs_side_by_side(cli, specs):
    found = json.loads(cli("bench", "a.yaml", "--against", "b.yaml", "--rounds", "2", "--seconds", "0.05", "--batch-size", "1",
                           "--precision", "32", "--json").stdout)
    first, second = found["contestants"]
    assert (first["name"], second["name"]) == ("a.yaml", "b.yaml")
    assert first["parameters"] > second["parameters"]
    assert found["setting"]["gemm_flops"] > 1e8
    assert (found["setting"]["length"], found["setting"]["prompt"], found["setting"]["rounds"]) == (16, 4, 2)
    for one in (first, second):
        assert one["task"] == "language-modeling"
        assert [entry["batch_size"] for entry in one["decode"]] == [1]
        assert 0 < one["train"]["mfu"] < 1
        for entry in (one["train"], *one["decode"]):
            assert 0 < entry["lowest"] <= entry["tokens_per_second"] <= entry["highest"]
            assert 0 < entry["ratio_lowest"] <= entry["ratio"] <= entry["ratio_highest"]
            assert 50e6 < entry["peak_bytes"] < 4e9
    for entry in (first["train"], *first["decode"]):
        assert entry["ratio"] == 1
