from importlib.metadata import version
from pathlib import Path

import torch

from miniformer.checkpoint.provenance import environment, provenance
from miniformer.kernel import Registry, discover, use_registry

FAKES = str(Path(__file__).parents[1] / "kernel" / "fakes")


def test_built_in_components_come_from_miniformer_alone():
    assert provenance({"ffn": {"name": "swiglu"}}) == {"providers": {"miniformer": version("miniformer")}}


def test_packages_of_nested_components_are_found():
    spec = {"layers": [{"ffn": {"name": "fine-parts:nested", "inner": {"name": "twin-one:twin"}}}],
            "attention": {"name": "mha"}}
    with use_registry(Registry([*discover(), *discover([FAKES])])):
        assert provenance(spec)["providers"] == {
            "fine-parts": "1.2", "miniformer": version("miniformer"), "twin-one": "1.0"}


def test_packages_of_extensions_are_found():
    spec = {"extensions": {"twin-one:lora": {"rank": 2}, "plain": {}}}
    with use_registry(Registry([*discover(), *discover([FAKES])])):
        assert provenance(spec)["providers"] == {"miniformer": version("miniformer"), "twin-one": "1.0"}


def test_a_name_that_no_distribution_registered_is_no_provider():
    assert provenance({"note": {"name": "see: below"}})["providers"].keys() == {"miniformer"}


def test_the_environment_says_what_numbers_depend_on():
    found = environment()
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert {"python", "pytorch-lightning", "pydantic", "tokenizers", "safetensors"} <= set(found)
