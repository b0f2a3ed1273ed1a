"""A component that fails in a model is told with its name, its slot and the line of its code; its own error is the cause."""

from pathlib import Path

import pytest
import torch
from writing_models import BYTES, writing

from miniformer.decoding.sampling import Sampling
from miniformer.decoding.state import BufferState
from miniformer.inference.engine import Engine
from miniformer.kernel import ComponentError, Entry, OutOfMemory, Registry, SpecError, discover, use_registry
from miniformer.kernel.out_of_memory import memory_errors
from miniformer.model.attention import MultiHeadAttention
from miniformer.model.feedforward import GELU
from miniformer.model.head import LanguageModelHead
from miniformer.model.norm import RMSNorm
from miniformer.model.position import Learned
from miniformer.train.run import Run
from miniformer.train.train_config import TrainConfig

HERE = Path(__file__).name


class Failing(MultiHeadAttention):
    def forward(self, x, context, state=None):
        return self.inner(x)

    def inner(self, x):
        raise RuntimeError("no such luck")


class Narrow(MultiHeadAttention):
    def forward(self, x, context, state=None):
        return super().forward(x, context, state)[:, :-1]


class Pair(MultiHeadAttention):
    def forward(self, x, context, state=None):
        return super().forward(x, context, state), None


class LaterFailing(MultiHeadAttention):
    def forward(self, x, context, state=None):
        if state is not None and state.length > 4:
            raise IndexError("out of columns")
        return super().forward(x, context, state)


class Stateful(MultiHeadAttention):
    def init_state(self, batch, capacity):
        raise KeyError("capacity")


class TornState(BufferState):
    def reorder(self, index):
        raise TypeError("rows are torn")


class Torn(MultiHeadAttention):
    def init_state(self, batch, capacity):
        return TornState(super().init_state(batch, capacity).buffer)


class Tripping(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        raise ZeroDivisionError("by hand")


class FailsBackward(GELU):
    def forward(self, x, context):
        return Tripping.apply(super().forward(x, context))


class FailingFfn(GELU):
    def forward(self, x, context):
        return x + torch.ones(3)


class FailingNorm(RMSNorm):
    def forward(self, x):
        return super().forward(x)[..., :-1, :]


class FailingPosition(Learned):
    def embed(self, x, positions):
        return super().embed(x, positions + 1000)


class FailingHead(LanguageModelHead):
    def forward(self, x, select=None):
        raise ValueError("no head for this")


class Unbuilt(GELU):
    def __init__(self, d_model: int, d_ff: int):
        super().__init__(d_model, d_ff)
        self.width = {}["width"]


class Refusing(MultiHeadAttention):
    def forward(self, x, context, state=None):
        raise SpecError("not here")


class Hungry(MultiHeadAttention):
    def forward(self, x, context, state=None):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 34359738368 bytes.")


CLASSES = {"attention": [Failing, Narrow, Pair, LaterFailing, Stateful, Torn, Refusing, Hungry],
           "ffn": [FailingFfn, FailsBackward, Unbuilt], "norm": [FailingNorm], "position": [FailingPosition],
           "head": [FailingHead]}


@pytest.fixture(autouse=True)
def _registered():
    entries = [Entry(kind, cls.__name__.lower(), f"{__name__}:{cls.__name__}", "tests", "0")
               for kind, classes in CLASSES.items() for cls in classes]
    with use_registry(Registry([*discover(), *entries])):
        yield


def last_layer(slot, name):
    return {"layers": [{}, {slot: f"tests:{name}"}], "position": "learned"}


FORWARD = pytest.mark.parametrize(("fields", "text", "cause"), [
    (last_layer("attention", "failing"),
     rf"^attention 'tests:failing' \(layer 1, slot attention\): RuntimeError: no such luck at .*{HERE}:\d+$", RuntimeError),
    (last_layer("attention", "narrow"), r"^attention 'tests:narrow' \(layer 1, slot attention\): its output for \[2, 3, 16\] "
     r"is \[2, 2, 16\], where \[2, 3, 16\] is expected: RuntimeError: ", RuntimeError),
    (last_layer("attention", "pair"), r"'tests:pair' \(layer 1, slot attention\): .* is a tuple, where", TypeError),
    (last_layer("ffn", "failingffn"), rf"^ffn 'tests:failingffn' \(layer 1, slot ffn\): RuntimeError: The size .*{HERE}:\d+$",
     RuntimeError),
    (last_layer("norm", "failingnorm"), r"^norm 'tests:failingnorm' \(layer 1, slot norm\): its output for", RuntimeError),
    ({"position": "tests:failingposition"}, rf"^position 'tests:failingposition' \(slot position\): IndexError: .*{HERE}:\d+$",
     IndexError),
    ({"head": "tests:failinghead"}, rf"^head 'tests:failinghead' \(slot head\): ValueError: no head .*{HERE}:\d+$", ValueError),
])


@FORWARD
def test_what_fails_in_a_pass_is_told_with_name_slot_and_line(fields, text, cause):
    with pytest.raises(ComponentError, match=text) as raised:
        writing(n_layers=2, **fields)(torch.ones(2, 5, dtype=torch.long))
    assert type(raised.value.__cause__) is cause


@FORWARD
def test_so_it_is_in_a_run_which_adds_its_folder(tmp_path, texts, fields, text, cause):
    config = TrainConfig(train_path=str(texts), work_dir=str(tmp_path / "runs"), batch_size=4, max_steps=2, precision=32,
                         tokenizer_vocab_size=300, cache=False,
                         model_config={"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 32, **fields})
    with pytest.raises(ComponentError, match=text.replace("$", r" \(nothing was saved")) as raised:
        Run(config).fit()
    assert type(raised.value.__cause__) is cause
    assert len(str(raised.value).splitlines()) == 1


@FORWARD
@pytest.mark.parametrize("compile", [False, True])
def test_so_it_is_in_decoding(fields, text, cause, compile):
    engine = Engine(writing(n_layers=2, **fields), BYTES, compile=compile)
    with pytest.raises(ComponentError, match=text) as raised:
        list(engine.generate(["some text"], Sampling(), max_new_tokens=4))
    assert type(raised.value.__cause__) is cause


@pytest.mark.parametrize(("name", "text"), [
    ("laterfailing", r"^attention 'tests:laterfailing' \(layer 1, slot attention\): IndexError: out of columns at "),
    ("stateful", r"^attention 'tests:stateful' \(layer 1, slot attention\): KeyError: 'capacity' at "),
    ("torn", r"^attention 'tests:torn' \(layer 1, slot attention\): TypeError: rows are torn at ")])
def test_what_fails_in_decoding_only_is_told_too(name, text):
    model = writing(n_layers=2, **last_layer("attention", name))
    ends = int(model.generate(torch.ones(1, 3, dtype=torch.long), 1, use_state=False, temperature=0)[0, -1])
    prompts = torch.tensor([[1, 1, 1], [2, 3, 4]])  # the first row ends at once, so that rows are picked
    with pytest.raises(ComponentError, match=text):
        model.generate(prompts, 6, eos_id=ends, temperature=0)


def test_the_encoder_and_the_decoder_are_told_apart():
    model = writing(has_source=True, n_layers=2, cross_attention="tests:failing")
    with pytest.raises(ComponentError, match=r"'tests:failing' \(decoder layer 0, slot cross_attention\): RuntimeError"):
        model.generate(torch.ones(1, 4, dtype=torch.long), 4)
    model = writing(has_source=True, n_layers=2, **last_layer("attention", "failing"))
    with pytest.raises(ComponentError, match=r"'tests:failing' \(encoder layer 1, slot attention\): RuntimeError"):
        model.generate(torch.ones(1, 4, dtype=torch.long), 4)


@pytest.mark.parametrize(("compile", "checkpointed"), [(False, False), (False, True),
                                                        pytest.param(True, False, marks=pytest.mark.slow)])
def test_a_backward_pass_that_fails_is_told(tmp_path, texts, compile, checkpointed):
    config = TrainConfig(train_path=str(texts), work_dir=str(tmp_path / "runs"), batch_size=4, max_steps=2, precision=32,
                         tokenizer_vocab_size=300, cache=False, compile=compile, model_config={
                             "d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32, "ffn": "tests:failsbackward",
                             "activation_checkpointing": checkpointed})
    with pytest.raises(ComponentError, match=r"^ffn 'tests:failsbackward' \(layer 0, slot ffn\): .*by hand"):
        Run(config).fit()


def test_a_constructor_that_fails_is_told():
    with pytest.raises(ComponentError, match=rf"^ffn tests:unbuilt cannot be constructed: KeyError: 'width' at .*{HERE}:\d+$"):
        writing(ffn="tests:unbuilt")


def test_errors_on_purpose_and_memory_that_ran_out_stay_as_they_are():
    ids = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(SpecError, match=r"^not here$"):
        writing(attention="tests:refusing")(ids)
    with pytest.raises(OutOfMemory, match=r"^memory ran out"), memory_errors():
        writing(attention="tests:hungry").generate(ids)


def test_an_error_of_the_caller_blames_no_component():
    with pytest.raises(IndexError):
        writing()(torch.full((1, 4), 10_000))
