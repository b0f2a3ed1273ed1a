"""The table of slots agrees with the specs that have the fields."""

import ast
from pathlib import Path

import pytest

import miniformer.config
from miniformer.config.model_config import LayerSpec, TransformerConfig
from miniformer.config.slots import LAYER_SLOTS, MODEL_SLOTS, RUN_SLOTS, SLOTS, component_name, find_components
from miniformer.kernel import ComponentSpec, UnknownComponent
from miniformer.kernel.kinds import KINDS
from miniformer.train.train_config import TrainConfig


@pytest.mark.parametrize(("spec", "slots"), [
    (TransformerConfig, MODEL_SLOTS), (LayerSpec, LAYER_SLOTS), (TrainConfig, RUN_SLOTS)])
def test_the_fields_of_a_spec_that_hold_a_component_are_its_slots(spec, slots):
    fields = {name for name, field in spec.model_fields.items() if field.annotation in (ComponentSpec, ComponentSpec | None)}
    assert fields == set(slots)


def test_every_slot_has_a_kind_and_its_default_is_a_component_of_it():
    assert {slot.kind for slot in SLOTS.values()} <= KINDS.keys()
    find_components(SLOTS, {slot.name: slot.default for slot in SLOTS.values()})


@pytest.mark.parametrize("slot", RUN_SLOTS)
def test_a_run_starts_from_the_defaults_of_the_table(slot):
    assert getattr(TrainConfig(), slot).name == SLOTS[slot].default


@pytest.mark.parametrize("slot", [slot for slot in MODEL_SLOTS if SLOTS[slot].default])
def test_a_model_starts_from_the_defaults_of_the_table(slot):
    assert getattr(TransformerConfig(), slot).name == SLOTS[slot].default


@pytest.mark.parametrize(("value", "name"), [
    ("mha", "mha"), ({"name": "mha", "window": 4}, "mha"), (ComponentSpec(name="mha"), "mha"), (5, None), ({"name": 3}, None),
    ({}, None), (None, None)])
def test_a_name_is_read_from_every_form_of_a_component(value, name):
    assert component_name(value) == name


def test_cross_attention_is_an_attention():
    with pytest.raises(UnknownComponent, match="there is no attention named 'mhaa'"):
        find_components(["cross_attention"], {"cross_attention": "mhaa"})


def test_the_files_of_config_import_each_other_in_one_direction():
    """Imports in functions and under TYPE_CHECKING count too."""
    folder = Path(miniformer.config.__file__).parent
    imports = {}
    for path in folder.glob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        imports[path.stem] = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 1}
    while imports:
        leaves = [name for name, below in imports.items() if not below & imports.keys()]
        assert leaves, f"a circle of imports among {sorted(imports)}"
        for name in leaves:
            del imports[name]
