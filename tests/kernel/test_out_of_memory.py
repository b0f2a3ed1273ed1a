"""Memory that ran out is one error, whoever noticed it."""

import errno

import numpy as np
import pytest
import torch

from miniformer.kernel.errors import OutOfMemory, RunError, SpecError
from miniformer.kernel.out_of_memory import memory_errors


def told(error):
    with pytest.raises(OutOfMemory) as found, memory_errors("less is less"):
        raise error
    assert found.value.__cause__ is error and found.value.exit_code == 2
    return str(found.value)


@pytest.mark.parametrize(("error", "asked"), [
    (MemoryError(), ""),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
                  "allocate 34359738368 bytes. Error code 12 (Cannot allocate memory)"), ": 32.00 GiB more were asked for"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15.77 GiB"),
     ": 20.00 GiB more were asked for"),
    (RuntimeError("CUDA error: out of memory"), ""),
    (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), ""),
    (RuntimeError("Storage size calculation overflowed with sizes=[4611686018427387904]"), ""),
    (MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,) and data type int64"),
     ": 7.45 GiB more were asked for"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), ""),
    (RuntimeError("std::bad_alloc"), ""),
], ids=str)
def test_what_libraries_raise_becomes_one_line(error, asked):
    assert told(error) == f"memory ran out{asked}; less is less"


@pytest.mark.parametrize("ask", [lambda: torch.empty(2**58), lambda: torch.empty(2**62), lambda: np.empty(2**58),
                                 lambda: bytearray(2**60)], ids=["torch", "torch, overflowing", "numpy", "python"])
def test_memory_that_no_machine_has(ask):
    with pytest.raises(OutOfMemory, match=r"^memory ran out.*; a smaller model, batch or length needs less$"), memory_errors():
        ask()


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError("out of memory"), SpecError("out of memory"),
                                   RunError("out of memory"), OSError(errno.ENOSPC, "No space"), KeyboardInterrupt()], ids=repr)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as found, memory_errors():
        raise error
    assert found.value is error
