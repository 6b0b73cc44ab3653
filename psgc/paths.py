"""Expands `~` and environment variables in paths, as a shell does."""

import os
import re

from psgc.errors import UserError


def expanded(path: str) -> str:
    """`path` with a leading `~` or `~user` and each `$NAME` and `${NAME}` replaced; `$$` is a dollar sign.

    Raises UserError: a variable is not set or is empty, a user does not exist.

    >>> os.environ["SCRATCH"] = "/scratch/me"
    >>> expanded("$SCRATCH/a$$b"), expanded("${SCRATCH}/c~d")
    ('/scratch/me/a$b', '/scratch/me/c~d')
    """

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name = match[1].strip("{}")
        if not os.environ.get(name):
            state = "empty" if name in os.environ else "not set"
            raise UserError(f"{path}: the variable {name} is {state}; a dollar sign is written as $$")
        return os.environ[name]

    user, slash, rest = path.partition("/") if path.startswith("~") else ("", "", path)
    home = os.path.expanduser(user + slash)
    if user and home == user + slash:
        raise UserError(f"{path}: there is no user {user[1:]}; a file of such a name is written as ./{path}")
    return home + re.sub(r"\$(\$|[A-Za-z_]\w*|\{[^{}]*\})", value, rest, flags=re.ASCII)
