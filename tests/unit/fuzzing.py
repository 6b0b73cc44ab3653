"""What the fuzz tests share: how many examples, what a refusal must look like, and a watch over memory.

In CI every run tries the same examples. `PSGC_FUZZ=100 pytest tests/unit/test_fuzz_*.py --timeout 3600` tries a hundred
times as many, others each time.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings

from psgc.errors import UserError

TIMES = int(os.environ.get("PSGC_FUZZ", "0"))
SLOW = 10_000  # milliseconds for one example: far more than a busy machine needs, far less than a hang
LONGEST = 1000  # characters of a message, of which a path has its share
Result = TypeVar("Result")


def fuzzed(examples: int) -> Any:
    """Hypothesis settings for so many examples, each of which has a deadline."""
    return settings(
        max_examples=examples * max(1, TIMES),
        derandomize=not TIMES,
        database=None,
        deadline=SLOW,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


def outcome(read: Callable[[], Result], *places: str) -> tuple[Result | None, str]:
    """What `read` gives, or the line with which it refuses; nothing else may happen. The line names one of `places`."""
    try:
        return read(), ""
    except UserError as error:
        return None, one_line(str(error), *places)


def one_line(message: str, *places: str) -> str:
    """`message`, which is one printable line that begins with one of `places`."""
    assert message.isprintable(), message
    assert len(message) <= LONGEST + max(map(len, places)), message
    assert re.match(r"(?:{})\S".format("|".join(f"{re.escape(place)}:(?:\\d+:)? " for place in places)), message), (
        message
    )
    assert not re.search(r"Traceback|object at 0x|<class |\bpydantic\b", message), message
    return message


@contextmanager
def little_memory(most: int = 300 << 20) -> Iterator[None]:
    """What is done inside takes at most so many bytes at a time."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    yield
    assert _status("VmHWM") - before < most


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])
