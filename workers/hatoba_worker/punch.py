"""Giving the oldest part of a file back to the file system, while offsets stay what they are."""

from __future__ import annotations

import ctypes
import errno
import functools
import os

BLOCK = 4096
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02


def out(path: str, below: int) -> bool:
    """Make the bytes below an offset a hole; blocks. False where the file system cannot do that."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if _fallocate()(handle, _KEEP_SIZE | _PUNCH_HOLE, 0, below) == 0:
            return True
        return ctypes.get_errno() != errno.EOPNOTSUPP
    finally:
        os.close(handle)


@functools.cache
def _fallocate() -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(None, use_errno=True).fallocate64
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function
