"""Whether a run directory's run still goes on, by its run.lock (psgc/training/claim.py)."""

import json
import os
import socket
import time
from pathlib import Path

from psgc.regular_files import open_regular

FRESH = 15.0  # seconds since run.lock was touched, for a run on another host; it is touched every two seconds
MAX_LOCK = 1000  # bytes


def is_running(directory: Path) -> bool:
    """Whether the process that run.lock names still runs, or, when it is on another host, has touched it lately.

    Nothing is locked for that, so that no run that begins just now is refused.
    """
    path = directory / "run.lock"
    try:
        with open_regular(path) as stream:
            holder = json.loads(stream.read(MAX_LOCK))
        host, process = str(holder["host"]), int(holder["pid"])
        if host != socket.gethostname():
            return abs(time.time() - path.stat().st_mtime) < FRESH
        os.kill(process, 0)
    except PermissionError:  # a process of another user
        return True
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return False
    return process > 0
