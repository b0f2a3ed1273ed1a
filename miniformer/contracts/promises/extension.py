"""What an extension promises: hooks that fit their specifications, and no change to anything but the run that names it."""

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
    """It has hooks, each of which is one of a run, and takes arguments that the run gives.

    In training: a hook whose name is misspelt is never called, and the run is as if nothing had been installed.
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
    """To make one, as each run that names it does, draws no random number and sets nothing for the whole process.

    In training: every run has the same seed however it is set, or other data and weights than without it.

    Seen: flash-fft-conv#26, whose import set torch's seed to 23.
    """
    options, state, environment = case.options(), torch.get_rng_state(), dict(os.environ)
    with undisturbed("making it"):
        try:
            case.build_or_reject({}, options)
            require(torch.equal(torch.get_rng_state(), state), "making it changes the random state of torch")
            require(dict(os.environ) == environment, "making it changes the environment")
        finally:
            torch.set_rng_state(state)
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update(environment)


@contract("extension", examples=0)  # one example: options are those that it has unless told otherwise
def installed_is_not_active(case: Case) -> None:
    """A run that does not name it has the same weights, to the last bit, whether its module is imported or not.

    In training: results hang on what else is installed.

    Seen: flash-fft-conv#26, whose import set torch's seed to 23.
    """
    runs = _runs(case.under_test)
    require(runs.imported == runs.before, "once its module is imported, a run that does not name it has other weights")


@contract("extension", examples=0)
def a_run_with_it_ends(case: Case) -> None:
    """A short run that names it ends, or is refused with an error that tells its user what would be right.

    In training: a run fails with a traceback, perhaps after hours.
    """
    runs = _runs(case.under_test)
    require(not runs.failed, f"a run of two steps ends with {runs.failed}")
    if runs.refused:
        raise Skip(f"it refuses the run that is tried: {runs.refused}")


@contract("extension", examples=0)
def a_run_leaves_no_trace(case: Case) -> None:
    """After a run that named it, a run that does not has the weights that it had before.

    In training: the second run of a sweep is not the run that its settings say.
    """
    runs = _runs(case.under_test)
    require(runs.after == runs.imported, "after a run that named it, one that does not has other weights")


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
