"""report.html: what it says in each case, that it loads nothing, and that the same WORK gives the same bytes."""

import base64
import hashlib
import html
import json
import re
import shutil
import time
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cases import CASES, MARKUP, OTHER_ALPHABETS

from gansfp.errors import DataError
from gansfp.published.table import Row, as_csv
from gansfp.report.texts import MEANINGS
from gansfp.statistics.intervals import Estimate
from jobs import report

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
EMPTY = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Elements(HTMLParser):
    """The elements of a page with their attributes; raises where one is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def text_of(page: str) -> str:
    """What a person reads."""
    page = re.sub(r"<(style|script)\b.*?</\1>|<title\b.*?</title>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def made(work: Path, *options: str) -> str:
    report.main(["--work", str(work), *options])
    return (work / "results/report.html").read_text()


@pytest.fixture(scope="module", params=CASES)
def case(request, decided, tmp_path_factory) -> tuple[str, Path]:
    work = tmp_path_factory.mktemp("case") / "work"
    shutil.copytree(decided, work, ignore=shutil.ignore_patterns("embeddings"))
    CASES[request.param](work)
    return request.param, work


@pytest.fixture(scope="module")
def page(case) -> str:
    return made(case[1])


def test_the_page_is_well_formed_and_loads_nothing(page):
    elements = Elements(page).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for tag, attributes in elements:
        for name in ("src", "href", "action", "data", "poster"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/")), (tag, value)
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in ids
        assert not any(name.startswith("on") for name in attributes), attributes
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes["aria-label"]
    assert not re.search(r"url\((?!#)|@import", page)
    headings = [int(tag[1]) for tag, _ in elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))


def test_only_the_script_of_the_page_may_run(page):
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in html.unescape(policy)


def test_each_set_is_answered(case, page):
    _, work = case
    place = work / "results/metrics.json"
    metrics = json.loads(place.read_text()) if place.exists() else {}
    words = text_of(page)
    for name, of_set in metrics.get("membership", {}).get("sets", {}).items():
        meaning = MEANINGS[of_set["verdict"]["finding"]]
        for sentence in (
            " ".join(of_set["verdict"]["sentence"].split()),
            *meaning.means,
            *meaning.not_means,
            *meaning.do,
        ):
            assert sentence in words
        assert f"Set “{' '.join(name.split())}”: did these patients' slices train the generator?" in words
    if "attribution" in metrics:
        assert MEANINGS[metrics["attribution"]["verdict"]["finding"]].answer in words
    for name in ("nan", "None", "undefined", "NaN"):
        assert not re.search(rf"\b{name}\b", words), name


@pytest.fixture(scope="module")
def finished(decided, tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("finished") / "work"
    shutil.copytree(decided, work, ignore=shutil.ignore_patterns("embeddings"))
    return work


def changed(finished: Path, tmp_path: Path, case: str) -> str:
    shutil.copytree(finished, tmp_path / "work")
    CASES[case](tmp_path / "work")
    return made(tmp_path / "work")


@pytest.mark.parametrize("name", ["markup as names", "searched"])
def test_the_same_work_gives_the_same_bytes(finished, tmp_path, name):
    page = changed(finished, tmp_path, name)
    assert made(tmp_path / "work") == page


def test_the_final_step_writes_the_report(decided, finished):
    assert (decided / "results/report.html").read_text() == made(finished)


def test_figures_and_patients_are_those_of_the_results(finished):
    words = text_of(made(finished))
    metrics = json.loads((finished / "results/metrics.json").read_text())
    for name, of_set in metrics["membership"]["sets"].items():
        assert (
            f"AUC {of_set['auc']['value']:.3f} {of_set['auc']['low']:.3f} to {of_set['auc']['high']:.3f} 0.500" in words
        )
        first = (finished / f"results/membership-{name}-patients.csv").read_text().splitlines()[1].split(",")
        assert f"{first[0].rpartition('/')[2]} {first[1]} {float(first[2]):.2f}" in words
    assert f"ARI {metrics['attribution']['ari']['value']:.3f}" in words


def test_the_strongest_slices_are_shown_one_a_patient(finished):
    words = text_of(made(finished))
    table = pq.read_table(finished / "results/membership-warp.parquet").to_pylist()
    flagged = sorted((row for row in table if row["prediction"] == 1), key=lambda row: -row["score"])
    of_patients = {row["group"]: row for row in reversed(flagged)}
    for row in sorted(of_patients.values(), key=lambda row: -row["score"])[:5]:
        assert f"{row['catalog_id'].rpartition('/')[2]}" in words
        assert f"Slice score {row['score']:.2f}, probability of having been used" in words


def test_names_are_shown_as_text(finished, tmp_path):
    page = changed(finished, tmp_path, "markup as names")
    assert MARKUP not in page
    assert text_of(page).count(MARKUP) > 20
    assert not [attributes for _, attributes in Elements(page).found if attributes.get("src") == "x"]


def test_names_of_other_alphabets_are_shown(finished, tmp_path):
    assert text_of(changed(finished, tmp_path, "other alphabets")).count(OTHER_ALPHABETS) > 20


def test_without_pictures_no_slice_is_in_the_page(finished):
    page = made(finished, "--pictures", "none")
    assert "data:image" not in page
    assert "made without pictures" in text_of(page)
    assert "data:image" in made(finished)


def test_every_flagged_slice_is_shown_if_asked_for(finished):
    flagged = sum(
        row == 1
        for name in ("warp", "clean")
        for row in pq.read_table(finished / f"results/membership-{name}.parquet")["prediction"].to_pylist()
    )
    groups = made(finished, "--pictures", "all").count('alt="Real slice')
    assert made(finished).count('alt="Real slice') < groups <= flagged + 20


def test_missing_and_changed_files_are_said(challenge, finished, tmp_path):
    shutil.copytree(challenge, tmp_path / "data")
    shutil.copytree(finished, tmp_path / "work")
    made(tmp_path / "work", "--data", str(tmp_path / "data"))
    (tmp_path / "data/attribution/test").rename(tmp_path / "data/attribution/gone")
    with pytest.raises(DataError, match="other images"):
        made(tmp_path / "work", "--data", str(tmp_path / "data"))
    table = pq.read_table(tmp_path / "work/catalog.parquet")
    hashes = ["0" * 64] * table.num_rows
    column = table.column_names.index("sha256")
    pq.write_table(table.set_column(column, table.schema.field(column), [hashes]), tmp_path / "work/catalog.parquet")
    page = made(tmp_path / "work")
    assert "data:image" not in page
    assert "could not be found" in text_of(page)


def test_nobody_is_named_where_the_verdict_does_not_allow_it(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "work")
    CASES["leak"](tmp_path / "work")
    page = made(tmp_path / "work")
    assert "3 of 16 unknown patients can be named as used" in text_of(page)
    assert page.count("<td>used</td>") == 6
    CASES["biased"](tmp_path / "work")  # the list of patients is still that of a leak
    page = made(tmp_path / "work")
    assert "Nobody should be accused. The scores of 5 of 16 unknown patients" in text_of(page)
    assert "can be named as used" not in text_of(page)
    assert "<td>used</td>" not in page


def test_published_systems_are_shown_where_they_ran(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "work")
    rows = [
        Row("median of nearest", "membership", "7", "Team & Co. 2023", 0.6, Estimate(0.71, 0.6, 0.8), 0.667),
        Row("file size", "attribution", reproduced=Estimate(0.3), chance=0.0, notes=("random weights",)),
    ]
    (tmp_path / "work/results/reproduction.csv").write_text(as_csv(rows))
    words = text_of(made(tmp_path / "work"))
    assert "7 median of nearest Team & Co. 2023 membership, F1 0.6 0.71 0.6 to 0.8 0.667 yes" in words
    assert "file size (baseline) – attribution, ARI – 0.3 – 0 no" in words


def test_an_unfinished_work_says_what_is_missing(finished, tmp_path):
    words = text_of(changed(finished, tmp_path, "searched"))
    assert "This audit is not finished" in words
    assert "Search of membership: done" in words
    assert "Search of attribution: not there" in words
    assert "There is no answer yet" in words


def test_where_there_is_nothing_one_line_says_so(tmp_path):
    with pytest.raises(DataError, match="nothing to report"):
        report.main(["--work", str(tmp_path)])
    with pytest.raises(DataError, match="does not exist"):
        report.main(["--work", str(tmp_path / "none")])


def test_a_report_is_small(finished):
    started = time.monotonic()
    size = len(made(finished).encode())
    assert size < 8e6
    assert time.monotonic() - started < 120  # far above what it takes, so that only a loop without end fails
