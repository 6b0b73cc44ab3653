"""The ways psgc says no, each with the exit code that belongs to it.

An error's text is one line: what was wrong, where, and what would be right. The command line prints it
on stderr without a traceback (`--debug` shows one) and exits with `exit_code`.
"""

from collections.abc import Iterable


class PsgcError(Exception):
    """Base of every error psgc raises on purpose. Its text is one printable line, whatever a file may be called."""

    exit_code = 1

    def __init__(self, text: str = "") -> None:
        super().__init__(visible(text))


class UserError(PsgcError, ValueError):
    """The command, the YAML, the data or an argument is wrong: the user can mend it. Exit code 2."""

    exit_code = 2


class RunFailed(PsgcError):
    """A run that had started could not go on. Exit code 1."""


class TooFewWorkers(RunFailed):
    """So many workers were lost that the others could not go on: with other machines the run may. Exit code 1."""


class ModelError(PsgcError):
    """The model breaks a rule that makes every copy of its gradient useless, on every worker. Exit code 1."""


class ProtocolError(PsgcError):
    """An event that the protocol does not allow in this state: a defect of psgc, never of the user.

    events: those before it, oldest first. A traceback lists them (`--debug`), the text does not.
    """

    def __init__(self, text: str, events: Iterable[object] = ()) -> None:
        super().__init__(text)
        self.events = tuple(events)
        self.add_note("\n  ".join(["Events before it, oldest first:", *map(str, self.events)]))


def visible(text: str) -> str:
    """`text` with every character that a terminal would not show, or would obey, escaped.

    >>> visible("a\\nb\\x1b[31m é")
    'a\\\\nb\\\\x1b[31m é'
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def one_line(error: BaseException) -> str:
    """Name and text of somebody else's error, on one line of at most 300 characters and without control characters.

    >>> one_line(ValueError("first\\n second\\x1b[31m"))
    'ValueError: first second[31m'
    """
    text = " ".join(str(error).split())
    text = "".join(character for character in text if character.isprintable())
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return line if len(line) <= 300 else f"{line[:297]}..."
