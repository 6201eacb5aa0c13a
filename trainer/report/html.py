"""Pieces of HTML. Everything that is text is escaped here, and nothing but these functions makes markup."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from trainer.report.figures import Figure, Matrix
from trainer.report.svg import draw

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")  # no character of a page
_STYLE: Final = Path(__file__).with_name("style.css")
_EMPTY: Final = "\u00a0"  # as high as any text
_WIDE: Final = 12  # classes from which a matrix takes a row of its own


def text(value: object) -> str:
    """Any value as text of a page, or of an attribute in quotes."""
    return escape(_CONTROL.sub("\ufffd", str(value)))


def page(title: str, body: Sequence[str]) -> str:
    """A whole document, which loads nothing and runs nothing."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{text(title)}</title>\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def tile(name: str, value: str, note: str = "") -> str:
    """A number that stands for itself."""
    return f'<div class="tile"><span>{text(name)}</span><b>{text(value)}</b><span>{text(note or _EMPTY)}</span></div>'


def figures(drawn: Sequence[Figure]) -> str:
    """Figures side by side where there is room."""
    return f'<div class="figures">{"".join(map(_figure, drawn))}</div>' if drawn else ""


def _figure(figure: Figure) -> str:
    note = f"<small>{text(figure.note)}</small>" if figure.note else ""
    wide = isinstance(figure, Matrix) and len(figure.labels) > _WIDE
    svg = _CONTROL.sub("\ufffd", draw(figure))
    kind, drawn = (' class="wide"', f'<div class="scroll">{svg}</div>') if wide else ("", svg)
    return f"<figure{kind}><figcaption>{text(figure.title)}{note}</figcaption>{drawn}</figure>"


def table(head: Sequence[str], rows: Sequence[Sequence[object]], numeric: int = 1, tall: bool = False) -> str:
    """A table whose columns from ``numeric`` on are numbers. Of a tuple, the first value stands above the rest."""
    kinds = [' class="n"' if place >= numeric else ' class="t"' for place in range(len(head))]
    titles = "".join(f"<th{kind}>{text(name)}</th>" for kind, name in zip(kinds, head, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{_cell(value)}</td>" for kind, value in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    size = " tall" if tall else ""
    return f'<div class="card{size}"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def pairs(rows: Sequence[tuple[str, object]]) -> str:
    """A table of names and what they are; empty values are left out."""
    lines = "".join(
        f'<tr><td class="k">{text(name)}</td><td class="v">{text(value)}</td></tr>'
        for name, value in rows
        if value != ""
    )
    return f'<div class="card"><table><tbody>{lines}</tbody></table></div>'


def section(anchor: str, title: str, parts: Sequence[str]) -> str:
    """A part of the page under a heading."""
    return f'<section id="{text(anchor)}"><h2>{text(title)}</h2>{"".join(parts)}</section>'


def _cell(value: object) -> str:
    first, *beneath = value if isinstance(value, tuple) else (value,)
    return _breakable(first) + "".join(f"<small>{_breakable(more)}</small>" for more in beneath if more)


def _breakable(value: object) -> str:
    return text(value).replace("_", "_<wbr>")
