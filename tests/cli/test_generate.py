"""`miniformer generate`, on a real run."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from miniformer.cli import cli as commands
from miniformer.cli.shared.loading import load_for_use, read_saved
from miniformer.inference.engine import Engine
from miniformer.kernel import UserError

FOX = ("--greedy", "--max-new-tokens", "24")


def written(*args, **given):
    """What the command writes, run in this process."""
    done = CliRunner().invoke(commands, ["generate", *map(str, args)], **given)
    if done.exception:
        raise done.exception
    return done.stdout


def test_greedy_text_is_the_same_with_and_without_state(cli, trained):
    args = ("generate", str(trained), "--prompt", "the quick", "--greedy", "--max-new-tokens", "24")
    text = cli(*args).stdout
    assert text == cli(*args, "--no-state").stdout
    assert text.startswith("the quick brown fox jumps over")


def test_greedy_is_temperature_0(trained, monkeypatch):
    samplings, generate = [], Engine.generate

    def noted(engine, prompts, sampling, **limits):
        samplings.append(sampling)
        return generate(engine, prompts, sampling, **limits)

    monkeypatch.setattr(Engine, "generate", noted)
    written(trained, "--prompt", "the quick", "--max-new-tokens", "1", "--greedy")
    assert [sampling.temperature for sampling in samplings] == [0]


def test_a_seed_repeats_the_draws(trained):
    args = (trained, "--prompt", "", "--temperature", "2", "--max-new-tokens", "20")
    one, same, other = (written(*args, "--seed", seed) for seed in ("1", "1", "2"))
    assert one == same != other


def test_a_folder_without_a_model_is_refused(cli, tmp_path):
    assert "no saved model here; expected a run folder" in cli("generate", str(tmp_path), "--prompt", "x", code=2).stderr


def test_a_damaged_model_is_refused(cli, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    weights = tmp_path / "copy" / "checkpoints" / "best_model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    assert "damaged: its SHA-256 is not the one in manifest.json" in \
        cli("generate", "copy", "--prompt", "x", code=2).stderr


def test_of_an_encoder_decoder_the_answer_alone_is_written(answering):
    args = (answering, "--prompt", "20 times the fox jumps", "--greedy")
    assert written(*args) == written(*args, "--no-state") == "the fox\n"


def test_json_tells_tokens_log_probabilities_and_why_it_ended(trained):
    args = (trained, "--prompt", "the quick", "--prompt", "the lazy", "--json", *FOX)
    [quick, lazy] = map(json.loads, written(*args, "--stop", " over").splitlines())
    assert quick["prompt"] == "the quick" and quick["text"] == " brown fox jumps" and quick["finish_reason"] == "stop"
    assert lazy["prompt"] == "the lazy" and lazy["text"].startswith(" dog.")
    assert len(quick["tokens"]) == len(quick["logprobs"]) > 0 and max(quick["logprobs"]) <= 0
    assert quick.keys() == {"prompt", "text", "tokens", "logprobs", "finish_reason"}


def test_prompts_of_a_file_and_of_standard_input_are_answered_in_order(answering, tmp_path):
    animals = ["dog", "cat", "owl", "fox"] * 3
    lines = "".join(json.dumps({"prompt": f"{n} times the {animal} jumps"}) + "\n" for n, animal in enumerate(animals))
    (tmp_path / "prompts.jsonl").write_text(lines)
    args = (answering, "--greedy", "--batch-size", "5")
    expected = "".join(f"the {animal}\n" for animal in animals)
    assert written(*args, "--prompts", tmp_path / "prompts.jsonl") == expected
    assert written(*args, "--prompts", "-", input=lines) == expected


@pytest.mark.parametrize("search", [(), ("--beams", "2")])
def test_a_prompt_that_cannot_be_answered_is_told_by_its_place(answering, tmp_path, monkeypatch, search):
    encode = Engine.encode

    def short(engine, prompt, *limits):
        if len(prompt) > 20:
            raise UserError("the prompt is too long")
        return encode(engine, prompt, *limits)

    monkeypatch.setattr(Engine, "encode", short)
    long, file = "fox " * 20, tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("the fox", long)))
    for args, place in ((("--prompts", file), f"{file}:2: "), (("--prompt", "x", "--prompt", long), "--prompt 2: "),
                        (("--prompt", long), "")):
        with pytest.raises(UserError) as caught:
            written(answering, *args, *search)
        assert str(caught.value) == f"{place}the prompt is too long"


def test_a_text_on_standard_input_is_a_prompt(trained):
    piped = subprocess.run([sys.executable, "-m", "miniformer", "generate", str(trained), *FOX], input="the quick\n",
                           capture_output=True, text=True, check=True, timeout=120).stdout
    assert piped == written(trained, "--prompt", "the quick", *FOX) and piped.startswith("the quick brown fox")


def test_standard_input_that_is_no_text_is_told(trained):
    for content, told in (("the quick".encode("utf-16"), "standard input: UTF-16, not UTF-8"),
                          (b"\x1f\x8b\x08\x00", "standard input: compressed by gzip; unpack it first")):
        with pytest.raises(UserError, match=told):
            written(trained, input=content)
    with pytest.raises(UserError, match="standard input: not UTF-8: byte 0xe9 at byte 4"):
        written(trained, input=b"caf\xe9\n")
    for prompt in (b"the quick\r\n", b"\xef\xbb\xbfthe quick\n"):
        assert written(trained, *FOX, input=prompt) == written(trained, "--prompt", "the quick", *FOX)


def test_numbers_beyond_all_bounds_are_told_or_do_no_harm(trained):
    args = (trained, "--prompt", "the quick", "--greedy", "--stop", "jumps", "--max-new-tokens", 10**12)
    assert written(*args, "--batch-size", 10**20) == "the quick brown fox \n"
    with pytest.raises(UserError, match="beams: width: expected at most 10,000; found 1000000000"):
        written(trained, "--prompt", "the quick", "--beams", 10**9)


def test_beams_give_the_best_texts(answering):
    args = (answering, "--prompt", "20 times the fox jumps", "--beams", "3")
    assert written(*args) == "the fox\n"
    rows = [json.loads(line) for line in written(*args, "--n-best", "2", "--json").splitlines()]
    assert rows[0]["text"] == "the fox" and len(rows) == 2 and rows[0]["score"] >= rows[1]["score"]


def test_a_draft_changes_no_greedy_text(trained, answering):
    args = (trained, "--prompt", "the quick", *FOX)
    assert written(*args, "--draft", trained) == written(*args)
    with pytest.raises(UserError, match=r"it has a different tokenizer; train it with --tokenizer .*tokenizer\.json"):
        written(*args, "--draft", answering)


def test_a_form_is_kept(trained, tmp_path):
    pytest.importorskip("llguidance")
    found = written(trained, "--prompt", "the quick", "--regex", " [a-z]{2,6} [a-z]{2,6}!")
    assert re.fullmatch("the quick( [a-z]{2,6}){2}!\n", found)
    schema = '{"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}'
    (tmp_path / "schema.json").write_text(schema, encoding="utf-8-sig")  # as some editors save it
    found = json.loads(written(trained, "--prompt", "the", "--json-schema", tmp_path / "schema.json", "--json"))
    assert len(json.loads(found["text"])) in (2, 3) and found["finish_reason"] == "eos"


@pytest.mark.parametrize(("content", "told"), [
    (b"{", "schema.json:1: not JSON: Expecting property name"), ("{}".encode("utf-16"), "schema.json: UTF-16, not UTF-8"),
    (b"[]", "schema.json: expected a JSON object, a schema; found list"), (b'{"type": "x"}', "not a valid form: "),
    (b'{"required": NaN}', "not a valid schema: ")])
def test_a_schema_that_is_none_is_told(trained, tmp_path, content, told):
    pytest.importorskip("llguidance")
    (tmp_path / "schema.json").write_bytes(content)
    with pytest.raises(UserError, match=told):
        written(trained, "--prompt", "x", "--json-schema", tmp_path / "schema.json")


def test_an_escape_in_a_stop_string_is_the_character_that_it_stands_for(trained):
    pytest.importorskip("llguidance")
    args = (trained, "--prompt", "the quick", "--regex", " fox\n dog", "--json")
    whole, stopped = (json.loads(written(*args, *more)) for more in ((), ("--stop", "\\n")))
    assert (whole["text"], whole["finish_reason"]) == (" fox\n dog", "eos")
    assert (stopped["text"], stopped["finish_reason"]) == (" fox", "stop")


def test_what_there_is_to_note_on_a_model_is_told(trained, monkeypatch, capsys):
    noted = SimpleNamespace(notes=("compatible: trained with acme-parts 1.0; this is 1.5",))
    monkeypatch.setattr("miniformer.inference.load.load_on_best_device", lambda saved: noted)
    assert load_for_use(read_saved(trained)) is noted
    assert capsys.readouterr().err == "note: compatible: trained with acme-parts 1.0; this is 1.5\n"


def test_on_a_terminal_a_text_is_written_as_it_is_drawn(trained):
    outer, inner = pty.openpty()
    args = ["generate", str(trained), "--prompt", "the quick", "--temperature", "3", "--seed", "1", "--top-p", "1",
            "--max-new-tokens", "100000"]
    process = subprocess.Popen([sys.executable, "-m", "miniformer", *args], stdout=inner, stderr=subprocess.DEVNULL)
    try:
        seen = b""
        while len(seen) < 20:
            seen += os.read(outer, 1000)
        assert seen.startswith(b"the quick") and process.poll() is None
    finally:
        process.kill()
        process.wait()
        os.close(inner)
        os.close(outer)


@pytest.mark.parametrize(("args", "told"), [
    (("--prompt", "x", "--prompts", "in.jsonl"), "--prompt and --prompts: give one of them"),
    (("--prompts", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
    (("--prompt", "x", "--stream", "--json"), "--stream writes the text of one prompt as it is drawn"),
    (("--prompt", "x", "--n-best", "2"), "--n-best 2: give --beams 2 or more"),
    (("--prompt", "x", "--length-penalty", "2"), "--length-penalty does nothing without --beams; leave it out"),
    (("--prompt", "x", "--n-best", "1"), "--n-best does nothing without --beams; leave it out"),
    (("--prompt", "x", "--beams", "2", "--seed", "1"), "--seed does nothing with --beams, which draw nothing; leave it out"),
    (("--prompt", "x", "--beams", "2", "--temperature", "1"), "--temperature does nothing with --beams"),
    (("--prompt", "x", "--greedy", "--temperature", "0.5"), "--greedy is temperature 0; leave out --temperature"),
    (("--prompt", "x", "--seed", str(2**64)), "'--seed': 18446744073709551616 is not in the range"),
    (("--prompt", "caf\udce9"), "--prompt: not UTF-8: byte 0xe9 at byte 4"),
    (("--prompt", "x", "--stop", "\udcff"), "--stop: not UTF-8: byte 0xff at byte 1"),
    (("--prompt", "x", "--draft", "nowhere"), "nowhere: there is no run, model or file of that name"),
    (("--prompt", "x", "--draft", "nowhere", "--beams", "2"), "--draft helps drawing and greedy decoding; leave out --beams"),
    (("--prompt", "x", "--json-schema", "nowhere.json"), "nowhere.json: cannot be read: No such file"),
    (("--prompt", "x", "--json-schema", "s", "--regex", "a"), "--regex and --json-schema: give one of them"),
    (("--prompt", "x", "--beams", "4", "--beam-groups", "3"), "groups: expected a divisor of width 4; found 3"),
    (("--prompt", "x", "--repetition-penalty", "0"), "repetition_penalty: expected above 0; found 0.0"),
    (("--prompt", "x", "--stop", ""), "stop: an empty string is in every text"),
])
def test_mistakes_are_told(trained, args, told):
    done = CliRunner().invoke(commands, ["generate", str(trained), *args])
    assert told in (" ".join(done.output.split()) if isinstance(done.exception, SystemExit) else str(done.exception))
    assert isinstance(done.exception, (SystemExit, UserError))


def test_it_is_told_before_it_begins_that_compiling_takes_a_while(cli, trained, monkeypatch):
    monkeypatch.setattr("miniformer.inference.engine.compiled_step", lambda: None)  # it would take half a minute here too
    told = cli("generate", str(trained), "--prompt", "the", "--max-new-tokens", "1", "--compile").stderr
    assert "note: a step is compiled with the first prompt, which takes up to half a minute" in told

def test_a_form_without_its_library_is_missed_before_the_model_is_loaded(cli_here, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.setattr("miniformer.cli.generate.load_for_use", lambda saved: pytest.fail("the model was loaded"))
    done = cli_here("generate", str(trained), "--prompt", "x", "--regex", "a", code=2)
    assert "pip install 'miniformer[constrained]'" in done.stderr
