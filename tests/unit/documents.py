"""The code in pages of docs/."""

import re


def blocks(page, language="python"):
    """The blocks of a page in this language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
