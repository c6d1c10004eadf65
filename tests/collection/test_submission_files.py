"""gansfp.collection.submission: any written file is accepted, any corrupted one is rejected."""

import csv
import io
import re
import unicodedata

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from gansfp.collection.submission import problems, submission

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True)
# A name that starts with a quotation mark has no place in such a file; names in two Unicode forms are the same.
IDS = st.text(
    st.one_of(
        st.sampled_from("ab1 .;'\"é\u2028\u0085\t"),
        st.characters(exclude_categories=("Cs",), exclude_characters=",\r\n\ufeff"),
    ),
    max_size=8,
).filter(lambda name: not name.startswith('"') and name == unicodedata.normalize("NFC", name))
USED = st.dictionaries(IDS, st.integers(0, 1), min_size=1, max_size=6)
CLUSTERS = st.dictionaries(IDS, st.integers(0, 10**6), min_size=1, max_size=6)


def accepted(content, ids, binary):
    """The rules in plain words: a slow reference. Every line is `id,value`, and every id is there exactly once."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return False
    lines = text.removesuffix("\n").split("\n") if text else []
    rows = [
        re.fullmatch(r"([^,]*),([01])" if binary else r"([^,]*),([0-9]+)", line.removesuffix("\r")) for line in lines
    ]
    return None not in rows and sorted(normal(row[1]) for row in rows) == sorted(ids)


def normal(text):
    return unicodedata.normalize("NFC", text)


def read_by_others(content):
    """What two readers of CSV files find, which agree."""
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    frame = pd.read_csv(io.BytesIO(content), header=None, dtype=str, keep_default_na=False)
    assert frame.to_numpy().tolist() == rows
    return {normal(image_id): value for image_id, value in rows}


@SETTINGS
@given(st.one_of(st.tuples(USED, st.just(True)), st.tuples(CLUSTERS, st.just(False))), st.data())
def test_a_written_file_has_no_problems(example, data):
    values, binary = example
    content = submission(values)
    assert problems(content, values, binary) == []
    assert accepted(content, values, binary)
    assert read_by_others(content) == {image_id: str(value) for image_id, value in values.items()}
    assert problems(content, reversed(list(values)), binary) == []
    assert problems(content[:-1], values, binary) == []
    assert problems(content.replace(b"\n", b"\r\n"), values, binary) == []
    lines = data.draw(st.permutations(content.splitlines(keepends=True)))
    assert problems(b"".join(lines), values, binary) == []


CORRUPTIONS = {  # lines and the index of one of them -> lines
    "missing": lambda lines, n: lines[:n] + lines[n + 1 :],
    "twice": lambda lines, n: [*lines, lines[n]],
    "empty line": lambda lines, n: [*lines[:n], "", *lines[n:]],
    "header": lambda lines, n: ["image_id,used", *lines],
    "another id": lambda lines, n: [*lines[:n], "unknown id" + lines[n], *lines[n + 1 :]],
    "no value": lambda lines, n: [*lines[:n], lines[n].partition(",")[0], *lines[n + 1 :]],
    "empty value": lambda lines, n: [*lines[:n], lines[n].partition(",")[0] + ",", *lines[n + 1 :]],
    "space before the value": lambda lines, n: [*lines[:n], lines[n].replace(",", ", "), *lines[n + 1 :]],
    "space after the value": lambda lines, n: [*lines[:n], lines[n] + " ", *lines[n + 1 :]],
    "fraction": lambda lines, n: [*lines[:n], lines[n] + ".0", *lines[n + 1 :]],
    "negative": lambda lines, n: [*lines[:n], lines[n].replace(",", ",-"), *lines[n + 1 :]],
    "other digits": lambda lines, n: [*lines[:n], lines[n] + "٣", *lines[n + 1 :]],
    "third column": lambda lines, n: [*lines[:n], lines[n] + ",0.5", *lines[n + 1 :]],
    "semicolon": lambda lines, n: [*lines[:n], lines[n].replace(",", ";"), *lines[n + 1 :]],
    "quotation marks": lambda lines, n: [*lines[:n], '"{}",{}'.format(*lines[n].split(",")), *lines[n + 1 :]],
    "byte-order mark": lambda lines, n: ["\ufeff" + lines[0], *lines[1:]],
}


@SETTINGS
@given(st.one_of(st.tuples(USED, st.just(True)), st.tuples(CLUSTERS, st.just(False))), st.data())
def test_a_corrupted_file_has_problems(example, data):
    values, binary = example
    lines = submission(values).decode().removesuffix("\n").split("\n")
    n = data.draw(st.integers(0, len(lines) - 1))
    for name, corrupt in CORRUPTIONS.items():
        content = "".join(f"{line}\n" for line in corrupt(lines, n)).encode()
        assert problems(content, [*values, "image_id"] if name == "header" else values, binary), name
        assert not accepted(content, values, binary), name


@SETTINGS
@given(st.one_of(st.tuples(USED, st.just(True)), st.tuples(CLUSTERS, st.just(False))), st.data())
def test_any_change_of_one_byte_is_judged_by_the_rules(example, data):
    values, binary = example
    content = submission(values)
    position = data.draw(st.integers(0, len(content)))
    patch = data.draw(
        st.one_of(st.sampled_from([b"", b"0", b"1", b",", b"\n", b"\r", b"\r\n", b" "]), st.binary(max_size=2))
    )
    changed = content[:position] + patch + content[position + data.draw(st.integers(0, 1)) :]
    lines = problems(changed, values, binary)
    assert (lines == []) == accepted(changed, values, binary)
    if not lines:
        assert read_by_others(changed).keys() == values.keys()
    assert all(line and "\n" not in line for line in lines)
