"""gansfp.collection.truth: what a truth file may say, and that nothing that chooses, fits or predicts can get at it."""

import ast
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from gansfp.collection.catalog import read_catalog
from gansfp.collection.truth import read_attribution_truth, read_membership_truth
from gansfp.errors import DataError

ROOT = Path(__file__).parents[2]
# They score what was predicted before: the audit's decisions, and those of the published systems.
SCORERS = {"gansfp/decision/final.py", "jobs/reproduce.py"}
# Reads it, passes it by, writes it.
NAMERS = {"gansfp/collection/truth.py", "gansfp/collection/layout.py", "gansfp/simulation/challenge.py"}


@pytest.fixture
def data(tmp_path):
    paths = [
        "membership/a/train/used/u.png",
        "membership/a/test/unknown/x.png",
        "membership/a/test/unknown/y.png",
        "membership/b/test/unknown/x.png",
        "attribution/test/t1.png",
        "attribution/test/t2.png",
    ]
    for number, path in enumerate(paths):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        Image.new("L", (8, 8), number).save(file, "PNG")
        (tmp_path / path).write_bytes(file.getvalue())
    return tmp_path


def membership(data, text, name="a"):
    (data / f"membership/{name}/test/truth.csv").write_text(text)
    return read_membership_truth(str(data), read_catalog(str(data)), name)


def attribution(data, text):
    (data / "attribution/test/truth.csv").write_text(text)
    return read_attribution_truth(str(data), read_catalog(str(data)))


def test_no_truth_is_none(data):
    catalog = read_catalog(str(data))
    assert read_membership_truth(str(data), catalog, "a") is None
    assert read_attribution_truth(str(data), catalog) is None


def test_names_and_ids(data):
    expected = {"membership/a/test/unknown/x": 1, "y": 0}
    assert membership(data, "image_id,used\nx,1\ny,0\n") == expected
    assert membership(data, "used,image_id\n0,y\n1,membership/a/test/unknown/x\n") == expected
    assert membership(data, "image_id,used\nx,0\n", "b") == {"membership/b/test/unknown/x": 0}
    assert attribution(data, "image_id,generator\nt2,gan\nt1,vae\n") == {"t1": "vae", "t2": "gan"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,used\nx,1\ny,0\nz,1\n", "1 ids are of no test image, such as 'z'"),
        ("image_id,used\nx,1\ny,0\nu,1\n", "1 ids are of no test image, such as 'u'"),
        ("image_id,used\nx,1\ny,0\nt1,1\n", "1 ids are of no test image, such as 't1'"),
        ("image_id,used\nx,1\n", "1 test images are missing, such as 'y'"),
        ("image_id,used\n", "2 test images are missing"),
        ("image_id,used\nx,1\ny,0\nmembership/a/test/unknown/x,1\n", "1 ids are given twice"),
        ("image_id,used\nx,1\ny,0\ny,0\n", "1 ids are given twice, such as 'y'"),
        ("image_id,used\nx,1\ny,2\n", "1 values of `used` are not 0 or 1, such as '2' of 'y'"),
        ("image_id,used\nx,1.0\ny,yes\n", "2 values of `used` are not 0 or 1"),
        ("image_id,label\nx,1\ny,0\n", "no column 'used'"),
        ("x,1\ny,0\n", "no column 'image_id'"),
    ],
)
def test_bad_membership_truth(data, text, message):
    with pytest.raises(DataError) as caught:
        membership(data, text)
    assert message in str(caught.value)
    assert str(data / "membership/a/test/truth.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_two_test_images_have(data):
    other = data / "membership/a/test/unknown/patient/y.png"
    other.parent.mkdir()
    other.write_bytes((data / "membership/a/test/unknown/y.png").read_bytes())
    with pytest.raises(DataError, match="1 ids are of several test images, give the path, such as 'y'"):
        membership(data, "image_id,used\nx,1\ny,0\n")
    unknown = "membership/a/test/unknown"
    text = f"image_id,used\nx,1\n{unknown}/y,0\n{unknown}/patient/y,1\n"
    assert membership(data, text) == {f"{unknown}/patient/y": 1, f"{unknown}/x": 1, f"{unknown}/y": 0}


def test_bad_attribution_truth(data):
    with pytest.raises(DataError, match="1 values of `generator` are empty, such as that of 't2'"):
        attribution(data, "image_id,generator\nt1,vae\nt2,\n")
    with pytest.raises(DataError, match="1 ids are of no test image, such as 'x'"):
        attribution(data, "image_id,generator\nt1,vae\nt2,gan\nx,gan\n")


def test_the_shared_truth(shared):
    data = str(shared / "challenge")
    catalog = read_catalog(data)
    for name in ("glo", "warp"):
        truth = read_membership_truth(data, catalog, name)
        assert list(truth) == catalog.unknown(name).ids.tolist()
        assert sum(truth.values()) == 65
    truth = read_attribution_truth(data, catalog)
    assert len(truth) == 400
    assert len(set(truth.values())) == 4


def imports(source):
    """Every module that a source file may import, `from a import b` as both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ("gansfp." if node.level else "") + (node.module or "")
            found |= {base.rstrip("."), *(f"{base.rstrip('.')}.{alias.name}" for alias in node.names)}
    return found


def strings(source):
    """Every string of a source file that is not a docstring, pieces of f-strings too."""
    tree = ast.parse(source)
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
    ]


def opens_the_door(source):
    named = any("truth" in name.split(".") for name in imports(source))
    return named or any(re.search(r"gansfp[.\w]*\.truth", text) for text in strings(source))


def knows_the_file(source):
    return any("truth.csv" in text for text in strings(source))


@pytest.mark.parametrize(
    "line",
    [
        "import gansfp.collection.truth",
        "import gansfp.collection.truth as t",
        "from gansfp.collection import catalog, truth",
        "from gansfp.collection.truth import read_membership_truth",
        "from . import truth",
        "from .truth import read_membership_truth",
        "def late():\n    from gansfp.collection import truth",
        "importlib.import_module('gansfp.collection.truth')",
    ],
)
def test_the_watch_sees_every_way_in(line):
    assert opens_the_door(line)


def test_the_watch_sees_the_file_and_not_the_innocent():
    assert knows_the_file("open(f'{data}/test/truth.csv')")
    assert not knows_the_file('"""Never reads truth.csv."""\ndef f():\n    """Nor truth.csv."""\n')
    assert not opens_the_door("from gansfp import catalog\nimport gansfp.collection.catalog\ntruth = {}")


def modules():
    """{path below the repository: source} of every module of the product."""
    found = {}
    for folder in ("gansfp", "jobs", "tune"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
    return found


def test_only_jobs_that_score_import_the_truth():
    sources = modules()
    assert "gansfp/collection/truth.py" in sources
    assert {path for path, source in sources.items() if opens_the_door(source)} <= SCORERS


def test_what_predicts_for_the_published_systems_cannot_get_at_the_truth():
    scorers = {path.removesuffix(".py").replace("/", ".") for path in SCORERS}
    checked = 0
    for path, source in modules().items():
        if path.startswith(("gansfp/published/", "jobs/reproduction/")):
            checked += 1
            assert not imports(source) & {"gansfp.collection.truth", *scorers}, path
    assert checked > 10


def test_only_the_truth_its_maker_and_the_layout_name_the_file():
    sources = modules()
    named = {path for path, source in sources.items() if knows_the_file(source)}
    assert {"gansfp/collection/truth.py", "gansfp/collection/layout.py"} <= named <= NAMERS


def test_nothing_that_chooses_imports_what_scores():
    scorers = {path.removesuffix(".py").replace("/", ".") for path in SCORERS}
    for path, source in modules().items():
        if path.startswith(("gansfp/", "tune/")):
            assert not imports(source) & scorers, path
