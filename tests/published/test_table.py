import csv

from gansfp.published.table import Row, as_csv, as_markdown
from gansfp.statistics.intervals import Estimate


class TestRows:
    ROWS = (
        Row("all used", "membership", reproduced=Estimate(2 / 3, 0.5, 0.75), chance=2 / 3, f1={"a": 2 / 3}),
        Row("x", "membership", "1", "P", 0.5, Estimate(0.25), 2 / 3, assumed=("this", "that"), seconds=3.2),
        Row("y", "attribution", "2", "P", 0.5, assumed=("that",), notes=("short", "x" * 99), published_known=1.0),
        Row("z", "attribution", "3", "P", error="no | file"),
        Row("w", "attribution", "4", "P", 0.9, Estimate(0.1, 0.0, 0.2), 0.0, notes=("random weights",)),
    )

    def test_markdown(self):
        lines = as_markdown(self.ROWS, ["what it is"]).splitlines()
        assert lines[2] == "what it is"
        assert "|  | *all used* | - | 0.667 [0.500, 0.750] | 0.667 |  |  |  |" in lines
        assert "| 1 | x | 0.5000 | 0.250 | 0.667 | 1, 2 |  | 3 |" in lines
        assert "| 2 | y | 0.5000 | - | - | 1.0000 | - | 2 | no truth; short; [3] |  |" in lines
        assert "| 3 | z | - | - | - | - | - |  | **failed** [4] |  |" in lines
        assert "| 4 | w | 0.9000 | (0.100 [0.000, 0.200]) | 0.000 | - | - |  | random weights |  |" in lines
        assert lines[-4:] == ["1. this", "2. that", f"3. {'x' * 99}", "4. no | file"]

    def test_csv(self):
        rows = list(csv.DictReader(as_csv(self.ROWS).splitlines()))
        assert [row["status"] for row in rows] == ["ok", "ok", "no truth", "failed", "ok"]
        assert [row["comparable"] for row in rows] == ["yes", "yes", "yes", "yes", "no"]
        assert rows[0]["f1_a"] == "0.666667"
        assert rows[1] | {"assumed": "this; that", "seconds": "3.2", "f1_a": "", "low": "", "measure": "F1"} == rows[1]
        assert rows[3]["error"] == "no | file"
