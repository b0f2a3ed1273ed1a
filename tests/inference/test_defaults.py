"""Text is written with one set of defaults, from every function, class and command that writes."""

import inspect
from dataclasses import asdict

import pytest
import torch
from writing_models import BYTES, writing

from miniformer.cli import chat, generate
from miniformer.decoding.defaults import DEFAULTS
from miniformer.decoding.sampling import Sampling
from miniformer.inference.engine import Engine
from miniformer.inference.pipeline import Pipeline
from miniformer.model.assembly import Assembly

WRITING = [Assembly.generate, Engine.generate, Engine.search, Engine.stream, Pipeline.generate, Pipeline.stream]


@pytest.mark.parametrize("function", WRITING, ids=lambda function: function.__qualname__)
def test_a_signature_has_the_defaults(function):
    parameters = inspect.signature(function).parameters
    own = {name: parameter.default for name, parameter in parameters.items() if hasattr(DEFAULTS, name)}
    assert own == {name: getattr(DEFAULTS, name) for name in own} and "max_new_tokens" in own
    sampling = parameters.get("sampling")
    assert sampling is None or sampling.kind is sampling.VAR_KEYWORD or sampling.default == Sampling()


@pytest.mark.parametrize("command", [generate.command, chat.command], ids=["generate", "chat"])
def test_a_command_has_the_defaults(command):
    own = {option.name: option.default for option in command.params if hasattr(DEFAULTS, option.name)}
    assert own == {name: getattr(DEFAULTS, name) for name in own}
    assert {"max_new_tokens", "temperature", "top_k", "top_p"} <= own.keys()


def test_sampling_has_the_defaults():
    settings = asdict(Sampling())
    assert settings.pop("processors") == ()
    assert {"max_new_tokens": DEFAULTS.max_new_tokens, **settings} == asdict(DEFAULTS)


def test_a_prompt_and_a_seed_give_one_text_whoever_writes_it():
    model = writing()
    [answer] = Engine(model, BYTES).generate(["some text"], max_new_tokens=12, seed=3)
    ids = torch.tensor([BYTES.encode("some text")])
    written = model.generate(ids, 12, seed=3, eos_id=BYTES.eos_id)[0, ids.shape[1]:].tolist()
    assert written[:len(answer.tokens)] == answer.tokens
    stream = Engine(model, BYTES).stream("some text", max_new_tokens=12, seed=3)
    assert "".join(stream) == answer.text
