"""The figures of the report: what they say, that they are safe inside a page, and the curves that they show."""

import re
import threading
import time
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from gansfp.report import membership_plots, search_plots
from gansfp.report.curves import Curve, calibration_bins, roc_curve
from gansfp.report.membership_plots import Row
from gansfp.report.plot_style import COLOURS, GRID, STYLE
from gansfp.report.plot_svg import clean, shorten, width, wrapped
from gansfp.report.plot_words import log_ticks, one_in, percent, scientific, thinned
from gansfp.statistics.metrics import ranking
from gansfp.statistics.resampling import bootstrap_weights, group_labels

NAN = float("nan")
HOSTILE = '<img src=x onerror=alert(1)> & "$\\alpha_i$" 用于训练'
RNG = np.random.default_rng(0)
GROUPS = RNG.integers(0, 60, 600)
TRUTH = (GROUPS % 3 == 0).astype(int)
SCORE = 1.5 * TRUTH + RNG.normal(size=60)[GROUPS] / 2 + RNG.normal(size=600)
PROBABILITY = 1 / (1 + np.exp(1 - SCORE))
PLACES, CLUSTER = RNG.normal(size=(5000, 2)), RNG.integers(0, 4, 5000)
KNOWN = RNG.normal(size=(50, 2)), ["StyleGAN", HOSTILE] * 25
ROWS = [
    Row(HOSTILE, 0.98, 0.96, 0.99),
    Row("without the slices", 0.52, 0.44, 0.6, "control"),
    Row("failed", NAN, NAN, NAN),
]

PLOTS = {
    "at_a_glance": lambda name: membership_plots.at_a_glance(ROWS, name),
    "score_distributions": lambda name: membership_plots.score_distributions(SCORE, TRUTH, 1.0, name),
    "roc": lambda name: membership_plots.roc(roc_curve(SCORE, TRUTH, GROUPS), name, 1 / (TRUTH == 0).sum()),
    "calibration": lambda name: membership_plots.calibration(PROBABILITY, TRUTH, name),
    "patients": lambda name: membership_plots.patients(SCORE, SCORE > 2, np.full(600, 0.004), name),
    "share": lambda name: membership_plots.share(0.38, 0.29, 0.47, name),
    "power_curve": lambda name: membership_plots.power_curve(np.array([0.01, 0.1, 1]), np.array([0.2, 0.6, 1]), name),
    "heat_map": lambda name: search_plots.heat_map(
        [HOSTILE, "resnet50"], ["full", "lungs_uncropped"], np.array([[0.93, NAN], [0.4, 0.61]]), name, "AUC", 0.5
    ),
    "luck": lambda name: search_plots.luck(np.linspace(0.5, 0.7, 101), 0.82, name, "AUC"),
    "silhouettes": lambda name: search_plots.silhouettes(range(2, 6), [0.2, 0.41, NAN, 0.1], 3, name),
    "clusters_map": lambda name: search_plots.clusters_map(PLACES, CLUSTER, {0: HOSTILE, 1: "new"}, *KNOWN, name),
    "spectrum_profiles": lambda name: search_plots.spectrum_profiles(
        np.arange(128) / 256, np.exp(-np.outer([1, 2], np.arange(128) / 20)), [HOSTILE, "cluster 2"], name
    ),
}
SAID = {  # what the text for those who cannot see a figure must hold
    "at_a_glance": [
        "0.98, 95 % interval 0.96 to 0.99",
        "without the slices (control) 0.52",
        "unknown",
        "Chance is 0.5.",
    ],
    "score_distributions": [f"{TRUTH.sum()} slices used", "median score", "The threshold is 1.00."],
    "roc": ["95 % interval", "at 1 % false alarms", "at 10 % false alarms", "Chance"],
    "calibration": ["slices given", "95 % interval"],
    "patients": [f"{(SCORE > 2).sum()} of 600 patients, p ≤ 0.004", "highest score"],
    "share": ["38 %, 95 % interval 29 % to 47 %"],
    "power_curve": ["20 % if 1 in 100 is a copy", "100 % if all are copies", "80 % found: from 1 in 8"],
    "heat_map": ["highest 0.93", "full", "median 0.61", "lowest 0.40", "Chance is 0.50"],
    "luck": ["median 0.60", "95 % below 0.69", "Observed is 0.82", "less than 1 %"],
    "silhouettes": ["0.20 for 2, 0.41 for 3, 0.10 for 5", "chosen: 3"],
    "clusters_map": ["5,050 slices", "of new", "25 of known: StyleGAN"],
    "spectrum_profiles": ["cluster 2 from 1 to"],
}


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return {kind: plot(kind) for kind, plot in PLOTS.items()}


@pytest.mark.parametrize("kind", PLOTS)
def test_a_figure_is_a_small_part_of_a_page(drawn, kind):
    svg = ElementTree.fromstring(drawn[kind])
    assert svg.attrib["viewBox"].startswith("0 0 400 ")
    assert svg.attrib["role"] == "img"
    assert svg.attrib["class"] == "plot"
    assert svg.attrib["style"] == "max-width:100%;height:auto"
    assert not {"width", "height"} & set(svg.attrib)
    assert drawn[kind].startswith("<svg ")
    assert len(drawn[kind].encode()) < 60_000
    assert re.findall("http[^\"' ]*", drawn[kind]) == ["http://www.w3.org/2000/svg"]
    assert not re.search("font-family|<style|<metadata|<script|#0[12]0", drawn[kind])


@pytest.mark.parametrize("kind", PLOTS)
def test_the_alternative_text_has_the_figures(drawn, kind):
    svg = ElementTree.fromstring(drawn[kind])
    alt = svg.attrib["aria-label"]
    assert svg[0].tag.endswith("title")
    assert svg[0].text == alt
    assert alt.endswith(".")
    for words in SAID[kind]:
        assert words in alt


def test_the_same_data_give_the_same_bytes_in_any_thread_and_change_no_setting(drawn):
    before, again = dict(matplotlib.rcParams), {}

    def draw(kinds):
        again.update({kind: PLOTS[kind](kind) for kind in kinds})

    threads = [threading.Thread(target=draw, args=(list(PLOTS)[i::3],)) for i in range(3)]
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "svg.hashsalt": "other", "axes.grid": True}):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert again == drawn
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("kind", PLOTS)
def test_ids_begin_with_the_name(drawn, kind):
    ids, others = (
        [e.get("id") for e in ElementTree.fromstring(svg).iter() if "id" in e.attrib]
        for svg in (drawn[kind], PLOTS[kind]('another "one"'))
    )
    assert len(ids) == len(set(ids)) == len(others)
    assert not set(ids) & set(others)
    assert all(i.startswith(f"{kind}-") for i in ids)
    assert all(re.fullmatch("[A-Za-z0-9_-]+", i) for i in others)
    assert set(re.findall(r"url\(#([^)]*)\)", drawn[kind])) == set(ids)


def test_words_of_users_stay_words(drawn):
    for kind in ("at_a_glance", "heat_map", "clusters_map", "spectrum_profiles"):
        svg = ElementTree.fromstring(drawn[kind])
        assert {e.tag.rpartition("}")[2] for e in svg.iter()} <= {"svg", "title", "text", "path", "marker"}
        assert "<img" not in drawn[kind]
        assert HOSTILE in svg.attrib["aria-label"]
    row = ElementTree.fromstring(membership_plots.at_a_glance([Row("$a_b^c$ 用于 <b>", 0.5, 0.4, 0.6)], "x"))
    assert "$a_b^c$ 用于 <b>" in [e.text for e in row.iter()]


def test_words_are_cleaned_and_shortened():
    assert clean("a\x00b\ud800c\u202ed\ne") == "a\ufffdb\ufffdc\ufffdd e"
    assert clean("नमस्\u200dते") == "नमस्\u200dते"
    assert shorten("short", 100, 10) == "short"
    name = "a_long_name_of_a_generator_with_a_number_17"
    for text in (name, "用于训练的切片" * 5):
        short = shorten(text, 100, 10)
        assert width(short, 10) <= 100
        assert short[0] == text[0]
        assert short[-1] == text[-1]
        assert "…" in short
    assert wrapped("lungs_uncropped", 70, 11) == ["lungs_", "uncropped"]
    assert wrapped("", 70, 11) == [""]
    assert len(wrapped(name, 50, 11, most=2)) == 2


def test_nothing_to_show():
    none = np.array([])
    for empty in (
        membership_plots.at_a_glance([], "x"),
        membership_plots.score_distributions(none, none, 0.5, "x"),
        membership_plots.score_distributions(np.array([NAN, 1]), np.array([1, -1]), 0.5, "x"),
        membership_plots.roc(roc_curve(none, none), "x", 0.1),
        membership_plots.roc(roc_curve(np.array([1.0]), np.array([1])), "x", 0.1),
        membership_plots.calibration(none, none, "x"),
        membership_plots.patients(none, none, none, "x"),
        membership_plots.share(NAN, NAN, NAN, "x"),
        membership_plots.power_curve(none, none, "x"),
        search_plots.heat_map([], [], np.zeros((0, 0)), "x", "AUC", 0.5),
        search_plots.heat_map(["a"], ["b"], np.array([[NAN]]), "x", "AUC", 0.5),
        search_plots.luck(none, 0.5, "x", "AUC"),
        search_plots.luck(np.full(101, NAN), 0.5, "x", "AUC"),
        search_plots.silhouettes([], [], 3, "x"),
        search_plots.silhouettes([2], [NAN], 2, "x"),
        search_plots.clusters_map(np.zeros((0, 2)), none, {}, np.zeros((0, 2)), [], "x"),
        search_plots.spectrum_profiles(none, np.zeros((0, 0)), [], "x"),
        search_plots.spectrum_profiles(np.arange(3.0), np.zeros((1, 3)), ["a"], "x"),
    ):
        assert empty == ""


def test_one_point_constants_and_nan_are_drawn():
    one, two = np.array([1.0]), np.array([0.5, 0.5])
    for svg in (
        membership_plots.at_a_glance([Row("a", 0.1, NAN, NAN, "control")], "x"),
        membership_plots.score_distributions(one, np.array([1]), NAN, "x"),
        membership_plots.score_distributions(two, np.array([1, 0]), 0.5, "x"),
        membership_plots.roc(roc_curve(two, np.array([1, 0])), "x", NAN),
        membership_plots.roc(Curve(*np.array([[0.1, 1], [0.5, 1], [NAN, NAN], [NAN, NAN]])), "x", 0.1),
        membership_plots.calibration(np.array([NAN, 1]), np.array([1, 1]), "x"),
        membership_plots.patients(np.array([0.0]), np.array([False]), np.array([NAN]), "x"),
        membership_plots.share(0.5, NAN, NAN, "x"),
        membership_plots.power_curve(np.array([0.5, 0, NAN]), np.array([0.1, 0.2, 0.3]), "x"),
        search_plots.heat_map(["a"], ["b"], np.array([[0.3]]), "x", "ARI", 0.5),
        search_plots.luck(np.full(101, 0.5), NAN, "x", "AUC"),
        search_plots.silhouettes([2], [0], 7, "x"),
        search_plots.clusters_map(np.zeros((1, 2)), np.array([0]), {}, np.zeros((0, 2)), [], "x"),
        search_plots.clusters_map(np.array([[NAN, 0], [1, 2]]), np.array([0, 1]), {}, np.zeros((0, 2)), [], "x"),
        search_plots.spectrum_profiles(one, np.array([[0.1], [NAN]]), ["a", "b"], "x"),
    ):
        ElementTree.fromstring(svg)
        assert "nan" not in svg


def test_what_is_drawn_lies_on_the_sheet(drawn):
    for svg in drawn.values():
        root = ElementTree.fromstring(svg)
        height = float(root.attrib["viewBox"].split()[-1])
        for text in root.iter("{http://www.w3.org/2000/svg}text"):
            x, y, size = (float(text.get(name)) for name in ("x", "y", "font-size"))
            long = width(text.text, size)
            left = x - {"start": 0, "middle": long / 2, "end": long}[text.get("text-anchor", "start")]
            assert left >= -1
            assert left + long <= 402
            assert size * 0.7 <= y <= height - 2
            assert size >= 11
        for path in root.iter("{http://www.w3.org/2000/svg}path"):
            if "marker" in path.get("style"):
                points = np.array(re.findall(r"[-\d.]+", path.get("d")), dtype=float).reshape(-1, 2)
                assert ((points >= 0) & (points <= [400, height])).all()


def test_at_most_so_many_points(drawn):
    def points(svg):
        return sum(d.count("L") + 1 for d in re.findall(r'd="([^"]*)" style="fill:none;marker', svg))

    assert 2900 <= points(drawn["clusters_map"]) <= 3000
    assert 390 <= points(drawn["patients"]) <= 400
    assert thinned(np.arange(10), 3).tolist() == [0, 4, 9]
    assert thinned(np.arange(3), 3).tolist() == [0, 1, 2]


def contrast(one: str, two: str) -> float:
    """Of WCAG 2."""
    levels = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in (one, two)])
    linear = np.where(levels <= 0.03928, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return (light + 0.05) / (dark + 0.05)


def test_all_colours_are_defined_and_can_be_read_in_both_modes():
    light, dark = (dict(re.findall(r"(--[\w-]+): (#\w{6});", part)) for part in STYLE.split("@media"))
    used = {value[4:-1] for value in COLOURS.values() if value.startswith("var")}
    assert set(light) == set(dark) == used
    grid = COLOURS[GRID][4:-1]
    for page, colours in (("#ffffff", light), ("#14171a", dark)):
        assert all(contrast(colour, page) >= 4.5 for name, colour in colours.items() if name != grid)


def test_roc_curve_against_a_plain_bootstrap():
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 12, 60)
    truth = (groups % 2).astype(int)
    truth[groups == 3] = rng.integers(0, 2, (groups == 3).sum())
    score = (truth + rng.normal(size=60)).round(1)  # with ties
    got = roc_curve(score, truth, groups.astype(str), resamples=40, seed=5)
    codes = np.unique(groups.astype(str), return_inverse=True)[1]

    def found(rows, rate):
        best = 0.0
        for threshold in [np.inf, *score[rows]]:
            called = score[rows] >= threshold
            if called[truth[rows] == 0].mean() <= rate + 1e-9:
                best = max(best, called[truth[rows] == 1].mean())
        return best

    (weights,) = bootstrap_weights(group_labels(truth, codes), 40, 5, 40)
    resamples = [np.repeat(np.arange(60), w[codes].astype(int)) for w in weights]
    for fpr, tpr, low, high in zip(got.fpr, got.tpr, got.low, got.high, strict=True):
        samples = [found(rows, fpr) for rows in resamples]
        assert tpr == pytest.approx(found(np.arange(60), fpr))
        limits = np.percentile(samples, [2.5, 97.5])
        if 0 < tpr < 1:
            assert (low, high) == pytest.approx((min(limits[0], tpr), max(limits[1], tpr)))
        assert low <= tpr <= high
    assert got.fpr[0] == pytest.approx(1 / (truth == 0).sum())
    assert got.fpr[-1] == got.tpr[-1] == 1


def test_roc_curve_has_the_figures_of_the_metrics():
    curve = roc_curve(SCORE, TRUTH)
    figures = ranking(TRUTH, SCORE, np.ones((1, 600)), rates=tuple(curve.fpr[[0, 20, 50]]))
    assert [float(figures[f"tpr_at_fpr_{curve.fpr[i]:g}"][0]) for i in (0, 20, 50)] == list(curve.tpr[[0, 20, 50]])


def test_roc_curve_of_one_group_and_of_a_perfect_score():
    assert np.isnan(roc_curve(SCORE, TRUTH, TRUTH.astype(str)).low).all()
    perfect = roc_curve(TRUTH.astype(float), TRUTH, GROUPS)
    assert (perfect.tpr == 1).all()
    assert perfect.low == pytest.approx(0.025 ** (1 / len(np.unique(GROUPS[TRUTH == 1]))))
    left_out = roc_curve(np.append(SCORE, [NAN, 3]), np.append(TRUTH, [1, -1]), np.append(GROUPS, [1, 2]))
    assert left_out.low.tolist() == roc_curve(SCORE, TRUTH, GROUPS).low.tolist()


def test_roc_curve_is_fast():
    rng = np.random.default_rng(2)
    groups = rng.integers(0, 200, 3000)
    start = time.process_time()
    roc_curve(rng.normal(size=3000), groups % 2, groups)
    assert time.process_time() - start < 0.5


def test_calibration_bins_and_wilson_intervals():
    bins = calibration_bins(np.array([0.0, 0.05, 0.31, 1.0, 0.95, NAN, 0.5]), np.array([0, 1, 1, 1, 1, 1, -1]))
    assert bins.middle == pytest.approx([0.05, 0.35, 0.95])
    assert bins.probability == pytest.approx([0.025, 0.31, 0.975])
    assert bins.count.tolist() == [2, 1, 2]
    assert bins.share.tolist() == [0.5, 1, 1]
    assert bins.low == pytest.approx([0.09453, 0.20655, 0.34238], abs=1e-5)
    assert bins.high == pytest.approx([0.90547, 1, 1], abs=1e-5)


def test_numbers_as_people_read_them():
    assert [percent(value) for value in (0, 0.004, 0.256, 0.996, 1, NAN)] == [
        "0 %",
        "0.4 %",
        "26 %",
        "99.6 %",
        "100 %",
        "unknown",
    ]
    assert [one_in(share) for share in (0.0001, 0.05, 0.4, 1)] == ["1 in 10,000", "1 in 20", "1 in 2.5", "all"]
    assert [scientific(value) for value in (0.2, 1e-5, 3e6)] == ["0.2", "10⁻⁵", "3·10⁶"]
    assert [label for _, label in log_ticks(0.0004, 1, one_in)] == ["1 in 1,000", "1 in 100", "1 in 10", "all"]
    assert len(log_ticks(2.1, 4.5, scientific)) >= 2
