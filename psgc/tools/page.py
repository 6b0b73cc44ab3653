"""The report as one HTML page: no network, no script, light and dark.

Everything that comes from a run (names, reasons, settings) is escaped, so that it is never markup.
"""

import base64
import json
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from psgc import __version__
from psgc.config import BatchSettings
from psgc.errors import visible
from psgc.record.summary import duration
from psgc.run_rows import WorkerEvent
from psgc.tools.drawing import DARK, LIGHT, Picture
from psgc.tools.run_directory import RecordedRun
from psgc.yaml_source import flat

LISTED = 200  # rows of lost.csv that the page shows
NARROW = 640  # pixels; a figure is not shrunk below this width, but scrolled

STYLE = f"""
:root {{ color-scheme: light dark; --paper: {LIGHT.paper}; --ink: {LIGHT.ink}; --muted: {LIGHT.muted};
  --line: {LIGHT.grid}; --accent: {LIGHT.lines[0]}; --bad: {LIGHT.outcomes[3]}; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: {DARK.paper}; --ink: {DARK.ink}; --muted: {DARK.muted};
  --line: {DARK.grid}; --accent: {DARK.lines[0]}; --bad: {DARK.outcomes[3]}; }} }}
body {{ margin: 0 auto; max-width: 60rem; padding: 1rem 1.25rem 3rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.5rem; margin: 0.5rem 0; }}
h2 {{ font-size: 1.15rem; margin: 2.5rem 0 0.5rem; }}
.status {{ border-left: 0.3rem solid var(--accent); padding-left: 0.75rem; }}
.status.bad {{ border-color: var(--bad); }}
dl {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem; margin: 1.5rem 0; }}
dt {{ color: var(--muted); font-size: 0.875rem; }}
dd {{ margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }}
figure {{ margin: 0; }}
figcaption {{ color: var(--muted); font-size: 0.9rem; }}
.hint {{ display: none; }}
@media (max-width: {NARROW}px) {{ .hint {{ display: inline; }} }}
.wide {{ overflow-x: auto; }}
.wide:focus-visible {{ outline: 2px solid var(--accent); }}
img {{ display: block; width: 100%; min-width: {NARROW}px; height: auto; }}
table {{ border-collapse: collapse; font-size: 0.9rem; }}
th, td {{ text-align: left; vertical-align: top; padding: 0.2rem 1.25rem 0.2rem 0;
  max-width: 40rem; overflow-wrap: break-word; border-bottom: 1px solid var(--line); }}
th {{ font-weight: 600; }}
tbody th {{ font-weight: 400; color: var(--muted); }}
footer {{ margin-top: 3rem; color: var(--muted); font-size: 0.875rem; }}
"""


def page(
    run: RecordedRun, said: Sequence[str], images: Iterable[tuple[Picture, bytes, bytes]], reload: bool = False
) -> str:
    """The whole page. said: the sentences on top; images: each picture with its PNG on light and on dark paper.

    reload: the browser is to load it again now and then, since it is written again.
    """
    name = _text(run.path.resolve().name)
    parts = [
        f"<h1>Report of the run {name}</h1>",
        _status(run),
        _facts(run),
        *(f"<p>{_text(sentence)}</p>" for sentence in said),
        *(_figure(picture, light, dark) for picture, light, dark in images),
        _lost(run),
        _table("Summary", ("what", "value"), _values(_shown_summary(run.summary))) if run.summary else "",
        _table("Settings", ("setting", "value"), _values(run.config.model_dump())),
    ]
    if not len(run.iterations["iteration"]):
        parts.insert(2, "<p>No iteration was recorded.</p>")
    body = "\n".join(part for part in parts if part)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">{'<meta http-equiv="refresh" content="5">' if reload else ""}
<title>psgc: {name}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{body}
</main>
<footer>psgc {__version__}, from {_text(str(run.path))}</footer>
</body>
</html>
"""


def _text(text: str) -> str:
    return escape(visible(text))


def _status(run: RecordedRun) -> str:
    done = len(run.iterations["iteration"])
    if run.summary is None:
        text = f"The run has not ended: it is still going on, or it was killed. It has recorded {done} iterations."
        if run.timeline is None:
            text += " It has no timeline, so the report says nothing about single workers."
        return f'<p class="status bad">{text}</p>'
    status, reason = run.summary["status"], run.summary["reason"]
    if status == "done":
        return f'<p class="status">The run is done, after {done} iterations.</p>'
    said = {"failed": "The run failed", "interrupted": "The run was interrupted"}.get(status, f"Status {status}")
    return f'<p class="status bad">{_text(said)} after {done} iterations: {_text(reason)}</p>'


def _facts(run: RecordedRun) -> str:
    summary: dict[str, Any] = run.summary or {}
    batch = run.config.batch if isinstance(run.config.batch, BatchSettings) else None
    facts = {
        "workers": str(run.workers) if run.workers else None,
        "chunks": str(run.chunks) if run.chunks else None,
        "epoch": _shown(summary.get("epoch"), lambda epoch: f"{epoch}/{batch.epochs}") if batch else None,
        "schedule": run.config.schedule,
        "per iteration": _shown(summary.get("seconds_per_iteration"), duration),
        "efficiency T*/T": _shown(summary.get("efficiency"), "{:.2f}".format),
        "final loss": _shown(summary.get("final_loss"), "{:.6g}".format),
        "held-out loss": _shown(summary.get("test_loss"), "{:.4g}".format),
        "best held-out loss": _shown((summary.get("best") or {}).get("test_loss"), "{:.4g}".format),
        "held-out accuracy": _shown(summary.get("test_accuracy"), "{:.4f}".format),
        "work thrown away": _shown(summary.get("work_thrown_away"), lambda share: f"{100 * share:.1f} %"),
        "whole run": _shown(summary.get("seconds"), duration),
    }
    items = (f"<div><dt>{name}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items() if value is not None)
    return f"<dl>{''.join(items)}</dl>"


def _shown(value: Any, show: Any) -> str | None:
    """A number of the summary, which may be "nan" or "inf"; None when there is none."""
    return value if value in ("nan", "inf", "-inf") else show(value) if isinstance(value, (int, float)) else None


def _figure(picture: Picture, light: bytes, dark: bytes) -> str:
    width, height = struct.unpack(">II", light[16:24])
    sources = [f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in (light, dark)]
    return f"""<section aria-labelledby="{picture.name}">
<h2 id="{picture.name}">{_text(picture.title)}</h2>
<figure>
<div class="wide" tabindex="0" role="group" aria-label="{_text(picture.title)}">
<picture><source media="(prefers-color-scheme: dark)" srcset="{sources[1]}">
<img alt="{_text(picture.alt)}" width="{width}" height="{height}" src="{sources[0]}"></picture>
</div>
<figcaption>{_text(picture.caption)} <span class="hint">Scroll the figure sideways.</span></figcaption>
</figure>
</section>"""


def _lost(run: RecordedRun) -> str:
    if not run.events:
        return ""
    wrong = Counter(event.worker for event in run.events if event.event == "wrong")
    title = "Lost workers and wrong copies" if wrong else "Lost workers"
    parts = [_table(title, WorkerEvent._fields, run.events[:LISTED])]
    if len(run.events) > LISTED:
        parts.append(f"<p>{len(run.events) - LISTED} more are in lost.csv.</p>")
    if wrong:
        named = ", ".join(f"{count} of worker {worker}" for worker, count in wrong.most_common(LISTED))
        parts.append(f"<p>Wrong copies: {named}.</p>")
    return "\n".join(parts)


def _shown_summary(summary: dict[str, Any]) -> dict[str, Any]:
    left_out = ("lost", "evaluating")  # these have a table of their own; true until the run has ended
    return {name: value for name, value in summary.items() if name not in left_out and value not in ("", {}, [])}


def _values(tree: dict[str, Any]) -> list[tuple[str, str]]:
    """Names with dots, and values as JSON; text as it is."""
    texts = {name: f"{v:.6g}" if isinstance(v, float) else v for name, v in flat(tree).items()}
    return [(name, v if isinstance(v, str) else json.dumps(v, default=str)) for name, v in texts.items()]


def _table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A section with a table whose first column names its rows."""
    name = title.lower().replace(" ", "-")
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in header)
    lines = [
        f'<tr><th scope="row">{_text(str(first))}</th>'
        + "".join(f"<td>{_text(str(value))}</td>" for value in others)
        + "</tr>"
        for first, *others in rows
    ]
    return f"""<section aria-labelledby="{name}">
<h2 id="{name}">{title}</h2>
<div class="wide" tabindex="0" role="group" aria-label="{title}"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{chr(10).join(lines)}
</tbody>
</table></div>
</section>"""
