"""Paths as users write them: `~` and environment variables stand for what a shell would put there."""

import os
import re

from psgc.errors import UserError


def expanded(path: str) -> str:
    """`path` with a leading `~` or `~user` and every `$NAME` and `${NAME}` replaced; `$$` is a dollar sign.

    Raises UserError for a variable that is not set, or is empty, and for a user that does not exist.

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
