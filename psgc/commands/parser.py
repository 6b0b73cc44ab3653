"""The parser of the command line, and arguments that several commands have."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from psgc import __version__
from psgc.errors import visible
from psgc.terminal import say

Options = argparse.Namespace


class Parser(argparse.ArgumentParser):
    """Escapes what a terminal would obey, as all output of psgc does."""

    def error(self, message: str) -> NoReturn:
        super().error(visible(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        for line in message.removesuffix("\n").split("\n"):
            say(line, error=file is sys.stderr)


class Commands:
    """The commands of `psgc`. Their parser fills in what the arguments say, and as `run` the function for them."""

    def __init__(self, epilog: str) -> None:
        self.parser = Parser(
            prog="psgc",
            description="Exact synchronous distributed training that never waits for its slowest machine.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.parser.add_argument("--version", action="version", version=f"psgc {__version__}")
        self._commands = self.parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
        self._debug = Parser(add_help=False)
        self._debug.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add(
        self,
        name: str,
        run: Callable[[Options], int],
        text: str,
        parents: Sequence[Parser] = (),
        *,
        epilog: str = "",
        limits_threads: bool = True,
    ) -> Callable[..., argparse.Action]:
        """Adds a command; returns the function that adds an argument to it.

        run: called with all options, returns the exit code; text: what it does, for the help.
        limits_threads: BLAS gets this process's share of the cores; without, `run` leaves that to ranks that it starts.
        """
        description = f"{text[0].upper()}{text[1:]}."
        added = self._commands.add_parser(
            name, help=text, description=description, parents=[*parents, self._debug], epilog=epilog
        )
        added.set_defaults(run=run, limits_threads=limits_threads)
        return added.add_argument


def settings(file: str, text: str, example: str) -> Parser:
    """The arguments of a command that reads a YAML file."""
    parser = Parser(add_help=False)
    parser.add_argument("config", metavar=file, help=text)
    text = f"change a setting, for example --set {example} (repeatable)"
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help=text)
    return parser


def hosts(text: str) -> Parser:
    """The arguments of a command that starts ranks. text: what it does on hosts."""
    parser = Parser(add_help=False)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--host", metavar="LIST", help=f"{text}, for example a:5,b:4")
    where.add_argument("--hostfile", metavar="FILE", help=f"{text}, listed in a file in mpirun's own format")
    return parser


def resume(text: str = "continue from the newest checkpoint in the run directory") -> Parser:
    """The argument of a command that can go on with a run."""
    parser = Parser(add_help=False)
    parser.add_argument("--resume", action="store_true", help=text)
    return parser
