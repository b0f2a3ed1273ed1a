"""What an extension can change in a run: pluggy hook specifications, and the plugin manager of one run.

An extension is a class in the group `miniformer.extension`; its keyword-only constructor parameters are its options and
its methods marked with `hookimpl` are its hooks. Installed is not active: a run's manager holds just the extensions
that its spec names. Arguments are add-only, and an implementation takes those it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pluggy

from .errors import MiniformerError, RunError, SpecError, did_you_mean
from .options import arguments
from .registry import current_registry
from .spec import ComponentSpec, resolve

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from .task import Batch, LossTerm

PROJECT = "miniformer"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class RunHooks:
    """The hooks of a run. Those that return a value with `firstresult` are changed by wrappers (`wrapper=True`)."""

    @hookspec
    def model_assembled(self, model: nn.Module) -> None:
        """The model is built and not yet trained; change it in place."""

    @hookspec
    def optimizer_groups(self, groups: list[dict[str, Any]], model: nn.Module) -> None:
        """The optimizer's parameter groups; change them in place."""

    @hookspec
    def callbacks(self) -> list[Any]:
        """Lightning callbacks to add to the trainer's."""

    @hookspec(firstresult=True)
    def batch(self, batch: Batch, training: bool) -> Batch:
        """The batch that the model is given."""

    @hookspec(firstresult=True)
    def loss(self, loss: LossTerm, batch: Batch, model: nn.Module) -> LossTerm:
        """The training loss of a batch."""

    @hookspec(firstresult=True)
    def metrics(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The metrics of a pass over held-out data."""

    @hookspec
    def checkpoint_saved(self, folder: Path) -> None:
        """A model was written to `folder`."""

    @hookspec
    def checkpoint_loaded(self, folder: Path, model: nn.Module) -> None:
        """A model was read from `folder`."""


class _Unchanged:
    """What happens where no extension is active."""

    @hookimpl(trylast=True)
    def batch(self, batch: Batch) -> Batch:
        return batch

    @hookimpl(trylast=True)
    def loss(self, loss: LossTerm) -> LossTerm:
        return loss

    @hookimpl(trylast=True)
    def metrics(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return values


def resolve_extensions(extensions: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Extension names and options in their explicit form."""
    for name, options in extensions.items():
        if options is not None and not isinstance(options, Mapping):
            raise SpecError(f"extension {name}: expected a mapping of options; found {options!r:.80}")
    specs = [resolve("extension", ComponentSpec(name=name, options=dict(options or {})))
             for name, options in extensions.items()]
    return {spec.name: spec.options for spec in specs}


def activate(extensions: Mapping[str, Any]) -> pluggy.PluginManager:
    """The plugin manager of a run with just these extensions, by name and options, in this order.

    Raises:
        UserError: an unknown extension, wrong options, or a hook that does not fit its specification.
        RunError: a constructor fails; and, when they are called, so do hooks that fail or return what they should not.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(RunHooks)
    manager.register(_Unchanged(), "miniformer")
    for name, options in resolve_extensions(extensions).items():
        cls = current_registry().load("extension", name)
        try:
            extension = cls(**arguments(cls, options))
            manager.register(extension, name)
        except MiniformerError:
            raise
        except (pluggy.PluginValidationError, ValueError) as error:
            raise SpecError(f"extension {name}: {error}") from error
        except Exception as error:
            raise RunError(f"extension {name} cannot be made: {type(error).__name__}: {error}") from error
        _guard(manager, name, extension)
    return manager


def _guard(manager: pluggy.PluginManager, name: str, extension: object) -> None:
    """Have what goes wrong in the hooks of an extension say whose they are."""
    hooks = [hook for hook in vars(RunHooks) if not hook.startswith("_")]
    for caller in manager.get_hookcallers(extension) or ():
        for implementation in (one for one in caller.get_hookimpls() if one.plugin is extension):
            if caller.has_spec():
                guarded = _guarded(implementation, caller.name, f"extension {name}: its hook {caller.name}")
                implementation.function = guarded  # type: ignore[misc]  # pluggy's own monitoring does not say whose a call is
            elif not implementation.optionalhook:
                raise SpecError(f"extension {name}: there is no hook {caller.name!r}"
                                f"{did_you_mean(caller.name, hooks) or '; there are: ' + ', '.join(hooks)}")


def _guarded(implementation: pluggy.HookImpl, hook: str, where: str) -> Callable[..., Any]:
    function: Callable[..., Any] = implementation.function

    def plain(*given: Any) -> Any:
        with _named(where):
            found = function(*given)
        return None if found is None else _returned(found, hook, where)

    def wrapper(*given: Any) -> Generator[Any, Any, Any]:
        with _named(where):
            found = yield from function(*given)
        return found if implementation.hookwrapper else _returned(found, hook, where)

    return wrapper if implementation.wrapper or implementation.hookwrapper else plain


def _returned(found: Any, hook: str, where: str) -> Any:
    """What a hook returned, if the run can go on with it."""
    from torch import Tensor

    from .task import Batch, LossTerm

    fits, expected = {
        "callbacks": (isinstance(found, (list, tuple)), "a list of callbacks"),
        "batch": (isinstance(found, Batch), "a Batch"),
        "loss": (isinstance(found, LossTerm) and all(isinstance(one, Tensor) for one in found), "a LossTerm of two tensors"),
        "metrics": (isinstance(found, Mapping), "a mapping of names to values"),
    }.get(hook, (True, ""))
    if not fits:
        raise RunError(f"{where} returned {found!r:.80}; expected {expected}")
    return found


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Errors inside say where they were."""
    try:
        yield
    except MiniformerError:
        raise
    except Exception as error:
        raise RunError(f"{where} failed with {type(error).__name__}: {error}") from error
