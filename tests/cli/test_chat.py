"""`miniformer chat`: each line is answered, by a decoder with all that was said before in mind."""

import os
import pty
import subprocess
import sys

from click.testing import CliRunner

from miniformer.cli import cli as commands
from miniformer.decoding.sampling import Sampling
from miniformer.inference.engine import Engine
from miniformer.inference.load import load

GREEDY = ("--temperature", "0", "--max-new-tokens", "6")


def said(run, lines, *args):
    done = CliRunner().invoke(commands, ["chat", str(run), *args], input="".join(f"{line}\n" for line in lines),
                              catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout.splitlines()


def test_an_encoder_decoder_answers_each_line(answering):
    assert said(answering, ["7 times the owl jumps", "9 times the cat jumps"], "--temperature", "0") == ["the owl", "the cat"]


def test_a_decoder_goes_on_from_all_that_was_said(trained):
    fox = load(trained)
    engine, history, expected = Engine(fox.model, fox.tokenizer), "", []
    for line in ("the quick", "the lazy"):
        history += f"{line}\n"
        [answer] = engine.generate([history], Sampling(temperature=0), max_new_tokens=6, stop=["\n"])
        expected.append(answer.text)
        history += f"{answer.text}\n"
    assert said(trained, ["the quick", "the lazy"], *GREEDY) == expected
    assert said(trained, ["the quick", "the lazy"] * 20, *GREEDY)[:2] == expected, "what is too long loses its start"


def test_a_decoder_reads_its_own_answers(trained, monkeypatch):
    prompts, stream = [], Engine.stream

    def noted(engine, prompt, *args, **options):
        prompts.append(prompt)
        return stream(engine, prompt, *args, **options)

    monkeypatch.setattr(Engine, "stream", noted)
    answer, _ = said(trained, ["the quick", "the lazy"], *GREEDY)
    assert answer and prompts == ["the quick\n", f"the quick\n{answer}\nthe lazy\n"]


def test_on_a_terminal_it_asks_and_ends_with_the_input(trained):
    outer, inner = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "miniformer", "chat", str(trained), *GREEDY], stdin=inner,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.write(outer, b"the quick\n\x04")
    out, _ = process.communicate(timeout=60)
    os.close(inner)
    os.close(outer)
    assert process.returncode == 0 and out.startswith("> ") and out.endswith("> ")


def test_a_line_that_is_no_text_is_told(trained):
    done = CliRunner().invoke(commands, ["chat", str(trained), *GREEDY], input=b"the quick\ncaf\xe9\n")
    assert str(done.exception) == "standard input:2: not UTF-8: byte 0xe9 at byte 4"
