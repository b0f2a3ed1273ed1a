"""What an extension can change in a run: pluggy hook specifications, and the plugin manager of one run.

An extension is a class in the group `miniformer.extension`; its keyword-only constructor parameters are its options and
its methods marked with `hookimpl` are its hooks. Installed is not active: a run's manager holds just the extensions
that its spec names. Arguments are add-only, and an implementation takes those it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pluggy

from .errors import SpecError
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
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(RunHooks)
    manager.register(_Unchanged(), "miniformer")
    for name, options in resolve_extensions(extensions).items():
        cls = current_registry().load("extension", name)
        try:
            manager.register(cls(**arguments(cls, options)), name)
            manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise SpecError(f"extension {name}: {error}") from error
    return manager
