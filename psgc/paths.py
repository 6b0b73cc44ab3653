"""Expands `~` and environment variables in paths, as a shell does."""

import os
import re

from psgc.errors import UserError


def expanded(path: str) -> str:
    """`path` with a leading `~` or `~user` and each `$NAME` and `${NAME}` replaced; `$$` is a dollar sign.

    Raises UserError for a variable that is not set or is empty.

    >>> os.environ["SCRATCH"] = "/scratch/me"
    >>> expanded("$SCRATCH/a$$b"), expanded("${SCRATCH}/c~d")
    ('/scratch/me/a$b', '/scratch/me/c~d')
    """

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name = match[1].strip("{}")
        if not os.environ.get(name):
            raise UserError(f"{path}: the variable {name} is not set; a dollar sign is written as $$")
        return os.environ[name]

    user, slash, rest = path.partition("/") if path.startswith("~") else ("", "", path)
    home = os.path.expanduser(user + slash)
    return home + re.sub(r"\$(\$|[A-Za-z_]\w*|\{[^{}]*\})", value, rest, flags=re.ASCII)
