"""What we ask of the Linux kernel about our own process that Python has no function for."""

from __future__ import annotations

import ctypes
import os

_SET_PDEATHSIG = 1
_SET_NAME = 15
_SET_CHILD_SUBREAPER = 36
_GET_CHILD_SUBREAPER = 37

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int | ctypes.c_char_p | ctypes.Array[ctypes.c_char]) -> None:
    if isinstance(argument, int):
        argument = ctypes.c_ulong(argument)  # type: ignore[assignment]  # variadic: an int would go as 32 bits
    if _libc.prctl(option, argument, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def set_parent_death_signal(signum: int) -> None:
    """Have the kernel send us `signum` when the *thread* that forked us ends (0: nothing).

    Kept across exec, not across fork. A parent that died before this call is not noticed: compare
    os.getppid() with the pid that is expected afterwards.
    """
    _prctl(_SET_PDEATHSIG, signum)


def become_reaper() -> None:
    """From now on orphaned descendants become children of this process instead of init's."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def is_reaper() -> bool:
    """Whether `become_reaper` was called in this process."""
    flag = ctypes.c_int(0)
    if _libc.prctl(_GET_CHILD_SUBREAPER, ctypes.byref(flag), 0, 0, 0) != 0:
        return False
    return bool(flag.value)


def set_process_name(name: str) -> None:
    """What `ps -o comm` and `top` show; cut to 15 bytes by the kernel."""
    _prctl(_SET_NAME, ctypes.create_string_buffer(name.encode()[:15]))
