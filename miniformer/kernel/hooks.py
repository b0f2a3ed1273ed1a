"""What an extension can change in a run: pluggy hook specifications, and the plugin manager of one run.

An extension is a class in the entry-point group `miniformer.extension`. The keyword-only parameters of its constructor are its
options, and its methods marked with `hookimpl` are its hooks. It acts only in runs whose spec names it. Hooks may get more
arguments in later versions and lose none; an implementation takes those that it needs.
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
    """The hooks of a run.

    A hook that passes a value on (`batch`, `loss`, `metrics`) is implemented as a wrapper (`hookimpl(wrapper=True)`), which
    receives the value, changes it and returns it.
    """

    @hookspec
    def model_assembled(self, model: nn.Module) -> None:
        """Change the model in place, after it was built and before it is trained."""

    @hookspec
    def optimizer_groups(self, groups: list[dict[str, Any]], model: nn.Module) -> None:
        """Change the optimizer's parameter groups in place."""

    @hookspec
    def callbacks(self) -> list[Any]:
        """Give Lightning callbacks to add to the trainer's."""

    @hookspec(firstresult=True)
    def batch(self, batch: Batch, training: bool) -> Batch:
        """Change the batch before the model receives it."""

    @hookspec(firstresult=True)
    def loss(self, loss: LossTerm, batch: Batch, model: nn.Module) -> LossTerm:
        """Change the training loss of a batch."""

    @hookspec(firstresult=True)
    def metrics(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Change or add metrics of a pass over held-out data."""

    @hookspec
    def checkpoint_saved(self, folder: Path) -> None:
        """Act after a model was written to `folder`."""

    @hookspec
    def checkpoint_loaded(self, folder: Path, model: nn.Module) -> None:
        """Act after a model was read from `folder`."""


class _Unchanged:
    """The innermost implementation: what a hook returns if no extension changes it."""

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
    """Make extensions explicit: names as they are saved, and every option filled in."""
    for name, options in extensions.items():
        if options is not None and not isinstance(options, Mapping):
            raise SpecError(f"extension {name}: expected a mapping of options; found {options!r:.80}")
    specs = [resolve("extension", ComponentSpec(name=name, options=dict(options or {})))
             for name, options in extensions.items()]
    return {spec.name: spec.options for spec in specs}


def activate(extensions: Mapping[str, Any]) -> pluggy.PluginManager:
    """Make the plugin manager of a run with just these extensions, in this order.

    Args:
        extensions: names and their options.

    Raises:
        UserError: an unknown extension, wrong options, or a hook that does not fit its specification.
        RunError: a constructor failed. The manager's hooks raise it too, if they fail or return something unusable.
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
            raise RunError(f"extension {name} cannot be constructed: {type(error).__name__}: {error}") from error
        _guard(manager, name, extension)
    return manager


def _guard(manager: pluggy.PluginManager, name: str, extension: object) -> None:
    """Make errors in the hooks of an extension name the extension and the hook."""
    hooks = [hook for hook in vars(RunHooks) if not hook.startswith("_")]
    for caller in manager.get_hookcallers(extension) or ():
        for implementation in caller.get_hookimpls():
            if implementation.plugin is not extension:
                continue
            if caller.has_spec():
                guarded = _guarded(implementation, caller.name, f"extension {name}: its hook {caller.name}")
                # pluggy's own monitoring does not say which extension a call belongs to
                implementation.function = guarded  # type: ignore[misc]
            elif not implementation.optionalhook:
                raise SpecError(f"extension {name}: there is no hook {caller.name!r}"
                                f"{did_you_mean(caller.name, hooks) or '; there are: ' + ', '.join(hooks)}")


def _guarded(implementation: pluggy.HookImpl, hook: str, where: str) -> Callable[..., Any]:
    function: Callable[..., Any] = implementation.function

    def plain(*arguments: Any) -> Any:
        with _named(where):
            value = function(*arguments)
        return None if value is None else _checked_value(value, hook, where)

    def wrapper(*arguments: Any) -> Generator[Any, Any, Any]:
        with _named(where):
            value = yield from function(*arguments)
        return value if implementation.hookwrapper else _checked_value(value, hook, where)

    return wrapper if implementation.wrapper or implementation.hookwrapper else plain


def _checked_value(value: Any, hook: str, where: str) -> Any:
    """Return the value of a hook if the run can use it."""
    from torch import Tensor

    from .task import Batch, LossTerm

    fits, expected = {
        "callbacks": (isinstance(value, (list, tuple)), "a list of callbacks"),
        "batch": (isinstance(value, Batch), "a Batch"),
        "loss": (isinstance(value, LossTerm) and all(isinstance(part, Tensor) for part in value), "a LossTerm of two tensors"),
        "metrics": (isinstance(value, Mapping), "a mapping of names to values"),
    }.get(hook, (True, ""))
    if not fits:
        raise RunError(f"{where} returned {value!r:.80}; expected {expected}")
    return value


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Make errors inside say where they happened."""
    try:
        yield
    except MiniformerError:
        raise
    except Exception as error:
        raise RunError(f"{where} failed with {type(error).__name__}: {error}") from error
