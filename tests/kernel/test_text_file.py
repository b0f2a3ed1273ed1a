"""Files that should be text: what is read, and by what name the rest is told."""

import bz2
import gzip
import logging
import lzma
import os
import socket
import zipfile
from pathlib import Path

import pytest

from miniformer.kernel.errors import DataError, UserError
from miniformer.kernel.text_file import foreign, open_file, read_json, read_text


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.json"


@pytest.mark.parametrize(("content", "told"), [
    (gzip.compress(b"x", mtime=0), "compressed by gzip; unpack it first: gzip -dc a.jsonl.gz > a.jsonl"),
    (bz2.compress(b"x"), "compressed by bzip2; unpack it first: bzip2 -dc"),
    (lzma.compress(b"x"), "compressed by xz; unpack it first: xz -dc"),
    (b"\x28\xb5\x2f\xfd\x04\0", "compressed by zstd; unpack it first: zstd -dc"),
    (b"PK\x03\x04\x14\0", "a zip archive; unpack it first: unzip a.jsonl.gz"),
    (b"PAR1\x15\x04", "a Parquet file; write it as JSON lines first: python -c 'import pandas; pandas.read_parquet("),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel file; write it as JSON lines first: "),
    (b"SQLite format 3\0", "an SQLite database; expected text in UTF-8"),
    (b"\x80\x04\x95\x04\0", "a pickle of Python; expected text in UTF-8"),
    (b'\x58\0\0\0\0\0\0\0{"a": 1}', "a file of weights (safetensors); expected text in UTF-8"),
    (b"a" * 100 + b"\0" * 157 + b"ustar\0", "a tar archive; unpack it first: tar -xf a.jsonl.gz"),
    (b"\0" * 64, "binary data that begins with zero bytes; expected text in UTF-8"),
    ('{"a": 1}'.encode("utf-16"),
     "UTF-16, not UTF-8; write it in UTF-8 first: iconv -f UTF-16 -t UTF-8 a.jsonl.gz > utf8-a.jsonl.gz"),
    ('{"a": 1}'.encode("utf-16-be"), "UTF-16BE, not UTF-8; "), ('{"a": 1}'.encode("utf-32"), "UTF-32, not UTF-8; "),
])
def test_what_is_no_text_is_told_by_its_first_bytes_with_what_to_do(content, told):
    assert foreign(Path("a.jsonl.gz"), content).startswith(told)


def test_an_excel_file_is_told_from_other_zip_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "table", "w") as archive:
        archive.writestr("[Content_Types].xml", "")
    content = (tmp_path / "table").read_bytes()
    assert foreign(Path("table"), content).startswith("an Excel file; write it as JSON lines first: ")


@pytest.mark.parametrize("content", [b"", b"{}", b"BZh: 1", b"ORC: 2", b"PAR1: 3", "é\u2028\x85".encode(), b"\xc3", b"a\x0cb"])
def test_what_may_be_text_is_left_to_who_reads_it(content):
    assert foreign(Path("a"), content) == ""


def test_a_byte_order_mark_is_no_part_of_a_text(path):
    path.write_bytes(b'\xef\xbb\xbf{"a": "b\r\n"}')
    assert read_text(path) == '{"a": "b\r\n"}'


@pytest.mark.parametrize(("content", "told"), [
    (b'{"a": 1,\n]', ":2: not JSON: Expecting property name enclosed in double quotes at column 1"),
    (b" \n", ":2: not JSON: found nothing"),
    (b'{"a":\n"caf\xe9"}', ":2: cannot be read: not UTF-8: byte 0xe9 at byte 11; save the file as UTF-8"),
    (b'{"a": "\\ud800"}', ": not usable JSON: '\\ud800' is half of a surrogate pair"),
    (b"[" * 100_000, ": not usable JSON: it is nested too deeply"),
    (b"9" * 5000, ": not usable JSON: Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits"),
    (gzip.compress(b"{}", mtime=0), ": compressed by gzip; unpack it first: "),
])
def test_what_is_no_json_is_told_with_its_line(path, content, told):
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_json(path, DataError)
    assert str(caught.value).startswith(f"{path}{told}")


def test_json_is_read_with_a_byte_order_mark(path):
    path.write_text('{"a": [1, null, "\U0001f600"]}', encoding="utf-8-sig")
    assert read_json(path) == {"a": [1, None, "\U0001f600"]}


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom", "/dev/full"])
def test_a_device_without_an_end_is_refused(device):
    with pytest.raises(UserError, match=f"^{device}: a device, which may have no end; expected a file"):
        read_text(device)


def test_the_null_device_is_an_empty_file():
    assert read_text(os.devnull) == ""


def test_a_socket_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket has to be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        with pytest.raises(UserError, match=r"^socket: a socket"):
            read_text("socket")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "nowhere", "."])
def test_what_cannot_be_opened_is_told(name):
    with pytest.raises(UserError, match=r"cannot be read: |not a name that a file can have"):
        read_text(name)


def test_a_file_that_is_too_large_is_refused_with_the_limit(path, monkeypatch):
    monkeypatch.setattr("miniformer.kernel.text_file.LARGEST", 2**20)
    path.write_bytes(b" " * (2**20 + 1))
    with pytest.raises(UserError, match="more than 1 MiB; expected a small file of text"):
        read_text(path)


def test_it_is_said_that_a_pipe_has_no_writer(path, monkeypatch):
    monkeypatch.setattr("miniformer.kernel.text_file.PATIENCE", 0.01)
    os.mkfifo(path)
    told, opened = [], []

    def write(message):
        told.append(message)
        opened.append(os.open(path, os.O_RDWR))  # which opens the other end too, so that the reader goes on

    monkeypatch.setattr(logging.getLogger("miniformer.kernel.text_file"), "warning", write)
    open_file(path).close()
    assert told == [f"{path}: waiting for something to write to this pipe"]
    for end in opened:
        os.close(end)
