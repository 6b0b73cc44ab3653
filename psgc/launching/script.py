"""Scripts that `psgc launch` and `psgc submit` run: what is one, and what is wrong with it before it starts."""

import shlex
import warnings
from collections.abc import Sequence

from psgc.disk import expanded, open_regular
from psgc.errors import UserError
from psgc.yaml_source import printable

SUFFIX = ".py"
MPIRUN_ONLY = ("--map-by", "--bind-to", "--rank-by", "--mca", "--oversubscribe", "--with-ft")


def is_script(path: str) -> bool:
    """Whether `path` names a script; everything else is taken for YAML.

    >>> is_script("train.py"), is_script("run.yaml")
    (True, False)
    """
    return path.endswith(SUFFIX)


def check_script(path: str, arguments: Sequence[str], overrides: Sequence[str] = ()) -> str:
    """The path to give to the ranks. overrides: of --set, which only YAML files have.

    Raises UserError: no such file, not Python, or arguments that are not meant for it.
    """
    name = printable(path)
    if overrides:
        raise UserError(f"--set {printable(overrides[0])}: {name} is no YAML file; what it takes itself comes after --")
    if arguments and arguments[0] in MPIRUN_ONLY:
        option = shlex.quote(f"--mpirun={arguments[0]} ...")
        raise UserError(f"-- {arguments[0]}: what follows -- goes to {name}; for mpirun: {option}")
    path = expanded(path)
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
