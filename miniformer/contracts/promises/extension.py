"""Promises of an extension: its hooks fit their specifications, and it changes nothing but the run that names it."""

from __future__ import annotations

import json
import os
from functools import cache

import pluggy
import torch
from pydantic_core import to_jsonable_python

from miniformer.contracts.kit.case import Case, require, undisturbed
from miniformer.contracts.kit.component_under_test import ComponentUnderTest
from miniformer.contracts.kit.properties import Broken, Skip, contract
from miniformer.contracts.kit.rehearsal import Runs, rehearse
from miniformer.kernel.hooks import PROJECT, RunHooks


@contract("extension", examples=0.5)
def hooks_fit_their_specification(case: Case) -> None:
    """It has at least one hook, and each hook has the name and the arguments of a hook that runs call.

    In training: a hook whose name is misspelt is never called, and the run is as if the extension were not installed.
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


@contract("extension", examples=0.5)
def making_one_changes_nothing(case: Case) -> None:
    """Building an instance draws no random number, and changes no setting of the process.

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
    """A run that does not name it has the same weights, to the last bit, whether its module is imported or not.

    In training: results depend on which other packages are installed.

    Seen: flash-fft-conv#26, whose import set torch's seed to 23.
    """
    runs = _runs(case.under_test)
    require(runs.imported == runs.before, "once its module is imported, a run that does not name it has other weights")


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
    """A run that does not name it has the same weights before and after a run that does.

    In training: the second run of a sweep is not the one that its settings describe.
    """
    runs = _runs(case.under_test)
    require(runs.after == runs.imported, "after a run that named it, a run that does not has other weights")


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
