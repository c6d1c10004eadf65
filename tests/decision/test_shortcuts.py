"""decision.shortcuts: what is written is read, and the attribution's verdict says what a trace alone would find."""

from test_verdict import ALPHA, evidence

from gansfp.decision.shortcuts import Shortcut, read_shortcuts, write_shortcuts
from gansfp.decision.verdict import judge_clusters

SIZE = Shortcut("the size of the file alone: adjusted Rand index", 0.725, "by chance", 0.0, True)
COMB = Shortcut("gaps alone: adjusted Rand index", 0.05, "by chance", 0.0, False)

EQUAL = Shortcut("residual: adjusted Rand index", 0.97, "before that", 1.0, False)


def test_what_is_written_is_read(tmp_path):
    folder = str(tmp_path)
    assert read_shortcuts(folder) is None
    write_shortcuts(folder, {"": [SIZE, COMB], "b": []}, "digest")
    assert read_shortcuts(folder, "digest") == read_shortcuts(folder) == {"": [SIZE, COMB], "b": []}
    assert read_shortcuts(folder, "another") is None


def test_traces_and_what_remains_are_in_the_sentence_and_all_are_reasons():
    verdict = judge_clusters(evidence(), ALPHA, [SIZE, COMB, EQUAL])
    assert verdict.finding == "told apart"
    assert "Careful: the size of the file alone: adjusted Rand index, 0.725." in verdict.sentence
    assert (
        "What remains when files are made equal: residual: adjusted Rand index: 0.97, before that 1."
        in verdict.sentence
    )
    assert "gaps" not in verdict.sentence
    reasons = {reason.what: reason.figure for reason in verdict.reasons}
    assert reasons["gaps alone: adjusted Rand index (by chance 0)"] == 0.05
    assert "Careful" not in judge_clusters(evidence(), ALPHA, [COMB, EQUAL]).sentence
    assert judge_clusters(evidence(), ALPHA).sentence.endswith("where chance gives 0.")
