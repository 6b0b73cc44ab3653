"""Whether data that cannot be mapped fits into this machine's memory."""

import os

from psgc.errors import UserError


def check_memory(path: str, needed: int, copies: int, remedy: str) -> None:
    """Raises UserError when `copies` processes of this host cannot hold `needed` bytes each.

    remedy: what to do about it.
    """
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed * copies > there:
        each = (
            f"each of the {copies} processes on this host, {_gib(needed * copies)} in all" if copies > 1 else "memory"
        )
        raise UserError(
            f"{path}: it cannot be mapped and takes {_gib(needed)} in {each}, but this machine has {_gib(there)}; "
            f"{remedy}"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
