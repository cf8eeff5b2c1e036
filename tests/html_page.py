"""What a browser would make of a report in HTML, and that it is nothing but that."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "wbr"}
TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "div", "header", "footer", "nav",
    "section", "h1", "h2", "h3", "p", "ul", "ol", "li", "dl", "dt", "dd", "b", "strong", "small",
    "span", "bdi", "code", "pre", "cite", "a", "wbr", "details", "summary", "figure", "figcaption",
    "table", "thead", "tbody", "tr", "th", "td", "script", "svg", "desc", "rect", "line",
    "polyline", "circle", "text",
}  # fmt: skip
NUMBERS = re.compile(r"-?\d+(\.\d+)?")
SPACED = re.compile(r"-?\d+(\.\d+)?([ ,]-?\d+(\.\d+)?)*")
WORDS = re.compile(r"[a-z0-9-]+( [a-z0-9-]+)*")
ATTRIBUTES = {
    **dict.fromkeys(
        ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "width", "height", "tabindex"), NUMBERS
    ),
    "data-v": re.compile(r"-?\d+(\.\d+)?(e[-+]\d+)?"),
    "viewbox": SPACED,
    "points": SPACED,
    "class": WORDS,
    "id": WORDS,
    "href": re.compile(r"#[a-z-]+"),
    "scope": re.compile("col|row"),
    "role": re.compile("img|region"),
    "text-anchor": re.compile("start|middle|end"),
    "preserveaspectratio": re.compile("none"),
    "aria-hidden": re.compile("true"),
    "lang": re.compile("en"),
    "charset": re.compile("utf-8"),
    "type": re.compile("application/json"),
}
FREE = {"title", "aria-label"}  # text that a reader sees
OF_META = {"http-equiv", "content", "name"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parent: Element | None
    children: list[Element] = field(default_factory=list)
    text: str = ""  # with that of all below

    def all(self, tag: str = "", style: str = "") -> list[Element]:
        """Those below, in their order."""
        found = []
        for child in self.children:
            if tag in ("", child.tag) and (not style or style in child.styles):
                found.append(child)
            found += child.all(tag, style)
        return found

    @property
    def styles(self) -> list[str]:
        return self.attributes.get("class", "").split()

    def number(self, name: str) -> float:
        return float(self.attributes[name])


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {}, None)
        self.at = self.root

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        found = {name: value or "" for name, value in attrs}
        assert len(found) == len(attrs), f"an attribute twice in {attrs}"
        for name, value in attrs:
            assert value is not None, name
            check_attribute(tag, name, value)
        made = Element(tag, found, self.at)
        self.at.children.append(made)
        if tag not in VOID:
            self.at = made

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        raise AssertionError(f"<{tag} {attrs}/>")

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.at.tag, f"</{tag}> in {self.at.tag}"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        at: Element | None = self.at
        while at is not None:
            at.text += data
            at = at.parent

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"a declaration: {data}")

    def handle_pi(self, data: str) -> None:
        raise AssertionError(f"an instruction: {data}")


def check_attribute(tag: str, name: str, value: str) -> None:
    if tag == "meta" and name in OF_META:
        return
    if name in FREE:
        return
    assert name in ATTRIBUTES, f"{name} of {tag}"
    assert ATTRIBUTES[name].fullmatch(value), f"{name}={value!r} of {tag}"


def parse(text: str) -> Element:
    """Fails for what is not balanced, or not of the tags and attributes that reports use."""
    parser = _Parser()
    parser.feed(text)
    parser.close()
    assert parser.at is parser.root, f"<{parser.at.tag}> is not closed"
    return parser.root


def shown(root: Element) -> str:
    """All that can be read: text but for style and scripts, and titles."""
    parts = [element.attributes[name] for element in root.all() for name in sorted(FREE)
             if name in element.attributes]  # fmt: skip
    pages = root.all("body") or [root]
    for page in pages:
        parts += [part.text for part in page.children if part.tag not in ("style", "script")]
    return "\n".join(parts + [title.text for title in root.all("title")])


def one(found: list[Element]) -> Element:
    assert len(found) == 1, len(found)
    return found[0]


def figure(root: Element, caption: str) -> Element:
    """The figure of that caption."""
    return one([f for f in root.all("figure") if f.children[0].text.startswith(caption)])


def cells(table: Element) -> list[list[str]]:
    """The text of a table's body."""
    body = one(table.all("tbody"))
    return [[cell.text for cell in row.children] for row in body.all("tr")]
