"""Renders the report: WORK/results/report.html, one file that opens from a disk and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import logging
import math
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.decision.decide import FinalConfig
from gansfp.report.attribution_section import attribution_section
from gansfp.report.audited import AuditedWork, read_work
from gansfp.report.data_section import data_section
from gansfp.report.glossary import GLOSSARY, NAMES_OF_THE_SEARCH
from gansfp.report.labels import LABELS
from gansfp.report.membership_section import set_sections
from gansfp.report.options import ALL, NONE, ReportConfig
from gansfp.report.pictures import Pictures
from gansfp.report.plot_style import STYLE
from gansfp.report.record_section import THRESHOLD, record_section
from gansfp.report.search_section import search_sections
from gansfp.report.texts import FIGURE_NAMES, MEANINGS, TEXTS

NAME = "report.html"
log = logging.getLogger(__name__)


def write_report(work: str, config: ReportConfig, catalog: Catalog | None = None) -> str:
    """Writes the report of a WORK, finished or not, and returns where it is.

    catalog: of DATA as it is now; None takes the one that the audit left. The same WORK gives the same bytes. Raises
    DataError where there is nothing to report, or where WORK cannot be written.
    """
    audited = read_work(work, catalog)
    place = store.join(work, "results", NAME)
    store.write_bytes_atomically(place, render(audited, config).encode())
    return place


def render(audited: AuditedWork, config: ReportConfig) -> str:
    """The page as HTML."""
    pictures = Pictures(audited.catalog, allowed=config.pictures != NONE)
    sections = {
        "sets": set_sections(audited, pictures, config.pictures == ALL),
        "attribution": attribution_section(audited, pictures),
        "searches": search_sections(audited),
        "data": data_section(audited, pictures),
        "record": record_section(audited),
        "systems": audited.lines("reproduction.csv"),
    }
    if pictures.missing:
        example, reason = next(iter(sorted(pictures.missing.items())))
        log.warning("report: %d slices have no picture, such as %s: %s", len(pictures.missing), example, reason)
    script = _part("script.js")
    no_pictures = TEXTS["pictures_none"] if config.pictures == NONE else TEXTS["pictures_no_data"]
    return (
        _environment()
        .get_template("page.html")
        .render(
            audited=audited,
            run=audited.run,
            meanings=MEANINGS,
            t=SimpleNamespace(**LABELS, **TEXTS),
            glossary=GLOSSARY,
            names_of_the_search=NAMES_OF_THE_SEARCH,
            figure_names=FIGURE_NAMES,
            threshold=THRESHOLD,
            alpha=audited.run.get("alpha", FinalConfig.alpha),
            power_sentence=power_sentence,
            no_pictures="" if pictures and not _all_missing(pictures) else no_pictures,
            style=Markup(STYLE + _part("style.css")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            **sections,
        )
    )


def _all_missing(pictures: Pictures) -> bool:
    return bool(pictures.missing) and not pictures.loaded


def _part(name: str) -> str:
    return files("gansfp.report").joinpath("templates", name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    """Autoescape is on: a name from a file is never markup. A misspelt name is an error and no gap in the page."""
    environment = Environment(
        loader=PackageLoader("gansfp.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "percent": percent,
        "p": p_value,
        "probability": probability,
        "svg": Markup,
        "interval": interval,
        "short": short,
        "count": "{:,}".format,
    }
    return environment


def number(value: float | None, digits: int = 3) -> str:
    """A figure, or a dash where it is not defined."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A share, with a digit where it is small."""
    if value is None or math.isnan(value):
        return "–"
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%" if 0 < value < 0.1 else f"{100 * value:.0f}\N{NO-BREAK SPACE}%"


def probability(value: float) -> str:
    """A probability that is never stated as certain."""
    return (
        f"more than {percent(0.99)}"
        if value > 0.99
        else f"less than {percent(0.01)}"
        if value < 0.01
        else percent(value)
    )


def p_value(value: float | None) -> str:
    """A p-value with two digits, or a dash where there is none."""
    return "–" if value is None else f"{value:.2g}"


def interval(figure: Mapping[str, float | None]) -> str:
    """The 95 % interval of a figure."""
    if figure.get("low") is None:
        return "–"
    return f"{number(figure['low'])} to {number(figure['high'])}"


def short(image_id: str) -> str:
    """An id without its folders: two slices of one name are in different places of the page."""
    return image_id.rpartition("/")[2] or image_id


def power_sentence(power: Mapping[str, Any]) -> str:
    """What this audit would have seen, from the `power` of a set in metrics.json."""
    if "missing" in power:
        return TEXTS["power_none"].format(reason=power["missing"])
    smallest = power["smallest_leak"]
    if not smallest:
        return TEXTS["power_never"].format(found=percent(power["found"]))
    # An earlier version wrote the share alone.
    share = smallest["share_of_generated"] if isinstance(smallest, Mapping) else smallest
    every = max(1, round(1 / share))
    return TEXTS["power_seen"].format(every=f"{every:,}", blend=percent(power["blend"]), found=percent(power["found"]))
