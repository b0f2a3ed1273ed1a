"""Names of the version before still work, each with a warning that says the new one."""

import importlib
import sys

import pytest
import torch

from miniformer.kernel import Attention, Context, FeedForward, Layout, Memory, PositionEncoding, State
from miniformer.kernel.renamed import ATTRIBUTES, MEMBERS, MODULES

pytestmark = pytest.mark.filterwarnings("error::DeprecationWarning")


def renamed(old):
    return pytest.warns(DeprecationWarning, match=f"{old}.* is now .*; the old name goes with miniformer")


@pytest.mark.parametrize(("old", "new"), MODULES.items())
def test_a_module_that_moved_is_found_under_its_old_name(old, new):
    sys.modules.pop(old, None)
    with renamed(old):
        assert importlib.import_module(old) is importlib.import_module(new)


@pytest.mark.parametrize(("module", "old", "new"), [(module, old, new) for module, names in ATTRIBUTES.items()
                                                    for old, new in names.items()])
def test_a_function_or_class_is_found_under_its_old_name(module, old, new):
    loaded = importlib.import_module(module)
    with renamed(old):
        assert getattr(loaded, old) is getattr(loaded, new)


def test_a_name_that_never_was_is_unknown():
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from miniformer.kernel.masks import nothing  # noqa: F401
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("miniformer.model.nothing")


def test_every_member_that_was_renamed_exists():
    kernel = importlib.import_module("miniformer.kernel.interfaces")
    classes = {cls.__name__: cls for cls in (kernel.Component, PositionEncoding, State, Context, Layout)}
    for name, members in MEMBERS.items():
        for new in members.values():
            assert hasattr(classes[name], new)


def test_a_member_is_called_by_its_old_name():
    layout = Layout.full(2, 3)
    with renamed("Layout.following"):
        step = layout.following()
    with renamed("Layout.then"):
        assert layout.then(step).shape == (2, 4)
    with renamed("Layout.beside"):
        assert layout.beside(layout, 3).shape == (4, 3)
    with renamed("Context.reading"):
        assert Context(layout).reading(Memory(torch.zeros(2, 3, 4), layout)).memory is not None


def test_a_subclass_may_define_what_was_renamed():
    with renamed(r".*Turned.prepare"):
        class Turned(PositionEncoding):
            def prepare(self, positions):
                return super().precompute(positions) + 1

    with renamed(r".*Turned.prepare"):
        assert Turned(4, 2, 8).prepare(torch.zeros(1)) == 1
    signals = Context(Layout.full(1, 3)).signals([Turned(4, 2, 8)])
    assert signals[0].where.tolist() == [[1, 2, 3]]


def test_an_old_method_finds_that_of_its_parent():
    with renamed(r".*Parent.prepare"):
        class Parent(PositionEncoding):
            def prepare(self, positions):
                return positions + 1

    with renamed(r".*Child.prepare"):
        class Child(Parent):
            def prepare(self, positions):
                return super().prepare(positions) * 2

    with renamed(r".*Parent.prepare"):
        assert Child(4, 2, 8).precompute(torch.zeros(1)) == 2


def test_class_data_may_have_their_old_names():
    with renamed(r".*Short.stands_for"):
        class Short(Attention):
            stands_for = {"attention": "mha"}

            def forward(self, x, context, state=None):
                return x

    with renamed(r".*Fixed.breaks"):
        class Fixed(FeedForward):
            breaks = {"works-on-each-position": "by design"}

            def forward(self, x, context):
                return x

    assert Short.shorthand_for == {"attention": "mha"}
    assert Fixed.known_violations == {"works-on-each-position": "by design"}
    with renamed("stands_for"):
        assert Short.stands_for == {"attention": "mha"}


def test_a_state_may_define_what_was_renamed():
    with renamed(r".*Counted\."):
        class Counted(State):
            reach = 3
            length = 5
            nbytes = 0
            shortest = property(lambda self: 2)

            def reorder(self, index): ...

            def truncate(self, length): ...

    assert (Counted.rewind_limit, Counted().min_length) == (3, 2)
