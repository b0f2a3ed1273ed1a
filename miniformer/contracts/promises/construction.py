"""What components of all kinds promise of their making: options that count, a state that is saved, and nothing else touched."""

from __future__ import annotations

import io
import json
import pickle
import random
from collections.abc import Mapping
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


@cache
def ordinary_config() -> TransformerConfig:
    """The only size of an assembly."""
    return TransformerConfig(vocab_size=32, d_model=16, n_heads=2, n_layers=1, max_seq_len=64)


@contract(*KINDS)
def builds_from_its_options(case: Case) -> None:
    """It is built at ordinary sizes, from every set of options that it does not refuse with a ValueError, on the meta device
    too; a set of options survives JSON, and an option that it does not have is refused.

    In training: a run ends at its start, or a saved model cannot be made again.

    Seen: KempnerForge#180, where a checkpoint did not record what made the model.
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
        raise Broken("it takes an option that it does not have")
    if under_test.kind not in MODULE_KINDS:
        return
    sizes = case.sizes()
    built = case.build_or_reject(sizes, options)
    with torch.device("meta"):
        ghost = case.build_or_reject(sizes, options)
    require(shapes(built) == shapes(ghost), "on the meta device its parameters have other names or shapes")
    require(all(t.is_meta for t in [*ghost.parameters(), *ghost.buffers()]), "on the meta device it makes tensors elsewhere")


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter and buffer."""
    return {name: tuple(t.shape) for name, t in [*module.named_parameters(), *module.named_buffers()]}


@contract(*MODULE_KINDS, examples=0)  # one example, of which nothing is drawn
def every_option_counts(case: Case) -> None:
    """Each option makes a difference: to its shapes, its outputs, what it records or what it remembers.

    In training: a comparison of settings compares a model with itself.

    Seen: torchtune#1791, where attn_dropout was said to be ignored outside of training and was not.
    """
    choices = drawing.choices_of(case.under_test.cls)
    rng = random.Random(0)
    for name in sorted(choices.keys() - case.under_test.fixed.keys()):
        if len(choices[name]) < 2:
            continue
        for attempt in range(60):
            others = {} if not attempt else {other: rng.choice(found) for other, found in choices.items() if other != name}
            prints = {p for value in choices[name] if (p := _fingerprint(case, {**others, name: value})) is not None}
            if len(prints) > 1:
                break
        else:
            raise Broken(f"option {name!r} makes no difference: {', '.join(map(repr, choices[name][:4]))}")


def _fingerprint(case: Case, options: Mapping[str, Any]) -> bytes | None:
    """All that can be seen of a component with these options; None: it refuses them."""
    try:
        with seeded(0):
            module = case.under_test.build(ORDINARY_SIZES, options).double().train()
    except ValueError:
        return None
    with seeded(1), torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
        runner = ModuleRunner.of(case, module, torch.randn(2, 40, ORDINARY_SIZES["d_model"], dtype=torch.float64))
        seen: list[Any] = [shapes(module), runner.joined().numpy().tobytes(),
                           [(r.name, float(r.value.sum())) for r in runner.records]]
        if case.under_test.kind == "attention" and case.under_test.has_state:
            state = module.init_state(2, 3)
            seen.append(None if state is None else state.nbytes)
        if case.under_test.kind == "head":
            seen.append(module.tie(nn.Parameter(torch.randn(ORDINARY_SIZES["n_outputs"], ORDINARY_SIZES["d_model"], dtype=torch.float64))))
    return repr(seen).encode()


@contract(*MODULE_KINDS)
def is_saved_and_loaded(case: Case) -> None:
    """Its state_dict, written and loaded into a fresh one, gives the same outputs to the last bit, and pickling it does too.

    In training: parts that are not registered as parameters or buffers are not trained, not moved to the GPU, and lost on
    saving.

    Seen: parts kept in a Python list, which nn.ModuleList is made for.
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
        require(torch.equal(loaded, out), "loaded into a fresh one it gives other outputs")
        try:
            copy = pickle.loads(pickle.dumps(runner.module))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise Broken(f"it cannot be pickled for another process: {error}") from None
        require(torch.equal(ModuleRunner.of(case, copy, runner.x).joined(), out), "pickled it gives other outputs")


@contract(*MODULE_KINDS, examples=0.5)
def leaves_the_process_alone(case: Case) -> None:
    """Building it and running it in eval mode changes no random state beyond drawing its first weights, and no setting of
    torch.

    In training: every run has the same seed however it is set, or another part of the program computes in another precision.

    Seen: pytorch-lightning#20204, where loading a checkpoint moved the global random state.
    """
    sizes, options = case.sizes(), case.options()
    after_seed = []
    with undisturbed("building it"):
        for seed in (1, 2):
            with seeded(seed):
                module = case.build_or_reject(sizes, options).double().eval()
                after_seed.append(torch.get_rng_state())
    require(not torch.equal(*after_seed), "building it sets torch's seed")
    runner = ModuleRunner.of(case, module, case.tensor(2, 4, module.d_model))
    state = torch.get_rng_state()
    with undisturbed("running it"), torch.no_grad():
        runner.outputs()
    require(torch.equal(torch.get_rng_state(), state), "running it in eval mode draws from torch's random numbers")
