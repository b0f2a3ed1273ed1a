"""Promises of an extension: its hooks fit their specifications, and it changes nothing but the run that names it."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from types import CodeType
from typing import Any

import numpy as np
import pluggy
import torch
from pydantic_core import to_jsonable_python
from torch import Tensor

from miniformer.contracts.kit import drawing
from miniformer.contracts.kit.case import Case, require, seeded, undisturbed
from miniformer.contracts.kit.component_under_test import ComponentUnderTest
from miniformer.contracts.kit.properties import Broken, Skip, contract
from miniformer.contracts.kit.rehearsal import Runs, rehearse
from miniformer.kernel.errors import did_you_mean
from miniformer.kernel.hooks import PROJECT, RunHooks, hookimpl
from miniformer.kernel.layout import Layout
from miniformer.kernel.task import Batch


@contract("extension", examples=0.5)
def hooks_fit_their_specification(case: Case) -> None:
    """It has at least one hook, and each hook has the name and the arguments of a hook that runs call. A method with the name
    and the arguments of a hook is marked as one, unless other methods use it.

    In training: a hook whose name is misspelt, or which is not marked, is never called, and the run is as if the extension were
    not installed.
    """
    extension = case.build_or_reject({}, case.options())
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(RunHooks)
    try:
        manager.register(extension, case.under_test.name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise Broken(" ".join(str(error).split())) from None
    require(bool(manager.get_hookcallers(extension)), "none of its methods is marked with hookimpl, so it does nothing")
    called = _called_hooks(manager, extension)
    for name, function in _methods(type(extension)).items():
        specified = getattr(RunHooks, name, None)
        if specified is None or name in called or _is_used(type(extension), name):
            continue
        fits = set(inspect.signature(function).parameters) <= set(inspect.signature(specified).parameters)
        require(not fits, f"its method {name} has the name of a hook and is not marked with hookimpl, so no run calls it")


def _called_hooks(manager: pluggy.PluginManager, extension: object) -> set[str]:
    """The names of its methods that are marked as hooks and that runs call."""
    return {caller.name for caller in manager.get_hookcallers(extension) or () if caller.has_spec()}


def _methods(cls: type) -> dict[str, Any]:
    """The public functions of a class and of its bases, but for those of `object` and of Lightning."""
    return {name: value for base in reversed(cls.__mro__) if not base.__module__.startswith("pytorch_lightning")
            for name, value in vars(base).items() if inspect.isfunction(value) and not name.startswith("_")}


def _is_used(cls: type, name: str) -> bool:
    """Whether the code of another method names it."""
    functions = [inspect.unwrap(value) for base in cls.__mro__ for key, value in vars(base).items()
                 if inspect.isfunction(value) and key != name]
    return any(name in code.co_names for function in functions if inspect.isfunction(function)
               for code in _codes(function.__code__))


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function and of those that are defined inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


@contract("extension", examples=0, note=True)
def names_near_a_hook_are_hooks(case: Case) -> None:
    """No optional hook and no public method has a name that is nearly that of a hook, and neither has a method of the Lightning
    callbacks that it gives.

    In training: nothing calls what is misspelt, and without the error that other hooks end in, nobody notices.
    """
    from pytorch_lightning import Callback  # here, since no other kind needs it, and it takes a second to import

    extension = case.build_or_reject({}, {})
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(RunHooks)
    manager.register(extension, case.under_test.name)
    hooks, called = list(_methods(RunHooks)), _called_hooks(manager, extension)
    marked = [caller.name for caller in manager.get_hookcallers(extension) or () if not caller.has_spec()]
    misspelt = [f"{name} names no hook{did_you_mean(name, hooks) or '; there are: ' + ', '.join(hooks)}" for name in marked]
    misspelt += _misspelt(type(extension), {*hooks, *marked, *vars(Callback)}, hooks)
    of_lightning = [name for name in vars(Callback) if name.startswith("on_")]
    for callback in (extension.callbacks() or ()) if "callbacks" in called else ():
        misspelt += _misspelt(type(callback), {*hooks, *vars(Callback)}, of_lightning)
    require(not misspelt, "; and ".join(misspelt))


def _misspelt(cls: type, known: set[str], names: Sequence[str]) -> list[str]:
    """What is said of each method that is none of the known ones, that is used by no other, and whose name is near to one."""
    return [f"{cls.__name__}.{name} is called by nobody{near}" for name in _methods(cls)
            if name not in known and not _is_used(cls, name) and (near := did_you_mean(name, names))]


@contract("extension", examples=0.3)
def evaluates_what_it_is_given(case: Case) -> None:
    """Its hook `batch` returns a batch of held-out data as it was, and draws no random number for it. In training, batches are
    the same under the same seed.

    In training: the measured figures are those of other data than the ones that were held out, or a run cannot be repeated.
    """
    options = case.options()
    layout, seed = case.layout(kinds=(drawing.FULL, drawing.PACKED), max_rows=4, max_length=9), case.draw("seed", drawing.seeds)
    results = []
    for _ in range(2):
        extension = case.build_or_reject({}, options)
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(RunHooks)
        manager.register(extension, case.under_test.name)
        if "batch" not in _called_hooks(manager, extension):
            raise Skip("it has no hook `batch`")
        manager.register(_Given(), "given")
        with _fixed_random_numbers(seed):
            results.append([_hooked(manager, _batch(layout, seed), training=True) for _ in range(3)])
            before, given = _random_states(), _tensors(_batch(layout, seed))
            evaluated = _hooked(manager, _batch(layout, seed), training=False)
            require(_random_states() == before, "with training=False it draws random numbers")
        _require_same(evaluated, given, "with training=False, a batch comes back changed")
    for first, second in zip(*results, strict=True):
        _require_same(second, first, "in training under the same seed, a batch is another the second time")


class _Given:
    """The batch that a run gives, to which hooks are wrapped around."""

    @hookimpl(trylast=True)
    def batch(self, batch: Batch) -> Batch:
        return batch


def _hooked(manager: pluggy.PluginManager, batch: Batch, training: bool) -> dict[str, Tensor]:
    """The tensors of a batch that went through the hooks.

    Raises:
        Skip: the hook fails, as one may that needs a model or a batch of another task.
    """
    try:
        return _tensors(manager.hook.batch(batch=batch, training=training))
    except Exception as error:  # an extension may fail in any way
        raise Skip(f"outside of a run its hook `batch` fails with {type(error).__name__}: {error}") from None


def _batch(layout: Layout, seed: int) -> Batch:
    """A batch of texts, as the task language-modeling makes it."""
    with seeded(seed):
        tokens = torch.randint(1, 300, layout.shape)
    tokens = torch.where(layout.real, tokens, 0)
    goes_on = (layout.documents == layout.documents.roll(-1, dims=1)) & layout.real
    goes_on[:, -1] = False
    return Batch(tokens, layout, {"following": torch.where(goes_on, tokens.roll(-1, dims=1), -1)})


def _tensors(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by name."""
    return {"inputs": batch.inputs, "documents": batch.layout.documents, "positions": batch.layout.positions, **batch.targets}


def _require_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    require(actual.keys() == expected.keys(), f"{what}: it has {', '.join(actual)}, and had {', '.join(expected)}")
    for name, value in expected.items():
        require(torch.equal(actual[name], value), f"{what}: {name} differs")


@contextmanager
def _fixed_random_numbers(seed: int) -> Iterator[None]:
    """Set all seeds of the process inside the block; afterwards the random states are as before."""
    states = random.getstate(), np.random.get_state()
    try:
        with seeded(seed):
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _random_states() -> bytes:
    return pickle.dumps((torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()))


@contract("extension", examples=0.5)
def making_one_changes_nothing(case: Case) -> None:
    """Building an instance draws no random number, changes no setting of the process, and replaces no function of torch.

    In training: every run has the same random numbers, whatever its seed, or other data and weights than without the extension.

    Seen: flash-fft-conv#26, whose import set torch's seed to 23.
    """
    options, state, environment = case.options(), torch.get_rng_state(), dict(os.environ)
    with undisturbed("building it"):
        try:
            case.build_or_reject({}, options)
            require(torch.equal(torch.get_rng_state(), state), "building it changes the random state of torch")
            require(dict(os.environ) == environment, "building it changes the environment")
        finally:
            torch.set_rng_state(state)
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update(environment)


@contract("extension", examples=0)  # one example is enough, since its options are the defaults
def installed_is_not_active(case: Case) -> None:
    """A run that does not name it has the same weights, to the last bit, whether its module is imported or not. Importing
    replaces no function of torch and changes no setting of the process.

    In training: results depend on which other packages are installed.

    Seen: flash-fft-conv#26, whose import set torch's seed to 23.
    """
    runs = _runs(case.under_test)
    require(runs.imported == runs.before, "once its module is imported, a run that does not name it has other weights")
    require(not runs.import_changes, f"importing its module changes {runs.import_changes}")


@contract("extension", examples=0)
def a_run_with_it_ends(case: Case) -> None:
    """A short run that names it comes to its end, or is refused with an error that is written for its user.

    In training: a run fails with a traceback, perhaps after hours.
    """
    runs = _runs(case.under_test)
    require(not runs.failed, f"a run of two steps ends with {runs.failed}")
    if runs.refused:
        raise Skip(f"it refuses the short run: {runs.refused}")


@contract("extension", examples=0)
def a_run_leaves_no_trace(case: Case) -> None:
    """A run that does not name it has the same weights before and after a run that does. The run that names it leaves the
    functions of torch and the settings of the process as they were.

    In training: the second run of a sweep is not the one that its settings describe.
    """
    runs = _runs(case.under_test)
    require(runs.after == runs.imported, "after a run that named it, a run that does not has other weights")
    require(not runs.run_changes, f"a run that names it changes {runs.run_changes}, and does not put it back")


def _runs(under_test: ComponentUnderTest) -> Runs:
    if "<locals>" in under_test.cls.__qualname__:
        raise Skip("it is defined inside a function, where no other process can import it")
    runs = _rehearsed(under_test.cls, json.dumps(to_jsonable_python(under_test.fixed), sort_keys=True))
    if runs.untried:
        raise Skip(f"in another process {runs.untried}")
    return runs


@cache
def _rehearsed(cls: type, options: str) -> Runs:
    return rehearse(cls, json.loads(options))
