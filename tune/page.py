"""The HTML of a report, as trees of elements: whatever text goes in is text, never markup."""

import base64
import gzip
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, tostring

from plotly.offline import get_plotlyjs

from tune.drawing import Picture

HERE = Path(__file__).parent
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""what the page may load: nothing"""
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""control characters, halves of surrogate pairs, and what turns the direction of writing"""

Content = str | Element


def tag(name: str, /, *content: Content | None, **attributes: str) -> Element:
    """An element; a trailing `_` of an attribute is dropped and `_` in it becomes `-`. None adds nothing."""
    element = Element(name, {key.rstrip("_").replace("_", "-"): _clean(value) for key, value in attributes.items()})
    last: Element | None = None
    for each in content:
        if isinstance(each, Element):
            element.append(each)
            last = each
        elif each is not None and last is None:
            element.text = (element.text or "") + _clean(each)
        elif each is not None and last is not None:
            last.tail = (last.tail or "") + _clean(each)
    return element


def _clean(text: str) -> str:
    return UNPRINTABLE.sub("\ufffd", text)


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Content]], text_columns: int = 1) -> Element:
    """A table whose first column names its rows; numbers, to the right, come after the first `text_columns`."""
    kinds = ["text"] * text_columns + ["number"] * (len(columns) - text_columns)
    head = tag("tr", *(tag("th", name, scope="col", class_=kind) for name, kind in zip(columns, kinds, strict=True)))
    body = []
    for row in rows:
        first, *rest = row
        cells = [tag("td", value, class_=kind) for value, kind in zip(rest, kinds[1:], strict=True)]
        body.append(tag("tr", tag("th", first, scope="row", class_=kinds[0]), *cells))
    inner = tag("table", tag("thead", head), tag("tbody", *body), aria_label=caption)
    scrolled = tag("div", inner, class_="scroll", role="region", tabindex="0", aria_label="table")
    return tag("div", tag("p", caption, class_="caption"), scrolled)  # beside the table, so as not to scroll with it


def facts(pairs: Sequence[tuple[str, Content]]) -> Element:
    """A list of names and values."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs))


def commands(lines: Sequence[str]) -> Element:
    return tag("pre", tag("code", "\n".join(lines)), tabindex="0", aria_label="commands")


class Page:
    """A report's page. Sections are added in order; figures are drawn in the browser, each when it is about to be seen
    or printed."""

    def __init__(self, title: str, *, wide: bool = False) -> None:
        """`wide` makes room for tables of text."""
        self._title = title
        self._looks = {"class_": "wide"} if wide else {}
        self._body: list[Element] = []
        self._contents: list[tuple[int, str, str]] = []
        self._figures: dict[str, Any] = {}

    def add(self, *elements: Element) -> None:
        self._body += elements

    def heading(self, level: int, text: str) -> None:
        """A heading that the table of contents has."""
        anchor = f"s{len(self._contents)}"
        self._contents.append((level, text, anchor))
        self.add(tag(f"h{level}", text, id=anchor))

    def picture(self, picture: Picture) -> Element:
        """The figure with its title and caption; a sentence where there is nothing to draw."""
        if picture.figure is None:
            return tag("p", tag("strong", _sentence(picture.title)), picture.caption, class_="empty")
        anchor = f"f{len(self._figures)}"
        self._figures[anchor] = json.loads(picture.figure.to_json())
        height = f"min-height:{picture.figure.layout.height}px"
        plot = tag("div", id=anchor, class_="plot", role="img", style=height, aria_labelledby=f"{anchor}-c")
        caption = tag("figcaption", tag("strong", _sentence(picture.title)), picture.caption, id=f"{anchor}-c")
        return tag("figure", plot, caption)

    def html(self) -> str:
        contents = tag(
            "nav",
            tag(
                "ol",
                *(tag("li", tag("a", text, href=f"#{to}"), class_=f"h{level}") for level, text, to in self._contents),
            ),
            aria_label="contents",
        )
        no_script = tag("p", "Figures need JavaScript; all tables and texts are here without it.", class_="notice")
        failed = tag("p", "", id="no-figures", class_="notice", hidden="hidden", role="status")
        first = (tag("h1", self._title), tag("noscript", no_script), failed)
        main = tag("main", *first, *self._body, id="main", **self._looks)
        style = (HERE / "report.css").read_text(encoding="utf-8")
        head = tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("title", self._title),
            tag("style", style),
        )
        scripts: list[Element] = []
        if self._figures:
            scripts = [
                tag("script", _library(), type="application/octet-stream", id="plotly"),
                tag("script", _embedded(self._figures), type="application/json", id="figures"),
                tag("script", (HERE / "report.js").read_text(encoding="utf-8")),
            ]
        skip = tag("a", "Skip to the report", href="#main", class_="skip")
        body = tag("body", skip, contents, main, *scripts)
        return "<!doctype html>\n" + tostring(tag("html", head, body, lang="en"), encoding="unicode", method="html")


@cache
def _library() -> str:
    """plotly.js, a third of its size."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), compresslevel=6, mtime=0)).decode()


def _sentence(title: str) -> str:
    return f"{title} " if title.endswith("?") else f"{title}. "


def _embedded(content: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
