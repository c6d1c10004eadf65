"""The parts of the report by themselves: which slices are shown, pictures, risks, spectra, numbers as text."""

import base64
import io
import re
from importlib.resources import files
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from scipy.stats import binom

from gansfp.collection.catalog import read_catalog
from gansfp.report import attribution_section, page, record_section
from gansfp.report.compared import Compared, Shown, choose, with_pictures
from gansfp.report.labels import LABELS
from gansfp.report.membership_section import SetSection
from gansfp.report.pictures import Pictures, difference_picture, encode, lit, outlined
from gansfp.report.texts import TEXTS


def table(rows):
    names = ("catalog_id", "group", "score", "probability", "prediction", "truth", "nearest")
    return pa.table({name: [row[place] for row in rows] for place, name in enumerate(names)})


ROWS = [
    ("a1", "a", 3.0, 0.9, 1, 1, ["g1"]),
    ("a2", "a", 2.5, 0.8, 1, 1, ["g1"]),
    ("b1", "b", 2.0, 0.7, 1, 0, ["g2"]),
    ("c1", "c", -1.0, 0.2, 0, 0, []),
    ("d1", "d", -2.0, float("nan"), 0, 1, []),
]


def test_the_strongest_slice_of_each_patient_is_chosen():
    shown = choose(table(ROWS), table(ROWS))
    assert [one.image_id for one in shown.flagged] == ["a1", "b1"]
    assert [one.image_id for one in shown.others] == ["c1", "d1"]
    assert [(one.image_id, one.truth) for one in shown.coincidences] == [("b1", 0), ("c1", 0)]
    assert shown.others[1].probability is None


def test_slices_without_truth_and_slices_that_could_not_be_read():
    unreadable = ("e1", "e", None, None, 0, None, [])
    shown = choose(table([*ROWS, unreadable]), None)
    assert [one.truth for one in shown.flagged] == [None, None]
    assert "e1" not in [one.image_id for one in shown.others]
    assert not shown.coincidences
    assert choose(None, None).flagged == []


def test_labelled_slices_are_chosen_from_where_nothing_is_unknown():
    assert [one.image_id for one in choose(None, table(ROWS)).flagged] == ["a1", "b1"]


def test_others_are_spread_over_all_ranks():
    rows = [(f"s{place:03}", f"s{place:03}", -float(place), 0.1, 0, 0, []) for place in range(101)]
    assert [one.image_id for one in choose(table(rows), None).others] == ["s000", "s025", "s050", "s075", "s100"]


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")).astype(int)


@pytest.fixture
def collection(tmp_path):
    """A collection of one set, and its slices by name."""
    rng, pixels = np.random.default_rng(0), {}
    for role in ("generated", "used", "not_used"):
        folder = tmp_path / "data/membership/s/train" / role
        folder.mkdir(parents=True)
        for number in range(2):
            smooth = np.kron(rng.integers(0, 255, (16, 16)), np.ones((16, 16))).astype(np.uint8)
            pixels[f"{role}_{number}"] = smooth
            Image.fromarray(smooth).save(folder / f"{role}_{number}.png")
    return tmp_path / "data", pixels


def test_pictures_are_the_slices_of_the_files(collection):
    data, pixels = collection
    pictures = Pictures(read_catalog(str(data)))
    np.testing.assert_array_equal(pictures.pixels("used_1"), pixels["used_1"])
    assert np.abs(decoded(encode(pixels["used_1"])) - pixels["used_1"][..., None]).mean() < 8
    assert decoded(encode(pixels["used_1"], 64)).shape == (64, 64, 3)
    assert not Pictures(read_catalog(str(data)), allowed=False)
    assert (pictures.pixels("unheard of"), pictures.missing) == (None, {})


def test_a_file_that_changed_since_is_not_shown(collection):
    data, pixels = collection
    pictures = Pictures(read_catalog(str(data)))
    Image.fromarray(255 - pixels["used_0"]).save(data / "membership/s/train/used/used_0.png")
    (data / "membership/s/train/used/used_1.png").unlink()
    assert pictures.many(["used_0", "used_1"]) == [None, None]
    assert pictures.missing["used_0"] == "the file has changed since the audit"
    assert "used_1" in pictures.missing
    assert pictures.loaded == 0


def test_a_slice_is_shown_with_its_nearest_ones_or_with_the_reason(collection):
    data, _ = collection
    pictures = Pictures(read_catalog(str(data)))
    rows = [("used_0", "p", 1.0, 0.5, 1, 1, ["generated_0", "generated_1"]), ("used_1", "q", 0.5, 0.5, 1, 1, [])]
    (whole, alone), (gone,) = (
        with_pictures(choose(table(chosen), None), pictures).flagged
        for chosen in (rows, [("gone", "r", 1.0, 0.5, 1, 1, ["generated_0"])])
    )
    assert all((whole.real, whole.synthetic, whole.difference, whole.agreeing))
    assert 0 <= whole.agreement <= 1
    assert [image_id for image_id, _ in whole.further] == ["generated_1"]
    assert alone.real
    assert "no nearest synthetic slices" in alone.missing
    assert (gone.real, gone.missing) == ("", "it is not in the catalog")


def said_of_copies(flagged, coincidences):
    """The part of the page with the pictures, of slices with these agreements."""
    kinds = [
        [Compared("a", "p", 1.0, None, 1, None, (), agreement=agreement) for agreement in kind]
        for kind in (flagged, coincidences)
    ]
    report = {"verdict": {"finding": "leak"}}
    section = SetSection("s", "set1", report, {}, True, {}, [], 0, 0, Shown(kinds[0], [], kinds[1]))
    template = page._environment().from_string(
        '{% import "parts.html" as parts with context %}{% include "pictures.html" %}'
    )
    return template.render(sets=[section], t=SimpleNamespace(**LABELS, **TEXTS), no_pictures="none")


def test_one_evident_copy_is_spoken_of():
    plain = [0.45, 0.44, 0.44, 0.44, 0.43]
    one, two = (said_of_copies(flagged, plain) for flagged in ([0.9, 0.5, 0.5, 0.5, 0.5], [0.75, 0.5, 0.71, 0.4, 0.4]))
    assert "1 of them as copies do, in up to 90" in one
    assert "2 of them as copies do, in up to 75" in two
    assert "much more than coincidence" in said_of_copies([0.8, 0.7, 0.75], plain)
    none = "none of those shown agrees as copies do"
    assert none in said_of_copies([0.6, 0.5, 0.5], plain)
    assert none in said_of_copies([0.75, 0.45], [0.76, 0.44])  # so does a slice that was not used
    assert "1 of them as copies do" in said_of_copies([0.9], [])
    assert "copies" not in said_of_copies([0.5], []) + said_of_copies([], plain)


def test_areas_and_differences_are_drawn():
    grey, area = np.full((20, 20), 100, np.uint8), np.zeros((20, 20), bool)
    area[5:15, 5:15] = True
    drawn = outlined(grey, area)
    assert (drawn[10, 10] == 100).all()
    assert tuple(drawn[5, 5]) == tuple(drawn[6, 9]) == (230, 140, 0)
    assert (drawn[4, 4] == 100).all()
    shown = lit(grey, area)
    assert tuple(shown[0, 0]) == (45, 45, 45)
    assert tuple(shown[10, 10]) == (152, 116, 60)
    red, blue, none = difference_picture(np.array([[200.0, -200.0, 0.0]]))[0].tolist()
    assert (red, blue, none) == ([178, 24, 43], [33, 102, 172], [200, 200, 200])


@pytest.mark.parametrize(("named", "n"), [(0, 40), (3, 40), (40, 40)])
def test_the_bound_of_named_patients_is_that_of_clopper_and_pearson(named, n):
    patients = {"n": n, "named": named, "false_accusations_at_most": 0.07}
    risk = record_section._singling_out("s", patients, "leak")
    assert (risk.attack, risk.control) == (named / n, 0.07 if named else 0)
    # The largest share under which so few named patients still come in 2.5 % of draws.
    shares = np.linspace(0, 1, 100_001)
    plain = shares[binom.cdf(named, n, shares) >= 0.025].max()
    assert risk.bound == pytest.approx(plain, abs=1e-4)


def test_where_there_is_no_leak_nobody_is_singled_out():
    patients = {"n": 40, "named": 20, "false_accusations_at_most": 0.07}
    risk = record_section._singling_out("s", patients, "cannot tell")
    assert (risk.attack, risk.control) == (0, 0)


def test_the_risk_of_inference_is_the_attack_beyond_the_control():
    figure = {"value": 0.4, "low": 0.3, "high": 0.604, "chance": 0.01}
    risk = record_section._inference("s", {"tpr_at_fpr_0.01": figure})
    assert risk.bound == pytest.approx((0.604 - 0.01) / 0.99)
    assert risk.above
    none = record_section._inference("s", {"tpr_at_fpr_0.01": dict.fromkeys(figure)})
    assert (none.bound, none.above, bool(none.why)) == (None, None, True)


@pytest.mark.parametrize(
    ("day", "next_day"),
    [("2026-11-29", "2027-11-29"), ("2028-02-29", "2029-02-28"), ("2027-02-28", "2028-02-28"), ("", "")],
)
def test_the_next_audit_is_a_year_after(day, next_day):
    assert record_section._a_year_after(day) == next_day


def test_a_residual_spectrum_by_loops():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (2, 256, 256)).astype(np.uint8)
    pictures = SimpleNamespace(many=lambda ids: [pixels[int(i)] for i in ids])
    spectrum = attribution_section._spectrum(["0", "1"], pictures)
    ramp = np.arange(-6, 7)
    kernel = np.exp(-(ramp**2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 255)
    residuals = []
    for picture in pixels.astype(np.float64):
        padded = np.pad(picture, 6, mode="symmetric")
        smooth = sum(kernel[i] * padded[i : i + 256] for i in range(13))
        smooth = sum(kernel[i] * smooth[:, i : i + 256] for i in range(13))
        residuals.append((picture - smooth) * window * window[:, None])
    for u, v in ((0, 0), (3, 10), (-20, 7), (100, -128)):
        wave = np.exp(-2j * np.pi * (u * np.arange(256)[:, None] + v * np.arange(256)) / 256)
        plain = np.mean([abs((residual * wave).sum()) for residual in residuals])
        assert spectrum[128 + u, 128 + v] == pytest.approx(plain, rel=1e-3)


def test_numbers_as_text():
    assert [page.number(value) for value in (0.5, None, float("nan"))] == ["0.500", "–", "–"]
    assert [page.percent(value) for value in (0.5, 0.034, 0, 1, None)] == [
        "50\xa0%",
        "3.4\xa0%",
        "0\xa0%",
        "100\xa0%",
        "–",
    ]
    assert [page.p_value(value) for value in (0.000999, 1, None)] == ["0.001", "1", "–"]
    assert page.interval({"low": 0.1, "high": 0.25}) == "0.100 to 0.250"
    assert page.interval({"low": None, "high": None}) == "–"


def test_no_probability_is_certain():
    shown = [page.probability(value).replace("\xa0", " ") for value in (1.0, 0.995, 0.5, 0.001)]
    assert shown == ["more than 99 %", "more than 99 %", "50 %", "less than 1.0 %"]


def test_what_would_have_been_seen_in_words():
    smallest = {"share_of_generated": 1 / 28.4, "blend": 0.5}
    seen = page.power_sentence({"smallest_leak": smallest, "found": 0.8, "blend": 0.5})
    earlier = page.power_sentence({"smallest_leak": 1 / 28.4, "found": 0.8, "blend": 0.5})
    assert earlier == seen
    assert "one synthetic slice in 28 " in seen
    assert "blended to 50\xa0% " in seen
    assert "in 80\xa0% of trials" in seen
    assert "not even" in page.power_sentence({"smallest_leak": None, "found": 0.8})
    assert "too few" in page.power_sentence({"missing": "too few patients"})


def test_templates_hold_no_words():
    """All words are in texts.py, labels.py and glossary.py, where a translation would put others."""
    for place in sorted(files("gansfp.report").joinpath("templates").iterdir(), key=str):
        if place.name.endswith(".html"):
            source = re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}|<[^>]*>", " ", place.read_text(), flags=re.DOTALL)
            assert not re.search("[A-Za-z]", source), (place.name, source.split())
