"""From the SVG that matplotlib writes to one that lives in a page: small, without colours, fonts and ids of its own.

A figure has marks, which matplotlib draws, and words, which are SVG text in the font of the page. Nothing is clipped:
figures draw no mark outside their axes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from xml.etree import ElementTree

from matplotlib.figure import Figure

_FEW = 2  # so many equal shapes are written out; more become one line with a shape at each of its points
_NUMBER = re.compile(r"-?\d+\.\d+(?:e[-+]?\d+)?")
_LETTER = re.compile(" ?([A-Za-z]) ?")
_JOINERS = "\u200c\u200d"  # invisible, but part of the spelling of some languages
_NARROW, _WIDE = frozenset(" ijlftrI.,:;'|!()[]-"), frozenset("mwMW%@…")
_UNSEEN = ("Cc", "Cf", "Cs", "Cn")  # controls, marks of direction, halves of pairs, what is no character


@dataclass(frozen=True)
class Words:
    """Text at a place, in points from the upper left corner; y is the baseline. anchor: start, middle or end."""

    text: str
    x: float
    y: float
    size: float
    colour: str
    anchor: str = "start"
    bold: bool = False


def clean(text: str) -> str:
    """The text on one line, without characters that XML forbids or that turn the direction of what follows."""
    unseen = {char for char in set(text) - set(_JOINERS) if unicodedata.category(char) in _UNSEEN}
    return "".join("\N{REPLACEMENT CHARACTER}" if char in unseen else char for char in " ".join(text.split()))


def width(text: str, size: float) -> float:
    """About how wide a text is, in points: wide rather than narrow, as the font is not known."""
    return size * sum(_width(char) for char in text)


def _width(char: str) -> float:
    """As in DejaVu Sans, which is a wide font."""
    if char in _NARROW:
        return 0.4
    return 1 if char in _WIDE or unicodedata.east_asian_width(char) in "WF" else 0.65


def shorten(text: str, points: float, size: float) -> str:
    """The text cleaned and at most so many points wide. What is too long loses its middle, because names often differ
    at their ends. size: of the font."""
    text = clean(text)
    if width(text, size) <= points:
        return text
    start, end = text[: len(text) // 2], text[len(text) // 2 :]
    while (start or end) and width(f"{start}…{end}", size) > points:
        start, end = (start[:-1], end) if len(start) >= len(end) else (start, end[1:])
    return f"{start}…{end}"


def wrapped(text: str, points: float, size: float, most: int = 3) -> list[str]:
    """The text on at most so many lines of this width, broken after spaces, hyphens and underscores."""
    lines = [""]
    for part in re.findall(r"[^ _-]*[ _-]*", clean(text)):
        if lines[-1] and width(lines[-1] + part, size) > points and len(lines) < most:
            lines.append("")
        lines[-1] += part
    return [shorten(line, points, size) for line in lines]


def page_svg(figure: Figure, words: Sequence[Words], colours: Mapping[str, str], name: str, alt: str) -> str:
    """The figure as SVG for inside a page.

    colours: what stands for a colour, by the colour that the figure is drawn with, as #rrggbb. name: begins all ids, so
    that figures of other names have others. alt: the text for those who cannot see the figure.
    """
    source = StringIO()
    figure.savefig(source, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawn, alt = ElementTree.fromstring(source.getvalue()), clean(alt)
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": drawn.attrib["viewBox"],
        "class": "plot",
        "role": "img",
        "aria-label": alt,
        "style": "max-width:100%;height:auto",
        "stroke-linejoin": "round",
    }
    svg = ElementTree.Element("svg", attributes)
    ElementTree.SubElement(svg, "title").text = alt
    prefix = re.sub(r"[^A-Za-z0-9_-]", lambda odd: f"_{ord(odd[0]):x}_", name)
    for mark in _marks(drawn):
        svg.extend(mark.elements(f"{prefix}-{len(svg)}", colours))
    svg.extend(_text(one, colours) for one in words)
    return ElementTree.tostring(svg, encoding="unicode")


@dataclass(frozen=True)
class _Mark:
    """A shape with its style, and the places where it is drawn."""

    path: str
    style: Mapping[str, str]
    places: list[tuple[float, float]]

    def elements(self, id_: str, colours: Mapping[str, str]) -> list[ElementTree.Element]:
        """As SVG: a path for each place, or, where these are many, one line with a marker at each of its points."""
        style = ";".join(f"{name}:{colours.get(value, _shorter(value, 2))}" for name, value in self.style.items())
        path = _LETTER.sub(r"\1", " ".join(self.path.split()))
        shape = {"d": _shorter(path, 2), "style": style}
        if len(self.places) > _FEW:
            marker = ElementTree.Element(
                "marker", {"id": id_, "markerUnits": "userSpaceOnUse", "style": "overflow:visible"}
            )
            marker.append(ElementTree.Element("path", shape))
            line = "M" + "L".join(f"{_short(x, 1)} {_short(y, 1)}" for x, y in self.places)
            return [marker, ElementTree.Element("path", {"d": line, "style": f"fill:none;marker:url(#{id_})"})]
        moves = [
            {} if (x, y) == (0, 0) else {"transform": f"translate({_short(x)} {_short(y)})"} for x, y in self.places
        ]
        return [ElementTree.Element("path", {**shape, **move}) for move in moves]


def _marks(drawn: ElementTree.Element) -> list[_Mark]:
    """What matplotlib has drawn, in its order. Shapes that are used repeatedly are in its `defs`."""
    marks: list[_Mark] = []
    shapes: dict[str, ElementTree.Element] = {}
    for element in _drawing_order(drawn, shapes):
        style = _style(element)
        if _tag(element) == "path":
            if "d" in element.attrib:  # a line of nan has none
                marks.append(_Mark(element.attrib["d"], style, [(0.0, 0.0)]))
            continue
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        shape = shapes[attributes["href"].removeprefix("#")]
        path, style = shape.attrib["d"], {**style, **_style(shape)}
        if not (marks and (marks[-1].path, marks[-1].style) == (path, style)):
            marks.append(_Mark(path, style, []))
        marks[-1].places.append((float(attributes["x"]), float(attributes["y"])))
    return marks


def _drawing_order(group: ElementTree.Element, shapes: dict[str, ElementTree.Element]) -> Iterator[ElementTree.Element]:
    """The `path` and `use` elements of a group; fills in the shapes by their ids."""
    for element in group:
        if _tag(element) == "defs":
            shapes.update({shape.attrib["id"]: shape for shape in element if _tag(shape) == "path"})
        elif _tag(element) in ("path", "use"):
            yield element
        else:
            yield from _drawing_order(element, shapes)


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _style(element: ElementTree.Element) -> dict[str, str]:
    declarations = [part.partition(":") for part in element.get("style", "").split(";") if part.strip()]
    return {name.strip(): value.strip() for name, _, value in declarations}


def _text(words: Words, colours: Mapping[str, str]) -> ElementTree.Element:
    element = ElementTree.Element("text", {"x": _short(words.x), "y": _short(words.y), "font-size": _short(words.size)})
    if words.anchor != "start":
        element.set("text-anchor", words.anchor)
    if words.bold:
        element.set("font-weight", "bold")
    element.set("style", f"fill:{colours[words.colour]}")
    element.text = clean(words.text)
    return element


def _shorter(numbers: str, digits: int) -> str:
    """The text with the numbers in it rounded."""
    return _NUMBER.sub(lambda number: _short(float(number[0]), digits), numbers)


def _short(number: float, digits: int = 1) -> str:
    text = f"{round(number, digits) + 0.0:.{digits}f}"  # + 0.0: no minus before a zero
    return text.rstrip("0").rstrip(".") if "." in text else text
