import sys
from pathlib import Path

import pytest

from miniformer.kernel import (
    KINDS,
    AmbiguousComponent,
    Entry,
    Registry,
    UnavailableComponent,
    UnknownComponent,
    current_registry,
    discover,
    use_registry,
)
from miniformer.kernel.conformance import why_not_a_component
from miniformer.kernel.registry import Availability
from miniformer.model.attention import MultiHeadAttention
from miniformer.model.feedforward import GELU, SwiGLU

FAKES = str(Path(__file__).parent / "fakes")
FINE = Entry("ffn", "fine", "miniformer.model.feedforward:GELU", "acme", "1.0")


@pytest.fixture
def fakes(monkeypatch):
    """The registry of the built-in components and of the fake distributions."""
    built_in = discover(plugins="none")
    monkeypatch.syspath_prepend(FAKES)
    return Registry([*built_in, *discover([FAKES])])


def state_of(registry, kind, name, distribution):
    [entry] = [e for e in registry.entries(kind) if (e.name, e.distribution) == (name, distribution)]
    return entry.state.value, entry.reason


# --- a registry is a value, made of entries

def test_a_component_is_found_by_its_short_and_its_qualified_name():
    registry = Registry([FINE])
    assert registry.find("ffn", "fine") == registry.find("ffn", "acme:fine") == FINE


def test_loading_gives_the_class():
    assert Registry([FINE]).load("ffn", "fine") is GELU


@pytest.mark.parametrize("name", ["talking-heads", "talking_heads", "Talking_Heads", " talking-heads ",
                                  "acme:Talking_Heads"])
def test_case_and_underscores_do_not_tell_names_apart(name):
    registry = Registry([Entry("attention", "talking-heads", "x:Y", "acme", "1.0")])
    assert registry.find("attention", name).name == "talking-heads"


def test_a_distribution_is_named_in_any_of_its_spellings():
    registry = Registry([Entry("ffn", "fine", "miniformer.model.feedforward:GELU", "acme-fine-parts", "1.0")])
    assert registry.find("ffn", "Acme_fine.parts:fine").distribution == "acme-fine-parts"


def test_names_of_different_kinds_do_not_meet():
    registry = Registry([FINE, Entry("norm", "fine", "x:Y", "other", "1.0")])
    assert registry.find("ffn", "fine").distribution == "acme"
    assert registry.find("norm", "fine").distribution == "other"


def test_a_spec_saves_the_short_name_of_a_built_in_and_the_qualified_one_of_others():
    assert current_registry().find("ffn", "swiglu").saved == "swiglu"
    assert Registry([FINE]).find("ffn", "fine").saved == "acme:fine"


def test_the_first_of_two_equal_declarations_counts():
    again = Entry("ffn", "fine", "miniformer.model.feedforward:SwiGLU", "acme", "0.9")
    assert Registry([FINE, again]).load("ffn", "fine") is GELU


@pytest.mark.parametrize("state", [Availability.BLOCKED, Availability.BROKEN, Availability.INCOMPATIBLE])
def test_what_cannot_be_used_says_why(state):
    registry = Registry([Entry("ffn", "fine", "x:Y", "acme", "1.0", state, "because of the weather")])
    with pytest.raises(UnavailableComponent, match=rf"'fine' of acme 1.0 is {state.value}: because of the weather"):
        registry.find("ffn", "fine")


def test_entries_are_in_order_of_kind_and_name_with_built_ins_before_their_rivals():
    entries = [Entry("norm", "a", "x:Y", "acme", "1"), Entry("attention", "b", "x:Y", "acme", "1"),
               Entry("attention", "a", "x:Y", "acme", "1"), Entry("attention", "a", "x:Y", "miniformer", "1")]
    assert [(e.kind, e.qualified) for e in Registry(entries).entries()] == [
        ("attention", "miniformer:a"), ("attention", "acme:a"), ("attention", "acme:b"), ("norm", "acme:a")]


def test_a_registry_is_in_force_only_inside_its_block():
    before = current_registry()
    with use_registry(Registry([FINE])) as inside:
        assert current_registry() is inside
    assert current_registry() is before


def test_the_default_registry_has_the_built_in_components():
    assert current_registry().load("attention", "mha") is MultiHeadAttention
    assert current_registry().load("ffn", "miniformer:swiglu") is SwiGLU


# --- ambiguity

TWINS = [Entry("ffn", "twin", "miniformer.model.feedforward:GELU", "twin-one", "1.0"),
         Entry("ffn", "twin", "miniformer.model.feedforward:SwiGLU", "twin-two", "2.0")]


def test_two_packages_with_one_name_are_an_error_only_where_it_is_used():
    registry = Registry([*TWINS, FINE])
    registry.load_all()
    assert registry.load("ffn", "fine") is GELU
    with pytest.raises(AmbiguousComponent, match="twin-one:twin or twin-two:twin"):
        registry.find("ffn", "twin")


def test_qualified_names_tell_two_packages_apart():
    registry = Registry(TWINS)
    assert [registry.load("ffn", f"{e.distribution}:twin") for e in TWINS] == [GELU, SwiGLU]


def test_the_list_says_which_names_are_ambiguous_and_what_to_say():
    assert [(e.state.value, e.reason) for e in Registry(TWINS).entries("ffn")] == [
        ("ambiguous", "say twin-one:twin"), ("ambiguous", "say twin-two:twin")]


def test_a_rival_that_cannot_be_used_makes_nothing_ambiguous():
    blocked = Entry("ffn", "fine", "x:Y", "other", "1.0", Availability.BLOCKED, "restricted")
    registry = Registry([FINE, blocked])
    assert registry.find("ffn", "fine") == FINE
    assert state_of(registry, "ffn", "fine", "acme") == ("available", "")


def test_a_built_in_keeps_its_short_name(fakes):
    assert fakes.load("attention", "mha") is MultiHeadAttention
    assert fakes.load("attention", "shadow:mha").__name__ == "TalkingHeads"
    assert state_of(fakes, "attention", "mha", "shadow") == (
        "available", "the short name is miniformer's own; say shadow:mha")


# --- discovery

def test_discovery_reads_kinds_names_and_providers():
    found = {(e.kind, e.qualified, e.version) for e in discover([FAKES])}
    assert {("attention", "fine-parts:talking-heads", "1.2"), ("ffn", "fine-parts:nested", "1.2"),
            ("ffn", "twin-two:twin", "2.0")} <= found


def declared(folder, entry_points):
    """A distribution acme with these entry points, and the entries that are found of it."""
    info = folder / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    return discover([str(folder)])


def test_a_kind_that_there_is_not_is_a_row_in_the_list(tmp_path):
    [entry] = declared(tmp_path, "[miniformer.ffnn]\nf = acme:F\n[other.thing]\ng = acme:G\n")
    assert (entry.kind, entry.name, entry.state) == ("ffnn", "f", Availability.BROKEN)
    assert entry.reason == "metadata: there is no kind 'ffnn'; did you mean 'ffn'?"
    assert "broken: f of acme 1.0 (metadata: there is no kind 'ffnn'" in unknown(Registry([FINE, entry]), "ffn", "f")


def test_commands_are_no_components(tmp_path):
    assert declared(tmp_path, "[miniformer.command]\nhello = acme:hello\n") == []


@pytest.mark.parametrize("name", ["a:b", "With Space"])
def test_a_name_that_no_spec_could_say_is_broken(tmp_path, name):
    [entry] = declared(tmp_path, f"[miniformer.ffn]\n{name} = acme:F\n")
    assert (entry.name, entry.state) == (name, Availability.BROKEN)
    assert entry.reason == f"metadata: a name has no space and no colon; found {name!r}"


PARTS = "miniformer.model.feedforward"


@pytest.mark.parametrize("target", [f"{PARTS}:GELU", f"{PARTS}: GELU", f"{PARTS} :GELU", f"{PARTS} : GELU",
                                    f"{PARTS}:GELU [extra]", "miniformer.model:feedforward.GELU",
                                    "miniformer.model: feedforward.GELU [one, two]"])
def test_every_spelling_of_an_entry_point_leads_to_its_class(tmp_path, target):
    [entry] = declared(tmp_path, f"[miniformer.ffn]\nf = {target}\n")
    assert Registry([entry]).load("ffn", "f") is GELU


def test_an_entry_point_without_an_attribute_is_a_module(tmp_path):
    [entry] = declared(tmp_path, "[miniformer.extension]\nf = click [extra]\n")
    with pytest.raises(UnavailableComponent, match="a component of kind extension is a class; this is module"):
        Registry([entry]).load("extension", "f")


@pytest.mark.parametrize("target", ["click:", ":Command", "click:Command:more", "click Command", "click/core.py", ""])
def test_what_is_no_entry_point_says_what_is_expected(tmp_path, target):
    [entry] = declared(tmp_path, f"[miniformer.extension]\nf = {target}\n")
    assert (entry.state, entry.reason) == (
        Availability.BROKEN, f"metadata: expected module:attribute; found {target!r}")


def test_a_nested_class_can_be_a_component(fakes):
    assert fakes.load("ffn", "nested").__name__ == "Nested"


def test_a_plugin_made_for_another_version_is_incompatible(fakes):
    state, reason = state_of(fakes, "position", "warp", "from-the-future")
    assert state == "incompatible"
    assert "it needs Miniformer>=99, and this is miniformer" in reason.replace(" >=", ">=")


def test_a_requirement_of_an_extra_does_not_count(fakes):
    assert state_of(fakes, "attention", "talking-heads", "fine-parts") == ("available", "")


def test_metadata_that_cannot_be_read_is_a_row_in_the_list(fakes):
    state, reason = state_of(fakes, "distribution", "nameless-0.1.dist-info", "nameless-0.1.dist-info")
    assert state == "broken"
    assert reason.startswith("metadata: ")


@pytest.mark.parametrize("plugins", ["none", "fine-parts", "Fine.Parts, twin_one"])
def test_third_parties_can_be_restricted(plugins):
    usable = {e.distribution for e in discover([FAKES], plugins) if e.state is Availability.AVAILABLE}
    assert usable == {"none": set(), "fine-parts": {"fine-parts"},
                      "Fine.Parts, twin_one": {"fine-parts", "twin-one"}}[plugins]


def test_an_empty_setting_restricts_nobody():
    assert discover([FAKES], "") == discover([FAKES])


def test_the_environment_can_restrict_third_parties(monkeypatch):
    monkeypatch.setenv("MINIFORMER_PLUGINS", "twin-one")
    registry = Registry(discover([FAKES]))
    assert registry.find("ffn", "twin").distribution == "twin-one"
    with pytest.raises(UnavailableComponent, match="MINIFORMER_PLUGINS"):
        registry.find("attention", "talking-heads")


def test_restricting_third_parties_leaves_the_built_in_components():
    assert Registry(discover(plugins="none")).find("ffn", "swiglu").state is Availability.AVAILABLE


# --- loading what others wrote

BROKEN = [
    ("ffn", "raises", "import: RuntimeError: the wrong CUDA"),
    ("ffn", "exits", "import: SystemExit: no licence"),
    ("norm", "no-such", "import: AttributeError: module 'wrong_parts' has no attribute 'Missing'"),
    ("norm", "wrong-class", "conformance: a component of kind norm subclasses miniformer.kernel.interfaces.Norm; "
                            "wrong_parts.NotANorm does not"),
    ("norm", "no-class", "conformance: a component of kind norm is a class; this is int 3"),
    ("norm", "unfinished", "conformance: Unfinished does not define forward"),
    ("norm", "wrong-sizes", "conformance: the constructor of a component of kind norm takes (self, d_model, *, "
                            "options); WrongSizes has (self, d_model, eps); make the rest keyword-only"),
    ("norm", "renamed-sizes", "conformance: the constructor of a component of kind norm takes (self, d_model, *, options); "
                              "RenamedSizes has (self, dim, eps); rename dim to d_model and make the rest keyword-only"),
    ("norm", "no-sizes", "conformance: the constructor of a component of kind norm takes (self, d_model, *, options); "
                         "NoSizes has (self); add d_model"),
    ("norm", "infinite", "conformance: option 'limit' does not take its default: input should be a finite number; found inf"),
    ("norm", "option-called-name", "conformance: TypeError: OptionCalledName has an option called 'name'"),
]


@pytest.mark.parametrize(("kind", "name", "reason"), BROKEN)
def test_a_component_that_cannot_be_loaded_is_broken_with_stage_and_cause(fakes, kind, name, reason):
    with pytest.raises(UnavailableComponent) as error:
        fakes.load(kind, name)
    assert f"is broken: {reason}" in str(error.value)


def test_sizes_in_another_order_are_told_so():
    swapped = type("Swapped", (GELU,), {"__init__": lambda self, d_ff, d_model: None})
    assert why_not_a_component(KINDS["ffn"], swapped).endswith("; put them in this order")


def test_loading_all_marks_the_broken_and_only_those(monkeypatch):
    monkeypatch.syspath_prepend(FAKES)
    registry = Registry(discover([FAKES]))
    registry.load_all()
    broken = {(e.kind, e.name) for e in registry.entries() if e.state is Availability.BROKEN}
    assert broken == {(kind, name) for kind, name, _ in BROKEN} | {("distribution", "nameless-0.1.dist-info"),
                                                                ("unheard-of", "thing")}


def test_loading_all_of_a_kind_loads_no_other():
    registry = Registry([FINE, Entry("norm", "gone", "there_is_no_such_module:X", "acme", "1.0")])
    registry.load_all("ffn")
    assert state_of(registry, "norm", "gone", "acme") == ("available", "")
    registry.load_all()
    assert state_of(registry, "norm", "gone", "acme")[0] == "broken"


@pytest.mark.parametrize("raised", [
    "pytest.skip('not here', allow_module_level=True)", "raise BaseException('boo')", "raise GeneratorExit",
    "import sys; sys.exit(0)", "import asyncio; raise asyncio.CancelledError", "def f(): f()\nf()",
    "class Mute(Exception):\n    def __str__(self): raise self\nraise Mute", "raise ValueError('two\\nlines' * 1000)"])
def test_an_import_may_fail_in_any_way(tmp_path, monkeypatch, raised):
    (tmp_path / "acme_skips.py").write_text(f"import pytest\n{raised}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry([Entry("norm", "skips", "acme_skips:X", "acme", "1.0")])
    registry.load_all()
    state, reason = state_of(registry, "norm", "skips", "acme")
    assert (state, reason[:8]) == ("broken", "import: ")
    assert len(reason.splitlines()) == 1
    assert len(reason) < 600


def test_ctrl_c_during_an_import_is_no_fault_of_the_component(tmp_path, monkeypatch):
    (tmp_path / "acme_slow.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry([Entry("norm", "slow", "acme_slow:X", "acme", "1.0")])
    with pytest.raises(KeyboardInterrupt):
        registry.load_all()
    assert state_of(registry, "norm", "slow", "acme") == ("available", "")


def test_a_broken_component_harms_no_other(fakes):
    with pytest.raises(UnavailableComponent):
        fakes.load("ffn", "raises")
    assert fakes.load("ffn", "nested").__name__ == "Nested"


def test_nothing_is_imported_before_it_is_loaded(fakes):
    sys.modules.pop("twins", None)
    fakes.find("ffn", "twin-one:twin")
    assert "twins" not in sys.modules
    fakes.load("ffn", "twin-one:twin")
    assert "twins" in sys.modules


def test_listing_and_looking_up_import_no_torch(fresh_python):
    assert fresh_python(f"""
import sys
from miniformer.kernel import Registry, UnknownComponent, discover
registry = Registry([*discover(plugins='none'), *discover([{FAKES!r}])])
registry.entries()
registry.find('attention', 'mha'), registry.find('attention', 'talking-heads')
try:
    registry.find('attention', 'talking-hats')
except UnknownComponent as error:
    assert 'talking-heads' in str(error)
print('torch' in sys.modules, 'fine_parts' in sys.modules)""") == "False False"


# --- an unknown name

def unknown(registry, kind, name):
    with pytest.raises(UnknownComponent) as error:
        registry.find(kind, name)
    return str(error.value)


def test_an_unknown_name_is_told_what_it_was_and_the_nearest(fakes):
    text = unknown(fakes, "ffn", "swigl")
    assert text.startswith("there is no ffn named 'swigl'")
    assert "did you mean: swiglu" in text


def test_an_unknown_name_that_another_kind_has_is_told_so(fakes):
    assert "of that name" not in unknown(fakes, "ffn", "swigl")
    assert "there is an attention of that name" in unknown(fakes, "ffn", "mha")


def test_an_unknown_name_is_told_what_is_installed():
    assert "installed: fine, twin" in unknown(Registry([*TWINS, FINE]), "ffn", "groupnorm")


def test_an_unknown_name_is_told_which_broken_package_may_have_had_it(fakes):
    text = unknown(fakes, "position", "wrap")
    assert "incompatible: warp of from-the-future 3.0 (it needs" in text
    assert "broken: nameless-0.1.dist-info" in text
    assert "twin" not in text


@pytest.mark.parametrize(("kind", "name", "package"), [("ffn", "moe", "miniformer-moe"), ("ffn", "acme:gate", "acme")])
def test_a_component_of_a_package_that_is_not_installed_says_what_to_install(kind, name, package):
    ours = Registry([entry for entry in discover() if entry.distribution == "miniformer"])
    assert f"pip install {package}\n" in unknown(ours, kind, name)


def test_nothing_need_be_installed_for_a_name_that_an_installed_package_lacks(fakes):
    assert "pip install" not in unknown(fakes, "ffn", "twin-one:triplet")
