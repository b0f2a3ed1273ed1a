"""Promises of all kinds about construction: options that count, weights that can be saved, and a process left as it was."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from hypothesis import reject
from torch import nn

from miniformer.config.model_config import TransformerConfig
from miniformer.contracts.kit import drawing
from miniformer.contracts.kit.case import Case, require, seeded, undisturbed
from miniformer.contracts.kit.module_runner import MODULE_KINDS, ModuleRunner
from miniformer.contracts.kit.properties import Broken, contract
from miniformer.kernel.errors import SpecError
from miniformer.kernel.kinds import KINDS
from miniformer.kernel.options import complete, options_of

ORDINARY_SIZES: dict[str, Any] = {"d_model": 16, "n_heads": 2, "d_ff": 24, "max_seq_len": 64, "n_outputs": 5, "lr": 0.01,
                                  "weight_decay": 0.1, "total_steps": 20, "warmup_steps": 4}

LONG = 60
"""Columns of a row that is longer than usual, and still within `max_seq_len`."""


@cache
def ordinary_config() -> TransformerConfig:
    """The config that an assembly is built from; an assembly has no other size."""
    return TransformerConfig(vocab_size=32, d_model=16, n_heads=2, n_layers=1, max_seq_len=64)


@contract(*KINDS)
def builds_from_its_options(case: Case) -> None:
    """It can be built at ordinary sizes, also on the meta device. It either accepts a set of options or refuses it with a
    ValueError, options survive JSON, and an option that it does not have is refused.

    In training: a run ends at its start, or a saved model cannot be rebuilt.

    Seen: KempnerForge#180, where a checkpoint did not record the settings of its model.
    """
    options = case.options()
    under_test = case.under_test
    try:
        under_test.build({**ORDINARY_SIZES, "config": ordinary_config()}, {})
    except ValueError as error:
        if not any(option.is_required() for option in options_of(under_test.cls).model_fields.values()):
            raise Broken(f"it refuses ordinary sizes and its own defaults: {error}") from None
    try:
        chosen = complete(under_test.cls, {**options, **under_test.fixed}, under_test.name)
        again = complete(under_test.cls, json.loads(json.dumps(chosen)), under_test.name)
    except SpecError:
        reject()
    require(again == chosen, f"options changed on their way through JSON: {chosen} and {again}")
    try:
        complete(under_test.cls, {**chosen, "no_such_option": 1}, under_test.name)
    except SpecError:
        pass
    else:
        raise Broken("it accepts an option that it does not have")
    if under_test.kind not in MODULE_KINDS:
        return
    sizes = case.sizes()
    module = case.build_or_reject(sizes, options)
    with torch.device("meta"):
        on_meta = case.build_or_reject(sizes, options)
    require(shapes(module) == shapes(on_meta), "on the meta device its parameters have other names or shapes")
    tensors = [*on_meta.parameters(), *on_meta.buffers()]
    require(all(tensor.is_meta for tensor in tensors), "on the meta device it makes tensors elsewhere")


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter and buffer, by name."""
    return {name: tuple(t.shape) for name, t in [*module.named_parameters(), *module.named_buffers()]}


@contract(*MODULE_KINDS, examples=0)  # one example is enough, since nothing is drawn
def every_option_counts(case: Case) -> None:
    """Each option makes a difference: to shapes, outputs, recorded values or the size of the state.

    In training: an experiment that compares settings of this option compares a model with itself.

    Seen: torchtune#1791, where attn_dropout was documented to have no effect outside of training, and had one.
    """
    choices = drawing.choices_of(case.under_test.cls)
    for name in sorted(choices.keys() - case.under_test.fixed.keys()):
        if len(choices[name]) > 1 and not _differ(case, name, choices[name], 60):
            raise Broken(f"option {name!r} makes no difference: {', '.join(map(repr, choices[name][:4]))}")


@contract(*MODULE_KINDS, examples=0)  # one example is enough, since nothing is drawn
def zero_is_a_value(case: Case) -> None:
    """An option that is set to 0, False or an empty text is not replaced by its default, as `option or default` does.

    In training: the one setting that was to switch something off leaves it on.
    """
    fields = options_of(case.under_test.cls).model_fields
    choices = drawing.choices_of(case.under_test.cls)
    required = {name: values[0] for name, values in choices.items() if fields[name].is_required()}
    for name in sorted(fields.keys() - case.under_test.fixed.keys() - required.keys()):
        default = fields[name].default
        for zero in (0, 0.0, False, ""):
            if not default or type(zero) is not type(default) or _fingerprint(case, {**required, name: zero}, 40) is None:
                continue
            values = [zero, default]
            require(_differ(case, name, values, 20) or _differ(case, name, values, 3, LONG),
                    f"option {name!r} set to {zero!r} gives the outputs of its default, {default!r}")


def _differ(case: Case, name: str, values: Sequence[Any], attempts: int, length: int = 40) -> bool:
    """Whether the component differs with the values of an option.

    With the defaults of the other options first; then with random settings of them, on which this one may depend.
    """
    rng, choices = random.Random(0), drawing.choices_of(case.under_test.cls)
    for attempt in range(attempts):
        others = {other: rng.choice(all_values) for other, all_values in choices.items() if attempt and other != name}
        if len({_fingerprint(case, {**others, name: value}, length) for value in values} - {None}) > 1:
            return True
    return False


def _fingerprint(case: Case, options: Mapping[str, Any], length: int) -> bytes | None:
    """Everything about a component with these options that can be observed, as bytes; None if it refuses them."""
    try:
        with seeded(0):
            module = case.under_test.build(ORDINARY_SIZES, options).double().train()
    except ValueError:
        return None
    with seeded(1), torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
        runner = ModuleRunner.of(case, module, torch.randn(2, length, ORDINARY_SIZES["d_model"], dtype=torch.float64))
        observed: list[Any] = [shapes(module), runner.joined().numpy().tobytes(),
                               [(record.name, float(record.value.sum())) for record in runner.records]]
        if case.under_test.kind == "attention" and case.under_test.has_state:
            state = module.init_state(2, 3)
            observed.append(None if state is None else state.nbytes)
        if case.under_test.kind == "head":
            shape = ORDINARY_SIZES["n_outputs"], ORDINARY_SIZES["d_model"]
            observed.append(module.tie(nn.Parameter(torch.randn(*shape, dtype=torch.float64))))
    return repr(observed).encode()


@contract(*MODULE_KINDS, examples=0.5)
def is_saved_and_loaded(case: Case) -> None:
    """A new component that loads its saved state_dict has the same outputs to the last bit; so has a copy made by pickle.

    In training: tensors that are not registered as parameters or buffers are not trained, not moved to the GPU, and lost on
    saving.

    Seen: layers kept in a Python list, for which nn.ModuleList exists.
    """
    runner = ModuleRunner.drawn(case)
    file = io.BytesIO()
    torch.save(runner.module.state_dict(), file)
    with seeded(12345):
        fresh = case.build_or_reject(case.last_sizes, case.chosen_options).double().eval()
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    with torch.no_grad():
        out = runner.joined()
        loaded = ModuleRunner.of(case, fresh, runner.x).joined()
        require(torch.equal(loaded, out), "a new one that loads its state_dict gives other outputs")
        try:
            copy = pickle.loads(pickle.dumps(runner.module))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise Broken(f"it cannot be pickled for another process: {error}") from None
        require(torch.equal(ModuleRunner.of(case, copy, runner.x).joined(), out), "a copy made by pickle gives other outputs")


@contract(*MODULE_KINDS, examples=0.5)
def leaves_the_process_alone(case: Case) -> None:
    """Building it draws initial weights from torch's random numbers, and changes no other state of the process. Running it in
    eval mode changes none at all.

    In training: every run has the same random numbers, whatever its seed, or other parts of the program compute in another
    precision.

    Seen: pytorch-lightning#20204, where loading a checkpoint changed the global random state.
    """
    sizes, options = case.sizes(), case.options()
    states_after = []
    with undisturbed("building it"):
        for seed in (1, 2):
            with seeded(seed):
                module = case.build_or_reject(sizes, options).double().eval()
                states_after.append(torch.get_rng_state())
    require(not torch.equal(*states_after), "building it sets torch's seed")
    runner = ModuleRunner.of(case, module, case.tensor(2, 4, module.d_model))
    state = torch.get_rng_state()
    with undisturbed("running it"), torch.no_grad():
        runner.outputs()
    require(torch.equal(torch.get_rng_state(), state), "running it in eval mode draws from torch's random numbers")


@contract(*MODULE_KINDS, examples=0.1)
def instances_share_nothing(case: Case) -> None:
    """Two that are built alike, without options, under one seed, are alike; and training one leaves the other as it was.

    In training: the layers of a model change each other's weights and tables, and the second model of a process is not the
    first.
    """
    sizes, options = case.sizes(), _required_options(case)
    with seeded(0):
        one = case.build_or_reject(sizes, options).double()
    with seeded(0):
        other = case.build_or_reject(sizes, options).double()
    shapes_differ = {name for name, _ in shapes(one).items() ^ shapes(other).items()}
    require(not shapes_differ, f"the second one has other parameters: {', '.join(sorted(shapes_differ))}")
    x = case.tensor(2, 5, one.d_model)
    first, second = (ModuleRunner.of(case, module, x, fixed=True) for module in (one, other))
    with torch.no_grad():
        before = second.joined()
        require(torch.equal(first.joined(), before), "the second one has other outputs than the first")
        first.joined(x + 3)
        for parameter in one.parameters():
            parameter.add_(1)
        require(torch.equal(second.joined(), before), "training the first one changes the outputs of the second")


def _required_options(case: Case) -> dict[str, Any]:
    """The options that have no default, drawn; the others are left out."""
    fields = options_of(case.under_test.cls).model_fields
    return {name: value for name, value in case.options().items() if fields[name].is_required()}


@contract(*MODULE_KINDS, note=True, examples=0)
def reads_no_environment(case: Case) -> None:
    """Building and running it reads no variable of the environment.

    In training: the same config gives another model on another machine, and nothing that is saved says so.
    """
    with _variables_read() as read:
        module = case.component(options=_required_options(case))
        with torch.no_grad():
            ModuleRunner.of(case, module, case.tensor(1, 3, module.d_model)).outputs()
    require(not read, f"it reads {', '.join(sorted(read))}")


@contextmanager
def _variables_read() -> Iterator[set[str]]:
    """Collects the names of the environment's variables that are read in the block, but not by torch or pydantic."""
    environment: Any = type(os.environ)
    usual, read = environment.__getitem__, set[str]()

    def noting(self: Any, name: str) -> Any:
        frame = sys._getframe(1)
        while frame.f_back and frame.f_globals.get("__name__") in ("os", "_collections_abc", "collections.abc"):
            frame = frame.f_back
        reader = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if reader not in {"torch", "pydantic"} | sys.stdlib_module_names:
            read.add(str(name))
        return usual(self, name)

    environment.__getitem__ = noting
    try:
        yield read
    finally:
        environment.__getitem__ = usual
