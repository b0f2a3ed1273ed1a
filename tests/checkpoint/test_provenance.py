from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from miniformer.checkpoint.provenance import environment, other_versions, provenance
from miniformer.kernel import Entry, Registry, UnknownComponent, discover, use_registry
from miniformer.kernel.registry import Availability

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


SAVED = {"providers": {"acme-parts": "1.5", "acme-more": "0.2", "miniformer": version("miniformer")},
         "model": {"ffn": {"name": "acme-parts:sine"}, "cross_attention": {"name": "acme-parts:look"},
                   "layers": [{"ffn": {"name": "acme-parts:sine"}},
                              {"attention": {"name": "mha", "inner": {"name": "acme-more:x"}}}]},
         "task": {"name": "acme-more:parity"}, "extensions": {"acme-parts:shout": {}}}


def test_a_missing_package_is_told_with_what_the_model_needs_of_it():
    with pytest.raises(UnknownComponent) as error:
        other_versions(SAVED)
    assert str(error.value) == (
        "missing: this model was made with acme-parts, acme-more, not installed here (the model needs extension shout, "
        "ffn sine, attention look, inner x, task parity); to get it: pip install acme-parts==1.5 acme-more==0.2")


def test_a_package_whose_metadata_are_broken_is_missing_and_its_path_is_told():
    broken = Entry("distribution", "acme_parts-1.5.dist-info", "", "acme_parts-1.5.dist-info", "?", Availability.BROKEN,
                   "metadata: /site/acme_parts-1.5.dist-info: no METADATA in it, or an empty one")
    with use_registry(Registry([*discover(plugins="none"), broken])), pytest.raises(UnknownComponent) as error:
        other_versions({"providers": {"acme-parts": "1.5"}})
    assert str(error.value).endswith(f"pip install acme-parts==1.5\n  {broken.reason}")


def test_the_version_is_not_that_of_stale_metadata():
    stale = Entry("distribution", "acme-0.9.dist-info", "", "acme", "0.9", Availability.STALE, "metadata: left over")
    good = Entry("ffn", "fine", "x:Y", "acme", "1.0")
    with use_registry(Registry([*discover(plugins="none"), stale, good])):
        assert provenance({"ffn": {"name": "acme:fine"}})["providers"]["acme"] == "1.0"
        assert other_versions({"providers": {"acme": "1.0"}}) == []


def test_a_package_whose_version_cannot_be_read_is_unknown(monkeypatch):
    monkeypatch.setattr("miniformer.checkpoint.provenance.version_of", lambda name: None)
    assert environment()["torch"] == "unknown"
