"""The errors of psgc: one line of what was wrong, where, and what would be right, and an exit code."""

from collections.abc import Iterable


class PsgcError(Exception):
    """Base of all errors that psgc raises on purpose. The text is made printable and one line."""

    exit_code = 1

    def __init__(self, text: str = "") -> None:
        super().__init__(visible(text))


class UserError(PsgcError, ValueError):
    """The command, the YAML, the data or an argument is wrong, and the user can correct it. Exit code 2."""

    exit_code = 2


class RunFailed(PsgcError):
    """A run that had started could not continue. Exit code 1."""


class TooFewWorkers(RunFailed):
    """Too few workers remained. Another attempt, on other machines, may succeed. Exit code 1."""


class ModelError(RunFailed):
    """The model breaks a rule, so that its gradients cannot be used on any worker. Exit code 1."""


class ProtocolError(PsgcError):
    """An event that the protocol does not allow in this state: a defect of psgc.

    events: those before it, oldest first. Only a traceback lists them.
    """

    def __init__(self, text: str, events: Iterable[object] = ()) -> None:
        super().__init__(text)
        self.events = tuple(events)
        self.add_note("\n  ".join(["Events before it, oldest first:", *map(str, self.events)]))


def visible(text: str) -> str:
    """`text` with unprintable characters escaped, so that a terminal does not obey them.

    >>> visible("a\\nb\\x1b[31m é")
    'a\\\\nb\\\\x1b[31m é'
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def one_line(error: BaseException) -> str:
    """Name and text of a foreign error, on one line of at most 300 characters and without control characters.

    >>> one_line(ValueError("first\\n second\\x1b[31m"))
    'ValueError: first second[31m'
    """
    text = " ".join(str(error).split())
    text = "".join(character for character in text if character.isprintable())
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return line if len(line) <= 300 else f"{line[:297]}..."
