"""The program that `psgc launch`, `sweep` and `submit` run: a YAML, or a script that is checked before the start."""

import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from psgc.disk import expanded, open_regular
from psgc.errors import UserError
from psgc.run.launched import DEBUG, DEDICATED, RESUME
from psgc.yaml_source import printable

OF_SCRIPTS = "dedicated_server=true"  # the only override of scripts, from `psgc launch --dedicated-server`
MPIRUN_ONLY = ("--map-by", "--bind-to", "--rank-by", "--mca", "--oversubscribe", "--with-ft")


@dataclass(frozen=True)
class Program:
    """A YAML file or a script, and how to run it."""

    path: str
    overrides: Sequence[str] = ()  # the values of --set
    arguments: Sequence[str] = ()  # the arguments of a script
    for_mpirun: Sequence[str] = ()  # further arguments of mpirun, such as --map-by core
    resume: bool = False  # continue from the newest checkpoint
    debug: bool = False  # show the traceback of an error

    @property
    def is_script(self) -> bool:
        return is_script(self.path)

    @property
    def settings(self) -> list[str]:
        """The options --set and --debug of psgc's commands."""
        settings = [argument for override in self.overrides for argument in ("--set", override)]
        return settings + (["--debug"] if self.debug else [])

    @property
    def told(self) -> dict[str, str]:
        """Variables for the ranks of a script. The ranks of a YAML get the same as arguments."""
        given = {RESUME: self.resume, DEBUG: self.debug, DEDICATED: OF_SCRIPTS in self.overrides}
        return {name: "1" for name, value in given.items() if value and self.is_script}

    @property
    def mpirun(self) -> list[str]:
        """The option --mpirun of psgc's commands, for a script: its own arguments follow --."""
        return [f"--mpirun={shlex.join(self.for_mpirun)}"] if self.is_script and self.for_mpirun else []

    @property
    def after(self) -> Sequence[str]:
        """The arguments after --."""
        return self.arguments if self.is_script else self.for_mpirun


def is_script(path: str) -> bool:
    """Whether `path` names a script. Any other file is read as YAML.

    >>> is_script("train.py"), is_script("run.yaml")
    (True, False)
    """
    return path.endswith(".py")


def check_script(script: Program) -> str:
    """The path for the ranks. Raises UserError: no such file, not Python, or arguments that are not for a script."""
    name, arguments = printable(script.path), script.arguments
    if refused := [override for override in script.overrides if override != OF_SCRIPTS]:
        raise UserError(f"--set {printable(refused[0])}: {name} is no YAML file; its own arguments come after --")
    if arguments and arguments[0] in MPIRUN_ONLY:
        option = shlex.quote(f"--mpirun={arguments[0]} ...")
        raise UserError(f"-- {arguments[0]}: what follows -- goes to {name}; for mpirun: {option}")
    path = expanded(script.path)
    try:
        with open_regular(path) as stream:
            source = stream.read()
    except OSError as error:
        raise UserError(f"{name}: {(error.strerror or str(error)).lower()}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, path, "exec", dont_inherit=True)
    except SyntaxError as error:
        line = f":{error.lineno}" if error.lineno else ""
        raise UserError(f"{name}{line}: not valid Python: {error.msg}") from None
    except ValueError as error:  # NUL bytes
        raise UserError(f"{name}: not valid Python: {error}") from None
    return path


def mpirun_options(texts: Sequence[str]) -> list[str]:
    """The words of --mpirun, as a shell splits them. Raises UserError.

    >>> mpirun_options(["--map-by core", "-x 'A=b c'"])
    ['--map-by', 'core', '-x', 'A=b c']
    """
    words = []
    for text in texts:
        try:
            words += shlex.split(text)
        except ValueError as error:
            raise UserError(f"--mpirun {printable(text)}: {str(error).lower()}") from None
    return words
