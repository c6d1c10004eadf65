"""What the report says of the attribution: clusters, how their number was chosen, what tells generators apart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from gansfp.decision.places import read_places
from gansfp.decision.search_result import Search
from gansfp.report import search_plots as plots
from gansfp.report.audited import AuditedWork
from gansfp.report.pictures import Pictures, encode

FIGURES = ("ari", "nmi", "v_measure", "purity")
IN_MONTAGE = 12  # slices of a cluster
IN_SPECTRUM = 40
ON_MAP = 80  # thumbnails
MAP, THUMBNAIL = (960, 640), 44  # pixels
SMOOTHING = 1.5  # pixels: standard deviation of the Gaussian that is taken off before the spectrum
MOST_CLUSTERS = 20  # that get pictures


@dataclass(frozen=True, eq=False)
class Cluster:
    """number: as in attribution.csv. resembles: a known generator, or "new". montage: (id, picture) of some slices.
    spectrum: a picture of the mean residual spectrum, empty where there is none."""

    number: int
    resembles: str
    slices: int
    montage: Sequence[tuple[str, str]] = ()
    spectrum: str = ""


@dataclass(frozen=True, eq=False)
class AttributionSection:
    """report: the entry of metrics.json; evidence: the figures that the verdict rests on, of test slices with truth
    (by_truth) or else of the known generators' slices. table: slices by cluster and generator, whose names are
    `generators`. thumbnails: the map as a picture. known: (generator, spectrum) of the known generators."""

    report: Mapping[str, Any]
    evidence: Mapping[str, Any]
    by_truth: bool
    clusters: Sequence[Cluster]
    generators: Sequence[str] = ()
    table: Sequence[tuple[int, Sequence[int]]] = ()
    plots: Mapping[str, str] = field(default_factory=dict)
    thumbnails: str = ""
    known: Sequence[tuple[str, str]] = ()

    @property
    def finding(self) -> str:
        """told apart, not told apart or cannot tell."""
        return self.report["verdict"]["finding"]

    @property
    def figures(self) -> list[tuple[str, Mapping[str, float | None]]]:
        """The figures that there are, in the order of the table."""
        return [(name, self.evidence[name]) for name in FIGURES if name in self.evidence]


def attribution_section(audited: AuditedWork, pictures: Pictures) -> AttributionSection | None:
    """The section; None where the attribution was not decided."""
    report, search = audited.attribution, audited.searches.get("attribution")
    decided = audited.table("attribution.parquet")
    if not report or search is None or decided is None:
        return None
    by_truth = "ari" in report
    evidence = report if by_truth else report["cross_validated"]
    of_test = dict(zip(decided["catalog_id"].to_pylist(), decided["cluster"].to_pylist(), strict=True))
    names = {int(number): name for number, name in report["names"].items()}
    of_known = _known_slices(audited)
    labels = [*_by_label(of_test).items()]
    spectra = {("cluster", number): _spectrum(ids, pictures) for number, ids in labels[:MOST_CLUSTERS]}
    spectra |= {("known", name): _spectrum(ids, pictures) for name, ids in [*of_known.items()][:MOST_CLUSTERS]}
    generators, table = _table(audited)
    drawn = {
        "map": _map_plot(search, of_test, names),
        "silhouettes": _silhouettes(search),
        "spectra": _profiles(spectra),
        "luck": plots.luck(
            np.array(evidence.get("best_by_chance", [])),
            np.nan if evidence.get("best") is None else evidence["best"],
            "attribution-luck",
            "ARI",
        ),
    }
    clusters = [
        Cluster(
            number,
            names.get(number, ""),
            len(ids),
            _montage(ids, pictures) if place < MOST_CLUSTERS else (),
            _spectrum_picture(spectra.get(("cluster", number))),
        )
        for place, (number, ids) in enumerate(labels)
    ]
    known = [(name, _spectrum_picture(of_one)) for (kind, name), of_one in spectra.items() if kind == "known"]
    known = [(str(name), picture) for name, picture in known if picture]
    thumbnails = _thumbnails(search, of_test, pictures)
    return AttributionSection(report, evidence, by_truth, clusters, generators, table, drawn, thumbnails, known)


def _by_label(labels: Mapping[str, Any]) -> dict[Any, list[str]]:
    """The ids of each label, both sorted."""
    return {
        label: sorted(i for i, of_one in labels.items() if of_one == label) for label in sorted(set(labels.values()))
    }


def _known_slices(audited: AuditedWork) -> dict[str, list[str]]:
    if audited.catalog is None:
        return {}
    known = audited.catalog.known_generators().select(status="ok")
    return _by_label(dict(zip(known.ids.tolist(), known.column("generator").tolist(), strict=True)))


def _some(ids: Sequence[str], count: int) -> list[str]:
    """At most `count` of the ids, evenly spread."""
    places = np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(int)
    return [ids[place] for place in places]


def _montage(ids: Sequence[str], pictures: Pictures) -> list[tuple[str, str]]:
    chosen = _some(ids, IN_MONTAGE) if pictures else []
    loaded = pictures.many(chosen)
    return [(i, encode(pixels, 96)) for i, pixels in zip(chosen, loaded, strict=True) if pixels is not None]


def _table(audited: AuditedWork) -> tuple[list[str], list[tuple[int, list[int]]]]:
    """The generators, and for each cluster how many slices it has of each."""
    judged = audited.table("attribution-judged.parquet")
    if judged is None:
        return [], []
    clusters, generators = (np.array(judged[name].to_pylist()) for name in ("cluster", "generator"))
    names = sorted(set(generators.tolist()))
    return names, [
        (int(cluster), [int(((clusters == cluster) & (generators == name)).sum()) for name in names])
        for cluster in np.unique(clusters)
    ]


def _silhouettes(search: Search) -> str:
    """The mean silhouette at each number of clusters, of the chosen method."""
    best = search.result.best[""]
    wanted = {name: value for name, value in best.configuration.choices.items() if name not in ("k", "count")}
    table = search.trials.read(["configuration", "silhouette", "k", "status"])
    found: dict[int, float] = {}
    for row in table.to_pylist():
        if row["status"] != "ok" or row["silhouette"] is None:
            continue
        choices = json.loads(row["configuration"])
        if (
            choices.get("count") == "silhouette"
            and {n: v for n, v in choices.items() if n not in ("k", "count")} == wanted
        ):
            found[row["k"]] = row["silhouette"]
    ks = sorted(found)
    chosen = int(str(best.columns["k"]))
    return plots.silhouettes(np.array(ks), np.array([found[k] for k in ks]), chosen, "attribution-silhouettes")


def _places(search: Search) -> tuple[list[str], np.ndarray, list[str]]:
    table = read_places(search.folder)
    if table is None:
        return [], np.zeros((0, 2)), []
    places = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1)
    return table["image_id"].to_pylist(), places, table["generator"].to_pylist()


def _map_plot(search: Search, of_test: Mapping[str, int], names: Mapping[int, str]) -> str:
    ids, places, generators = _places(search)
    test = np.array([not generator and i in of_test for i, generator in zip(ids, generators, strict=True)], dtype=bool)
    known = np.array([bool(generator) for generator in generators], dtype=bool)
    clusters = np.array([of_test[i] for i, is_test in zip(ids, test, strict=True) if is_test], dtype=np.int64)
    labels = {number: f"{number}: {name}" if name else str(number) for number, name in names.items()}
    of_known = [generator for generator in generators if generator]
    return plots.clusters_map(places[test], clusters, labels, places[known], of_known, "attribution-map")


def _thumbnails(search: Search, of_test: Mapping[str, int], pictures: Pictures) -> str:
    """Slices at their places on the map, as one picture; empty where there is none. Places that are taken stay so."""
    ids, places, _ = _places(search)
    rows = [row for row, i in enumerate(ids) if i in of_test]
    if not rows or not pictures:
        return ""
    scaled = places[rows] - places[rows].min(0)
    scaled = scaled / np.maximum(scaled.max(0), 1e-9) * (np.array(MAP) - THUMBNAIL)
    canvas, taken = Image.new("L", MAP, 40), np.zeros((0, 2))
    chosen: list[tuple[str, np.ndarray]] = []
    for row, place in zip(rows, scaled, strict=True):
        if len(chosen) < ON_MAP and (np.abs(taken - place).max(axis=1) >= THUMBNAIL).all():
            chosen.append((ids[row], place))
            taken = np.concatenate([taken, place[None]])
    loaded = pictures.many([i for i, _ in chosen])
    if all(pixels is None for pixels in loaded):
        return ""
    for (_, place), pixels in zip(chosen, loaded, strict=True):
        if pixels is not None:
            # y rises upwards, as in the plot.
            x, y = round(place[0]), MAP[1] - THUMBNAIL - round(place[1])
            canvas.paste(Image.fromarray(pixels).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS), (x, y))
    return encode(np.asarray(canvas))


def _spectrum(ids: Sequence[str], pictures: Pictures) -> np.ndarray | None:
    """The mean residual spectrum of some slices, (256, 256) float64, the zero frequency in the middle: the mean of the
    absolute Fourier transform of what a Gaussian leaves over (Marra et al. 2019). None where none can be shown."""
    if not pictures:
        return None
    window = np.outer(np.hanning(256), np.hanning(256))
    total, count = np.zeros((256, 256)), 0
    for pixels in pictures.many(_some(ids, IN_SPECTRUM)):
        if pixels is not None:
            x = pixels.astype(np.float32)
            residual = (x - ndimage.gaussian_filter(x, SMOOTHING)) * window
            total, count = total + np.abs(np.fft.fft2(residual)), count + 1
    return np.fft.fftshift(total / count) if count else None


def _spectrum_picture(spectrum: np.ndarray | None) -> str:
    if spectrum is None:
        return ""
    shades = np.log10(spectrum + 1e-3)
    low, high = np.percentile(shades, [1, 99.5])
    return encode(np.rint(255 * np.clip((shades - low) / max(high - low, 1e-9), 0, 1)).astype(np.uint8), 144)


def _profiles(spectra: Mapping[tuple[str, Any], np.ndarray | None]) -> str:
    """The spectra by their distance from the middle."""
    places = np.hypot(*np.meshgrid(np.arange(256) - 128, np.arange(256) - 128)).astype(int)
    there = {label: spectrum for label, spectrum in spectra.items() if spectrum is not None}
    inside = places < 128
    counts = np.bincount(places[inside])
    profiles = [np.bincount(places[inside], spectrum[inside]) / counts for spectrum in there.values()]
    labels = [f"cluster {label}" if kind == "cluster" else f"known: {label}" for kind, label in there]
    if not profiles:
        return ""
    return plots.spectrum_profiles(np.arange(128) / 256, np.stack(profiles), labels, "attribution-spectra")
