"""Which metadata count where a distribution has several: those of the code that Python would import; and versions."""

import base64
import hashlib
import importlib.metadata
import json
import sys

import pytest

from miniformer.kernel import discover
from miniformer.kernel.distributions import broken_left_out, installed, version_of
from miniformer.kernel.registry import Availability, Registry


def metadata(folder, version, points="[miniformer.ffn]\nf = acme_parts:F\n", **files):
    """Metadata of the distribution acme in a folder."""
    info = folder / f"acme-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: Acme\nVersion: {version}\n")
    for file, text in {"entry_points.txt": points, **files}.items():
        (info / file).write_text(text)
    return info


def code(folder, text=""):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "acme_parts.py").write_text(text)


def record(text):
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
    return f"acme_parts.py,sha256={digest},{len(text)}\nacme-1.dist-info/METADATA,,\n"


def counting(*folders):
    """The version that counts, and the versions that are told to be stale."""
    entries = discover([str(folder) for folder in folders])
    return ([entry.version for entry in entries if entry.kind == "ffn"],
            [entry.version for entry in entries if entry.state is Availability.STALE])


def test_metadata_without_their_code_do_not_hide_those_of_the_code(tmp_path):
    metadata(tmp_path / "first", "1.0", points="")
    metadata(tmp_path / "second", "2.0")
    code(tmp_path / "second")
    assert counting(tmp_path / "first", tmp_path / "second") == (["2.0"], ["1.0"])


def test_code_that_is_first_on_the_path_counts_even_where_it_is_older(tmp_path):
    for folder, version in (("first", "1.0"), ("second", "2.0")):
        metadata(tmp_path / folder, version)
        code(tmp_path / folder)
    assert counting(tmp_path / "first", tmp_path / "second") == (["1.0"], ["2.0"])
    assert counting(tmp_path / "second", tmp_path / "first") == (["2.0"], ["1.0"])


@pytest.mark.parametrize("versions", [("9.0", "10.0"), ("10.0", "9.0"), ("10.0rc1", "10.0"), ("not-a-version", "10.0")])
def test_of_two_in_one_folder_the_newest_version_counts(tmp_path, versions):
    for version in versions:
        metadata(tmp_path, version)
    code(tmp_path)
    assert counting(tmp_path)[0] == ["10.0"]


def test_of_two_in_one_folder_the_one_that_recorded_the_code_counts(tmp_path):
    """So after a return to an older version that left the metadata of the newer one behind."""
    metadata(tmp_path, "1.0", RECORD=record("old = 1\n"))
    metadata(tmp_path, "2.0", RECORD=record("new = 1\n"))
    code(tmp_path, "old = 1\n")
    assert counting(tmp_path) == (["1.0"], ["2.0"])


def test_an_editable_installation_is_where_its_project_is(tmp_path, monkeypatch):
    metadata(tmp_path / "old", "3.0")
    url = (tmp_path / "project").as_uri()
    metadata(tmp_path / "site", "2.0", **{"direct_url.json": json.dumps({"url": url, "dir_info": {"editable": True}})})
    code(tmp_path / "project" / "src")
    assert counting(tmp_path / "old", tmp_path / "site", tmp_path / "project" / "src") == (["2.0"], ["3.0"])


def test_without_any_code_the_first_on_the_path_counts(tmp_path):
    for version in ("1", "2"):
        metadata(tmp_path / version, version)
    assert counting(tmp_path / "2", tmp_path / "1") == (["2"], ["1"])
    assert counting(tmp_path / "1", tmp_path / "2") == (["1"], ["2"])


def test_equal_metadata_in_two_places_are_nothing_to_tell(tmp_path):
    for folder in ("first", "second"):
        metadata(tmp_path / folder, "1.0")
    assert counting(tmp_path / "first", tmp_path / "second") == (["1.0"], [])


def test_one_folder_that_is_twice_on_the_path_is_read_once(tmp_path):
    metadata(tmp_path / "site", "1.0")
    (tmp_path / "link").symlink_to(tmp_path / "site")
    assert len(installed([str(tmp_path / "site"), str(tmp_path / "link"), str(tmp_path / "site")])) == 1


def test_stale_metadata_are_told_with_both_paths(tmp_path):
    stale, good = metadata(tmp_path, "1.0"), metadata(tmp_path, "2.0")
    [entry] = Registry(discover([str(tmp_path)])).entries("distribution")
    assert (entry.name, entry.provider, entry.state) == ("acme-1.0.dist-info", "acme 1.0", Availability.STALE)
    assert entry.reason == (f"metadata: {stale}: other metadata of acme, in {good}, describe the code that Python imports "
                            "(2.0); remove what is left of 1.0")


def test_broken_metadata_do_not_hide_good_ones(tmp_path):
    metadata(tmp_path, "2.0")
    (tmp_path / "acme-1.0.dist-info").mkdir()
    assert [(entry.version, entry.state.value) for entry in discover([str(tmp_path)]) if entry.kind == "ffn"] == [
        ("2.0", "available")]


def test_the_version_of_a_package_is_that_of_the_metadata_that_count(tmp_path, monkeypatch):
    (tmp_path / "acme-1.0.dist-info").mkdir()
    metadata(tmp_path, "2.0")
    metadata(tmp_path, "10.0")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert version_of("acme") == "10.0"
    assert version_of("there-is-no-such-package") is None


def test_importlib_passes_over_what_is_no_text_on_the_path(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [b"bytes", 3, tmp_path, *sys.path])
    with broken_left_out():
        assert importlib.metadata.version("miniformer")
        assert importlib.metadata.entry_points(group="miniformer.ffn")


def test_importlib_passes_over_broken_metadata_inside_and_not_after(tmp_path, monkeypatch):
    metadata(tmp_path, "1.0", points="[console_scripts]\nalone\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with broken_left_out():
        assert importlib.metadata.entry_points(group="miniformer.ffn")
        with pytest.raises(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version("acme")
    assert importlib.metadata.version("acme") == "1.0"
    with pytest.raises(TypeError):
        importlib.metadata.entry_points(group="miniformer.ffn")
