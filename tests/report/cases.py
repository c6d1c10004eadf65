"""The cases that the report must show well, each made from one finished audit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

MARKUP = "<img src=x onerror=alert(1)>"
OTHER_ALPHABETS = "患者一 Ωμέγα пациент مريض"


def change_metrics(work: Path, change: Callable[[dict], object]) -> None:
    place = work / "results/metrics.json"
    metrics = json.loads(place.read_text())
    change(metrics)
    place.write_text(json.dumps(metrics))


def rename_set(work: Path, old: str, new: str) -> None:
    """Gives a membership set another name, in all that the report reads."""
    change_metrics(
        work, lambda metrics: metrics["membership"]["sets"].update({new: metrics["membership"]["sets"].pop(old)})
    )
    for ending in (".csv", ".parquet", "-judged.parquet", "-patients.csv"):
        (work / f"results/membership-{old}{ending}").rename(work / f"results/membership-{new}{ending}")


def rename_slices(work: Path, add: str) -> None:
    """Adds a text to the ids and patients of all slices, in all that the report reads."""
    ids = {"image_id", "catalog_id", "group", "nearest"}
    places = [
        *(work / "results").glob("*.parquet"),
        work / "catalog.parquet",
        work / "search/attribution/places.parquet",
    ]
    for place in places:
        table = pq.read_table(place)
        for name in ids & set(table.column_names):
            values = table[name].to_pylist()
            renamed = [[f"{one}{add}" for one in of] if isinstance(of, list) else of and f"{of}{add}" for of in values]
            column = table.column_names.index(name)
            table = table.set_column(column, table.schema.field(name), pa.array(renamed, table.schema.field(name).type))
        pq.write_table(table, place)
    for place in (work / "results").glob("*-patients.csv"):
        first, *lines = place.read_text().splitlines()
        fields = [line.rsplit(",", 5) for line in lines]
        place.write_text("\n".join([first, *(",".join([f'"{name}{add}"', *rest]) for name, *rest in fields)]) + "\n")


def with_names(work: Path, name: str) -> None:
    rename_set(work, "warp", name)
    rename_slices(work, name)
    change_metrics(work, lambda m: m["attribution"]["names"].update({"0": name}))
    change_metrics(work, lambda m: m["run"].update({"findings": [name], "left_out": [name]}))
    judged = work / "results/attribution-judged.parquet"
    table = pq.read_table(judged).to_pydict()
    table["generator"] = [f"{generator}{name}" for generator in table["generator"]]
    pq.write_table(pa.table(table), judged)


def with_finding(finding: str, reasons: tuple[str, ...] = ()) -> Callable[[Path], None]:
    def change(metrics: dict) -> None:
        for report in metrics["membership"]["sets"].values():
            report["verdict"]["finding"] = finding
            report["verdict"]["reasons"] += [{"what": reason, "figure": 0.93} for reason in reasons]

    return lambda work: change_metrics(work, change)


def with_a_leak(work: Path) -> None:
    """A leak in each set, and three patients who are named."""
    with_finding("leak")(work)
    of_list = {"named": 3, "withheld": 0, "false_accusations": 0, "false_accusations_of": 8}

    def change(metrics: dict) -> None:
        for report in metrics["membership"]["sets"].values():
            report["patients"] |= {**of_list, "false_accusations_at_most": 0.31}

    change_metrics(work, change)
    for place in (work / "results").glob("*-patients.csv"):
        first, *lines = place.read_text().splitlines()
        lines = [line[:-1] + str(int(number < 3)) for number, line in enumerate(lines)]
        place.write_text("\n".join([first, *lines]) + "\n")


def biased(work: Path) -> None:
    """Scores are high, but for another reason than a leak."""
    with_finding("cannot tell", ("used and not-used slices differ by themselves in noise",))(work)

    def change(metrics: dict) -> None:
        for report in metrics["membership"]["sets"].values():
            report["patients"] |= {"named": 0, "withheld": 5}

    change_metrics(work, change)


def with_bad_images(work: Path) -> None:
    bad = [{"image_id": f"bad_{number}", "reason": f"is cut after {number % 90} bytes"} for number in range(5000)]
    change_metrics(work, lambda metrics: metrics["run"].update({"bad_images": bad}))


def too_few_patients(work: Path) -> None:
    def change(metrics: dict) -> None:
        for report in metrics["membership"]["sets"].values():
            report["verdict"] = {"finding": "cannot tell", "sentence": "Too few patients.", "reasons": []}
            report |= {"share": None, "power": {"missing": "there is no blind control"}}
            report |= dict.fromkeys(("p_value", "p_value_selected"))
            none = {"blind": None, "differences": [], "p_value_conditional": None, "member_only": {}, "matched": None}
            report["controls"] = {**none, "missing": ["1 used and 1 not-used patients"]}
            report["patients"] = {**report["patients"], "n": 0, "named": 0, "false_accusations": None}
            for figure in ("auc", "kappa", "tpr_at_fpr_0.01"):
                report[figure] = dict.fromkeys(("value", "low", "high", "chance"))
            report |= {"best": None, "best_by_chance": []}

    change_metrics(work, change)
    for place in (work / "results").glob("*-patients.csv"):
        place.write_text("patient,slices,score,p,q,named\n")


def without_truth(work: Path) -> None:
    """Only the cross-validated figures, as where the test has no truth."""

    def change(metrics: dict) -> None:
        for report in [*metrics["membership"]["sets"].values(), metrics["attribution"]]:
            for name in report["cross_validated"]:
                if name not in ("tried", "warnings"):
                    report.pop(name, None)
        metrics["membership"].pop("mean_f1", None)

    change_metrics(work, change)


def one_slice(work: Path) -> None:
    for place in (work / "results").glob("membership-*.parquet"):
        pq.write_table(pq.read_table(place).slice(0, 1), place)


def only_attribution(work: Path) -> None:
    change_metrics(work, lambda metrics: metrics.pop("membership"))


def only_membership(work: Path) -> None:
    change_metrics(work, lambda metrics: metrics.pop("attribution"))


def provisional(work: Path) -> None:
    change_metrics(work, lambda metrics: metrics["run"].update({"pending": ["resnet50", "densenet121"]}))


def only_searched(work: Path) -> None:
    """A job that was killed in its second search."""
    shutil.rmtree(work / "results")
    shutil.rmtree(work / "search/attribution")


def only_catalog(work: Path) -> None:
    for name in ("results", "search", "embeddings", "log"):
        shutil.rmtree(work / name, ignore_errors=True)


def as_of_an_earlier_version(work: Path) -> None:
    """Without the files and figures that earlier versions did not write."""
    for place in [*(work / "results").glob("*-judged.parquet"), work / "search/attribution/places.parquet"]:
        place.unlink()

    def change(metrics: dict) -> None:
        for report in [*metrics["membership"]["sets"].values(), metrics["attribution"]]:
            for evidence in (report, report["cross_validated"]):
                evidence.pop("best", None)
                evidence.pop("best_by_chance", None)
        metrics["run"].pop("alpha")

    change_metrics(work, change)


CASES: dict[str, Callable[[Path], object]] = {
    "finished": lambda work: None,
    "leak": with_a_leak,
    "no leak": with_finding("no evidence"),
    "biased": biased,
    "too few patients": too_few_patients,
    "no truth": without_truth,
    "attribution alone": only_attribution,
    "membership alone": only_membership,
    "thousands of bad images": with_bad_images,
    "one test slice": one_slice,
    "markup as names": lambda work: with_names(work, MARKUP),
    "other alphabets": lambda work: with_names(work, OTHER_ALPHABETS),
    "provisional": provisional,
    "searched": only_searched,
    "catalog alone": only_catalog,
    "earlier version": as_of_an_earlier_version,
}
