"""How much memory a process may have: the tightest bound counts, and weights beyond it are refused before they are made."""

import resource

import pytest
import torch

from miniformer.config import memory
from miniformer.config.memory import Room, machine_room
from miniformer.config.model_config import TransformerConfig
from miniformer.kernel import SpecError
from miniformer.model.assemblies import assembly_of

GIB = 2**30
LARGE = TransformerConfig(d_model=4096, n_heads=4, n_layers=8)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 16 GiB and 2 GiB of swap without limits; returns a function that writes more of its files."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (resource.RLIM_INFINITY,) * 2)

    def write(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    write({"proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemAvailable: {9 * 2**20} kB\nSwapTotal: {2 * 2**20} kB\n"
                           f"SwapFree: {2 * 2**20} kB\nHugePages_Total: 0\n",
           "proc/self/status": f"Name: python\nVmSize: {3 * 2**20} kB\nVmData: {2**20} kB\n"})
    return write


def found():
    room = machine_room()
    return room.total / GIB, room.free / GIB, room.bound


def test_without_limits_there_is_what_the_machine_has(machine):
    assert found() == (18, 11, "this machine has")
    assert str(machine_room()) == "this machine has 18.00 GiB"


@pytest.mark.parametrize(("files", "expected"), [
    pytest.param({"proc/self/cgroup": "0::/a/b\n", "cgroup/a/memory.max": f"{6 * GIB}\n", "cgroup/a/memory.swap.max": "0\n",
                  "cgroup/a/memory.current": f"{4 * GIB}", "cgroup/a/memory.stat": f"anon 5\n\ninactive_file {GIB}\n",
                  "cgroup/a/b/memory.max": "max\n"}, (6, 3, "memory.max"), id="the group around it, version 2"),
    pytest.param({"proc/self/cgroup": "0::/\n", "cgroup/memory.max": f"{6 * GIB}"}, (8, 8, "memory.max"),
                 id="a container, whose swap is the machine's"),
    pytest.param({"proc/self/cgroup": "5:cpu:/\n4:memory:/unseen/c1\n0::/\n",
                  "cgroup/memory/memory.limit_in_bytes": f"{6 * GIB}",
                  "cgroup/memory/memory.memsw.limit_in_bytes": f"{7 * GIB}"}, (7, 7, "memory.limit_in_bytes"),
                 id="version 1"),
    pytest.param({"proc/self/cgroup": "4:memory:/\n", "cgroup/memory/memory.limit_in_bytes": "9223372036854771712"},
                 (18, 11, "this machine has"), id="a number that means no limit"),
    pytest.param({"proc/self/cgroup": "0::/\n", "cgroup/memory.max": f"{64 * GIB}"}, (18, 11, "this machine has"),
                 id="a limit beyond the machine"),
])
def test_a_control_group_bounds_its_processes(machine, files, expected):
    machine(files)
    total, free, bound = found()
    assert (total, min(free, 11)) == expected[:2] and expected[2] in bound


@pytest.mark.parametrize(("limit", "flag", "left"), [(resource.RLIMIT_AS, "-v", 2), (resource.RLIMIT_DATA, "-d", 4)])
def test_ulimit_leaves_what_the_libraries_have_not_taken(machine, monkeypatch, limit, flag, left):
    monkeypatch.setattr(resource, "getrlimit", lambda asked: (5 * GIB if asked == limit else resource.RLIM_INFINITY,) * 2)
    assert found() == (left, left, f"ulimit {flag} is 5.00 GiB, of which is left")


def test_several_processes_share_it():
    assert str(Room(6 * GIB, GIB, "this machine has").shared_by(2)) == "this machine has 3.00 GiB for each of 2 processes"
    assert Room(6, 1, "this machine has").shared_by(1) == Room(6, 1, "this machine has")


@pytest.mark.parametrize(("assembly", "size"), [("transformer", r"8\.1"), ("seq2seq", r"16\.1")])
def test_weights_beyond_it_are_refused_with_both_numbers(monkeypatch, assembly, size):
    monkeypatch.setattr(memory, "machine_room", lambda: Room(6 * GIB, GIB, "this machine has"))
    with pytest.raises(SpecError, match=rf"weights of this model take {size}\d GiB, and this machine has 6\.00 GiB; a smaller"):
        assembly_of(assembly)(LARGE)
    with torch.device("meta"):
        assembly_of(assembly)(LARGE)  # it has no storage


def test_weights_within_it_are_made(monkeypatch):
    monkeypatch.setattr(memory, "SMALL", 0)
    config = TransformerConfig(d_model=16, n_heads=2, vocab_size=11)
    monkeypatch.setattr(memory, "machine_room", lambda: Room(4 * config.least_numbers(), 0, "this machine has"))
    assembly_of("transformer")(config)
    monkeypatch.setattr(memory, "machine_room", lambda: Room(4 * config.least_numbers() - 1, 0, "this machine has"))
    with pytest.raises(SpecError, match="this machine has"):
        assembly_of("transformer")(config)


def test_the_largest_sizes_are_counted_at_once():
    largest = TransformerConfig(vocab_size=2**31 - 1, d_model=2**20, n_layers=10_000, max_seq_len=2**31 - 1, position="learned")
    assert largest.least_numbers() > 10_000 * 12 * 2**40
    with pytest.raises(SpecError, match="weights of this model take"):
        assembly_of("transformer")(largest)
