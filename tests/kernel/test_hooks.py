from typing import Annotated

import pytest
import torch
from pydantic import Field
from torch import nn

from miniformer.kernel import (
    Batch,
    Entry,
    Layout,
    LossTerm,
    Registry,
    RunError,
    SpecError,
    UnknownComponent,
    activate,
    hookimpl,
    use_registry,
)
from miniformer.kernel.hooks import resolve_extensions


class Scaled:
    """Scales the loss."""

    def __init__(self, *, by: Annotated[float, Field(gt=0)] = 2.0):
        self.by = by

    @hookimpl(wrapper=True)
    def loss(self):
        term = yield
        return LossTerm(term.sum * self.by, term.weight)


class Frozen:
    """Freezes every parameter, and takes only the arguments that it needs."""

    @hookimpl
    def model_assembled(self, model):
        model.requires_grad_(False)

    @hookimpl
    def optimizer_groups(self, groups):
        groups.clear()


class Logged:
    @hookimpl
    def callbacks(self):
        return ["logged"]


class Misspelt:
    @hookimpl
    def los(self, loss):
        return loss


class WrongArguments:
    @hookimpl
    def loss(self, term):
        return term


class Choosy:
    def __init__(self, *, even: int = 2):
        if even % 2:
            raise ValueError(f"{even} is odd")


class Failing:
    def __init__(self, *, at: str = "callbacks"):
        if at == "constructor":
            raise RuntimeError("boom")
        self.at = at

    def _fail(self, hook):
        if hook == self.at:
            raise ValueError("boom") from KeyError("its cause")

    @hookimpl
    def callbacks(self):
        self._fail("callbacks")

    @hookimpl(wrapper=True)
    def loss(self):
        term = yield
        self._fail("loss")
        return term


class Returning:
    """Returns what no hook should."""

    @hookimpl
    def callbacks(self):
        return 3

    @hookimpl
    def batch(self):
        return 3

    @hookimpl
    def loss(self):
        return 3.0

    @hookimpl
    def metrics(self):
        return 3


class ForgetsToReturn:
    @hookimpl(wrapper=True)
    def loss(self):
        yield


class PassesOn:
    """Says nothing, so that what was there is kept; and knows a hook of a later version."""

    @hookimpl
    def loss(self):
        return None

    @hookimpl(optionalhook=True)
    def of_tomorrow(self):
        pass


REGISTRY = Registry(Entry("extension", cls.__name__.lower(), f"{__name__}:{cls.__name__}", "acme", "1.0")
                    for cls in (Scaled, Frozen, Logged, Misspelt, WrongArguments, Choosy, Failing, Returning, ForgetsToReturn,
                                PassesOn))
BATCH = Batch(torch.zeros(1, 2, dtype=torch.long), Layout.full(1, 2), {})
MODEL = nn.Linear(1, 1)


@pytest.fixture(autouse=True)
def _registry():
    with use_registry(REGISTRY):
        yield


def loss(manager):
    return manager.hook.loss(loss=LossTerm(torch.tensor(3.0), torch.tensor(2.0)), batch=BATCH, model=MODEL)


def test_without_extensions_everything_passes_unchanged():
    hook = activate({}).hook
    assert hook.batch(batch=BATCH, training=True) is BATCH
    assert loss(activate({})) == LossTerm(3.0, 2.0)
    assert hook.metrics(values={"a": torch.tensor(1.0)}) == {"a": 1.0}
    assert hook.callbacks() == []


def test_installed_is_not_active():
    assert loss(activate({"frozen": {}})) == LossTerm(3.0, 2.0)


def test_a_wrapper_changes_the_loss():
    assert loss(activate({"scaled": {}})) == LossTerm(6.0, 2.0)


def test_an_extension_is_given_its_options():
    assert loss(activate({"scaled": {"by": 5}})) == LossTerm(15.0, 2.0)


def test_extensions_act_in_the_order_in_which_a_spec_names_them():
    for names in (["scaled", "frozen"], ["frozen", "scaled"]):
        extensions = dict.fromkeys(names)
        stored = [f"acme:{name}" for name in names]
        assert list(resolve_extensions(extensions)) == stored
        assert [name for name, _ in activate(extensions).list_name_plugin()] == ["miniformer", *stored]


def test_no_options_may_be_said_as_null():
    assert loss(activate({"scaled": None})) == LossTerm(6.0, 2.0)


def test_hooks_change_the_model_and_the_groups_in_place():
    model, groups = nn.Linear(1, 1), [{"params": []}]
    hook = activate({"frozen": {}}).hook
    hook.model_assembled(model=model)
    hook.optimizer_groups(groups=groups, model=model)
    assert not any(p.requires_grad for p in model.parameters())
    assert groups == []


def test_callbacks_of_all_extensions_are_collected():
    assert activate({"logged": {}, "scaled": {}}).hook.callbacks() == [["logged"]]


def test_two_runs_have_nothing_in_common():
    first, second = activate({"scaled": {"by": 5}}), activate({"scaled": {"by": 7}})
    assert (loss(first).sum, loss(second).sum) == (15.0, 21.0)


def test_a_spec_stores_qualified_names_and_every_option():
    assert resolve_extensions({"scaled": {}}) == {"acme:scaled": {"by": 2.0}}


def test_a_stored_spec_activates_the_same():
    assert loss(activate(resolve_extensions({"scaled": {"by": 5}}))) == LossTerm(15.0, 2.0)


@pytest.mark.parametrize("name", ["misspelt", "wrongarguments"])
def test_a_hook_that_does_not_fit_is_refused(name):
    with pytest.raises(SpecError, match=f"extension acme:{name}: "):
        activate({name: {}})


def test_an_unknown_hook_is_named():
    with pytest.raises(SpecError, match="extension acme:misspelt: there is no hook 'los'; did you mean 'loss'"):
        activate({"misspelt": {}})


@pytest.mark.parametrize(("hook", "given"), [
    ("callbacks", {}), ("loss", {"loss": LossTerm(torch.tensor(3.0), torch.tensor(2.0)), "batch": BATCH, "model": MODEL})])
def test_a_hook_that_fails_says_whose_it_is(hook, given):
    with pytest.raises(RunError, match=f"extension acme:failing: its hook {hook} failed with ValueError: boom") as error:
        getattr(activate({"failing": {"at": hook}}).hook, hook)(**given)
    assert isinstance(error.value.__cause__.__cause__, KeyError)


def test_a_constructor_that_fails_says_whose_it_is():
    with pytest.raises(RunError, match="extension acme:failing cannot be constructed: RuntimeError: boom"):
        activate({"failing": {"at": "constructor"}})


@pytest.mark.parametrize(("hook", "given", "expected"), [
    ("callbacks", {}, "3; expected a list of callbacks"),
    ("batch", {"batch": BATCH, "training": True}, "3; expected a Batch"),
    ("loss", {"loss": LossTerm(torch.tensor(3.0), torch.tensor(2.0)), "batch": BATCH, "model": MODEL},
     "3.0; expected a LossTerm of two tensors"),
    ("metrics", {"values": {}}, "3; expected a mapping of names to values"),
])
def test_what_a_hook_should_not_return_is_told(hook, given, expected):
    with pytest.raises(RunError) as error:
        getattr(activate({"returning": {}}).hook, hook)(**given)
    assert str(error.value) == f"extension acme:returning: its hook {hook} returned {expected}"


def test_a_wrapper_that_returns_nothing_is_told():
    with pytest.raises(RunError, match="acme:forgetstoreturn: its hook loss returned None; expected a LossTerm"):
        loss(activate({"forgetstoreturn": {}}))


def test_a_hook_that_returns_nothing_leaves_what_was_there():
    assert loss(activate({"passeson": {}})) == LossTerm(3.0, 2.0)


def test_an_unknown_extension_is_told():
    with pytest.raises(UnknownComponent, match="there is no extension named 'lora'"):
        activate({"lora": {}})


@pytest.mark.parametrize(("options", "text"), [
    ({"by": -1}, r"extension scaled.by: input should be greater than 0; found -1"),
    ({"bye": 1}, r"did you mean 'by'\?"),
    (3, "extension scaled: expected a mapping of options; found 3"),
])
def test_wrong_options_are_told(options, text):
    with pytest.raises(SpecError, match=text):
        activate({"scaled": options})


def test_options_that_a_constructor_refuses_are_told():
    with pytest.raises(SpecError, match="extension acme:choosy: 3 is odd"):
        activate({"choosy": {"even": 3}})
