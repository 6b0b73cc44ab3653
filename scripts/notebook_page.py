"""For mkdocs, which calls `on_files`: docs/notebook.ipynb as a page, with its outputs and figures."""

import base64
import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Adds notebook.md and its figures."""
    cells = json.loads(Path(config.docs_dir, "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    parts: list[str] = []
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else _fenced(source, "python"))
        said = ""
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            said += "".join(output.get("text", []) or ("" if "image/png" in data else data.get("text/plain", [])))
            if "image/png" in data:
                name = f"notebook-{number}.png"
                files.append(File.generated(config, name, content=base64.b64decode(data["image/png"])))
                parts.append(f"![What the code above draws]({name})")
        if said:
            parts.append(_fenced(said, "text"))
    files.append(File.generated(config, "notebook.md", content="\n\n".join(parts) + "\n"))
    return files


def _fenced(text: str, language: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"
