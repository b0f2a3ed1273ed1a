"""Forty kinds of broken metadata of a distribution, as interrupted installations and copies leave them."""

import os
from pathlib import Path

NAME = b"Metadata-Version: 2.1\nName: gone\nVersion: 1.0\n"
KINDS = {}
"""By name: what makes it in a folder, and the end of the path that is told; "" if it harms nothing and nothing is told."""


def kind(name: str, told: str):
    def keep(make):
        KINDS[name] = make, told
        return make

    return keep


def files(name: str, told: str, folder: str = "gone-1.0.dist-info", **content: bytes):
    """A kind that is a folder with these files; `METADATA` is right unless it is given, and left out where it is None."""
    def make(site: Path) -> None:
        info = site / folder
        info.mkdir(parents=True)
        for file, text in {"METADATA": NAME, **content}.items():
            if text is not None:
                (info / file.replace("__", ".")).write_bytes(text)

    KINDS[name] = make, told


INFO, META, POINTS = "gone-1.0.dist-info", "gone-1.0.dist-info/METADATA", "gone-1.0.dist-info/entry_points.txt"

files("an empty folder", INFO, METADATA=None)
files("no METADATA", INFO, METADATA=None, RECORD=b"")
files("an empty METADATA", INFO, METADATA=b"")
files("METADATA of blanks", INFO, METADATA=b"\n \n")
files("no Name", INFO, METADATA=b"Metadata-Version: 2.1\nVersion: 1.0\n")
files("an empty Name", INFO, METADATA=b"Name:\nVersion: 1.0\n")
files("a Name below a blank line", INFO, METADATA=b"\n" + NAME)
files("METADATA in Latin-1", META, METADATA=NAME + b"Author: Andr\xe9\n")
files("METADATA in UTF-16", META, METADATA=NAME.decode().encode("utf-16"))
files("METADATA of zeros", INFO, METADATA=b"\0" * 64)
files("METADATA of random bytes", META, METADATA=bytes(range(255, 0, -1)))
files("entry points that are binary", POINTS, entry_points__txt=b"\x80\x04\x95")
files("entry points in UTF-16", POINTS, entry_points__txt="[console_scripts]\na = b:c\n".encode("utf-16"))
files("entry points with a byte order mark", POINTS, entry_points__txt=b"\xef\xbb\xbf[miniformer.ffn]\na = b:C\n")
files("an entry point without a value", POINTS, entry_points__txt=b"[console_scripts]\nalone\n")
files("an entry point outside of a group", POINTS, entry_points__txt=b"a = b:c\n")
files("a conflict in the entry points", POINTS, entry_points__txt=b"[console_scripts]\n<<<<<<< ours\na = b:c\n")
files("a group that does not end", POINTS, entry_points__txt=b"[console_scripts\na = b:c\n")
files("entry points of zeros", POINTS, entry_points__txt=b"\0\0\0\0")
files("entry points that are JSON", POINTS, entry_points__txt=b'{"miniformer.ffn": {"a": "b:C"}}')
files("a plugin without a Name", INFO, METADATA=b"Version: 1\n", entry_points__txt=b"[miniformer.ffn]\na = b:C\n")
files("a plugin without a Version", INFO, METADATA=b"Name: gone\n", entry_points__txt=b"[miniformer.command]\na = b:c\n")
files("a plugin without METADATA", INFO, METADATA=None, entry_points__txt=b"[miniformer.command]\ntrain = b:c\n")
files("a plugin with METADATA in Latin-1", META, METADATA=NAME + b"\n\xe9\n", entry_points__txt=b"[miniformer.ffn]\na = b:C\n")
files("a folder without a name", ".dist-info", ".dist-info", METADATA=None)
files("a folder without a version", "gone.dist-info", "gone.dist-info", METADATA=None)
files("what pip leaves of an interrupted removal", "~one-1.0.dist-info", "~one-1.0.dist-info")
files("an empty egg-info", "gone.egg-info", "gone.egg-info", METADATA=None)
files("an egg-info without a Name", "gone.egg-info", "gone.egg-info", METADATA=None, **{"PKG-INFO": b"Version: 1\n"})
files("an egg-info whose entry points are binary", "gone.egg-info/entry_points.txt", "gone.egg-info", METADATA=None,
      **{"PKG-INFO": NAME, "entry_points__txt": b"\xff\xfe"})
files("no RECORD", "")
files("a RECORD that is binary", "", RECORD=b"\xff\xfe\0")
files("a direct_url.json that is no JSON", "", direct_url__json=b"{")
files("entry points for others alone", "", entry_points__txt=b"[console_scripts]\na = b: c [extra]\n")


@kind("a file in place of the folder", INFO)
def _(site):
    (site / INFO).write_bytes(b"\0not metadata")


@kind("a link to nothing in place of the folder", INFO)
def _(site):
    (site / INFO).symlink_to(site / "nowhere")


@kind("a link to itself", INFO)
def _(site):
    (site / INFO).symlink_to(site / INFO)


@kind("a METADATA that is a link to nothing", META)
def _(site):
    (site / INFO).mkdir()
    (site / META).symlink_to(site / "nowhere")


@kind("a METADATA that is a folder", META)
def _(site):
    (site / META).mkdir(parents=True)


@kind("entry points that are a folder", POINTS)
def _(site):
    (site / POINTS).mkdir(parents=True)
    (site / META).write_bytes(NAME)


@kind("entry points that are a link to themselves", POINTS)
def _(site):
    (site / INFO).mkdir()
    (site / META).write_bytes(NAME)
    (site / POINTS).symlink_to(site / POINTS)


@kind("a METADATA that is a pipe", META)
def _(site):
    (site / INFO).mkdir()
    os.mkfifo(site / META)


@kind("a name that is not UTF-8", "\\udcff-1.0.dist-info")
def _(site):
    os.mkdir(os.fsencode(site) + b"/gone\xff-1.0.dist-info")


@kind("a name of two lines", "gone\\n-1.0.dist-info")
def _(site):
    (site / "gone\n-1.0.dist-info").mkdir()
