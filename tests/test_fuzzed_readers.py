"""Whatever stands in a file, reading it gives what is there or one of miniformer's errors: no traceback, and no end of waiting.

CI tries a few files with each reader. The thorough run tries them for ten minutes each, or for as many seconds as
`MINIFORMER_FUZZ_SECONDS` says.
"""

import json
import os
import shutil
import signal
import time
from contextlib import contextmanager, suppress
from itertools import count

import depth
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from miniformer.checkpoint.store import BEST, CONFIG, MANIFEST, TOKENIZER, WEIGHTS, digest
from miniformer.cli.generate import _schema
from miniformer.cli.train import merged
from miniformer.data.jsonl import check_file, read_records
from miniformer.data.tokenizer import Tokenizer
from miniformer.inference.constrained import Constraint
from miniformer.inference.load import load
from miniformer.kernel import Task, UserError, build
from miniformer.train.spec_file import model_of, read_spec, run_of

SECONDS = float(os.environ.get("MINIFORMER_FUZZ_SECONDS", "600"))
LONGEST = 20
"""Seconds after which reading a small file counts as waiting for ever."""

PIECES = [b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"\xe9", b"\r", b"\r\n", b"\n", b"\t", b"\xe2\x80\xa8", b"\x1f\x8b", b"&a ",
          b"*a", b"[" * 2000, b'{"a":' * 500, b"9" * 5000, b"9" * 400, b": ", b"- ", b"%YAML 9\n", b"---\n", b"!!python/none ",
          *b"1e999 NaN -Infinity -1 1.5 0 010 yes null true \\ud800 \\u0000".split(),
          *b"{} [] { } [ ] , : << !!int !!timestamp ? | > # ' @ \"".split()]
WORDS = ["", "x", "0", "none", "mha", "\0", "\u2028", "a" * 5000, "transformer", "seq2seq", "../x", "/"]
NUMBERS = [0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")]
NAMES = st.sampled_from(["name", "options", "a", "", "0"])
VALUES = st.recursive(st.sampled_from([None, True, False, *NUMBERS, *WORDS]) | st.text(max_size=3),
                      lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2), max_leaves=4)


@st.composite
def damaged(draw, *originals):
    """The bytes of a file with a few pieces changed; sometimes any bytes at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode()))
    content = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.sampled_from([0, 0, 1, 2, 5, 20, len(content)]))
        piece = draw(st.sampled_from(PIECES) | st.binary(max_size=3) | st.just(content[start:end] * 2))
        content = content[:start] + piece + content[end:]
    return content


@st.composite
def other_values(draw, original):
    """JSON data in which a few values are others, or missing."""
    data = json.loads(json.dumps(original))
    for _ in range(draw(st.integers(1, 3))):
        parent, key = data, None
        while isinstance(parent, (dict, list)) and parent:
            key = draw(st.sampled_from(list(parent) if isinstance(parent, dict) else range(len(parent))))
            if not isinstance(parent[key], (dict, list)) or not parent[key] or draw(st.integers(0, 2)) == 0:
                break
            parent = parent[key]
        if key is None:
            break
        if draw(st.integers(0, 4)) == 0:
            del parent[key]
        else:
            parent[key] = draw(VALUES)
    return data


@contextmanager
def ends_soon():
    """Raise an error in what does not end."""
    def give_up(number, frame):
        raise TimeoutError(f"not read after {LONGEST} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(contents, read, few=10):
    """Try `read` on drawn contents: a few, or in the thorough run as many as the time allows."""
    def attempt(content):
        with ends_soon(), suppress(UserError):
            read(content)

    began = time.monotonic()
    for round_number in count():
        rounds = settings(max_examples=100 if depth.is_thorough() else few, derandomize=False, database=None, deadline=None,
                          suppress_health_check=list(HealthCheck))
        seed(round_number)(rounds(given(contents)(attempt)))()
        if not depth.is_thorough() or time.monotonic() - began > SECONDS:
            return


def test_json_lines(tmp_path):
    path = tmp_path / "data.jsonl"
    tasks = [build(Task, name) for name in ("language-modeling", "classification", "multilabel", "regression",
                                            "token-classification", "seq2seq")]
    lines = (b'{"text": "a", "input": [1, 2.5], "label": 1, "labels": ["x", "y"], "tokens": ["a", "b"], "value": 0.5, '
             b'"source": "s", "target": "t"}\n')
    originals = [lines * 2, lines.replace(b"[1, 2.5]", b'"text"'), lines.replace(b"[1, 2.5]", b"[[1, 2], [3, 4]]"),
                 b'{\n "text": "a",\n "labels": [\n  {"a": 1}\n ]\n}\n', b'[{"text": "a"},\n{"text": "b"}]', b"text,label\na,b"]

    def read(content):
        path.write_bytes(content)
        check_file(path)
        for task in tasks:
            with suppress(UserError):
                records = [record for _, record in read_records(path, task.Record)]
                with suppress(ValueError):  # records that teach nothing
                    dict(task.fit(records))

    fuzz(damaged(*originals), read)


def test_yaml_files(tmp_path):
    path = tmp_path / "run.yaml"
    text = (b"train_path: my.jsonl\nlr: 1e-3\nmax_epochs: 3\nbase: &b {name: gelu, bias: true}\nmodel_config:\n  d_model: 128\n"
            b"  ffn: *b\n  layers:\n    - {repeat: 3, attention: {name: mha, window: 64}}\nextensions:\n  ema: {decay: 0.9}\n")
    originals = [text.replace(b"base: &b", b"optimizer: &b"), text, b"d_model: 16\nattention: mha\nn_layers: 1\nlayers: []\n"]

    def read(content):
        path.write_bytes(content)
        data = read_spec(path)
        json.dumps(data, default=repr)
        merged(str(path), None, {"run_seed": "1"}, ("lr=1",))

    fuzz(damaged(*originals), read)


@pytest.mark.parametrize("understand", [model_of, run_of])
def test_what_a_run_or_a_model_saved(tmp_path, trained, understand):
    path = tmp_path / "run.json"
    originals = [json.loads((trained / file).read_text()) for file in ("run.json", BEST / CONFIG)]
    small = originals[1]["model"] | {"vocab_size": 20, "d_model": 8, "n_heads": 2, "n_layers": 1}

    def read(data):
        path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        understand(read_spec(path))

    drawn = [other_values(original) for original in (*originals, small)]
    fuzz(st.one_of(*drawn, damaged(*(json.dumps(original).encode() for original in originals))), read, few=6)


def test_tokenizers(tmp_path, trained):
    path = tmp_path / TOKENIZER
    whole = json.loads((trained / BEST / TOKENIZER).read_text())
    few = whole | {"model": whole["model"] | {"vocab": dict(list(whole["model"]["vocab"].items())[:270]), "merges": []}}

    def read(data):
        path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        tokenizer = Tokenizer.load(path)
        assert isinstance(tokenizer.vocab_size, int)

    fuzz(st.one_of(other_values(few), damaged(json.dumps(few).encode())), read, few=6)


def test_schemas(tmp_path, trained):
    pytest.importorskip("llguidance")
    path, tokenizer = tmp_path / "schema.json", Tokenizer.load(trained / BEST)
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^[a-z]{1,3}$"}, "b": {"$ref": "#/$defs/x"}},
              "required": ["a"], "$defs": {"x": {"type": "array", "items": {"type": ["integer", "null"]}, "maxItems": 3}}}

    def read(data):
        path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        Constraint.json_schema(tokenizer, _schema(path))

    fuzz(st.one_of(other_values(schema), damaged(json.dumps(schema).encode())), read, few=6)


def test_saved_models(tmp_path, trained):
    folder, original = tmp_path / "model", trained / BEST
    names = [CONFIG, WEIGHTS, TOKENIZER, MANIFEST]
    whole = {name: (original / name).read_bytes() for name in names}
    header = 8 + int.from_bytes(whole[WEIGHTS][:8], "little")
    config = json.loads(whole[CONFIG])

    def read(drawn):
        name, content, is_known = drawn
        shutil.copytree(original, folder, dirs_exist_ok=True)
        (folder / name).write_bytes(content)
        if is_known and name != MANIFEST:
            (folder / MANIFEST).write_text(json.dumps({file: digest(folder / file) for file in (CONFIG, WEIGHTS, TOKENIZER)}))
        load(folder)

    weights = damaged(whole[WEIGHTS][:header]).map(lambda start: start + whole[WEIGHTS][header:])
    contents = st.one_of(
        *(st.tuples(st.just(name), damaged(whole[name]), st.booleans()) for name in names),
        st.tuples(st.just(WEIGHTS), weights, st.just(True)),
        st.tuples(st.just(CONFIG), other_values(config).map(lambda data: json.dumps(data).encode()), st.just(True)))
    fuzz(contents, read, few=6)
