"""gansfp.collection.truth: which truth files are accepted; and no code that chooses, fits or predicts reads them."""

import ast
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from gansfp.collection import truth
from gansfp.collection.catalog import read_catalog
from gansfp.collection.truth import check_truth_files, read_attribution_truth, read_membership_truth
from gansfp.errors import DataError

ROOT = Path(__file__).parents[2]
# They score decisions that are already made: the audit's, and those of the published systems.
SCORERS = {"gansfp/decision/final.py", "jobs/reproduce.py"}
# It starts every job, and takes the function that looks for mistakes alone.
CHECKER = "gansfp/runtime/collection.py"
# They read the file, leave it out of the notes about ignored files, and write it.
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
    assert membership(data, "sep=,\nimage_id,used\nmembership/a/test/unknown/y,0\nx,1\n") == expected
    assert membership(data, "image_id,used\nx,0\n", "b") == {"membership/b/test/unknown/x": 0}
    assert attribution(data, "image_id,generator\nt2,gan\nt1,vae\n") == {"t1": "vae", "t2": "gan"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,used\nx,1\ny,0\nz,1\n", "1 ids fit no test image, such as 'z'"),
        ("image_id,used\nx,1\ny,0\nu,1\n", "1 ids fit no test image, such as 'u'"),
        ("image_id,used\nx,1\ny,0\nt1,1\n", "1 ids fit no test image, such as 't1'"),
        ("image_id,used\nx,1\n", "1 test images are missing, such as 'y'"),
        ("image_id,used\n", "2 test images are missing"),
        ("image_id,used\nx,1\ny,0\nmembership/a/test/unknown/x,1\n", "1 ids are there more than once"),
        ("image_id,used\nx,1\ny,0\ny,0\n", "1 ids are there more than once, such as 'y'"),
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
    with pytest.raises(DataError, match="1 ids fit several test images, give their paths, such as 'y'"):
        membership(data, "image_id,used\nx,1\ny,0\n")
    unknown = "membership/a/test/unknown"
    text = f"image_id,used\nx,1\n{unknown}/y,0\n{unknown}/patient/y,1\n"
    assert membership(data, text) == {f"{unknown}/patient/y": 1, f"{unknown}/x": 1, f"{unknown}/y": 0}


def test_truth_in_another_unicode_form_and_with_blanks(data):
    picture = (data / "attribution/test/t1.png").read_bytes()
    for name in ("e\u0301tude", " t9", "t8 "):
        (data / f"attribution/test/{name}.png").write_bytes(picture)
    text = "image_id,generator\nt1,a\nt2,b\n\u00e9tude,c\n t9,d\nt8 ,e\n"
    assert attribution(data, text) == {"t1": "a", "t2": "b", "e\u0301tude": "c", " t9": "d", "t8 ": "e"}
    with pytest.raises(DataError, match="1 ids are there more than once"):
        attribution(data, text + "e\u0301tude,c\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,used\nx.png,1\ny.png,0\n", "2 ids fit no test image, such as 'x.png' (ids have no file ending)"),
        ("image_id,used,used\nx,1,0\ny,0,0\n", "has the column 'used' twice"),
        ("image_id;used\nx;1\ny;0\n", "it has semicolons, save it with commas"),
        ("image_id,used\nX,1\ny,0\n", "such as 'X' (X may be x, in other upper and lower case)"),
        ("image_id,used\nx,1\nunknown\\y,0\n", "(write / between folders, not \\; ids are file names, or paths below"),
        ("image_id,used\nx,1\nother/y,0\n", "(ids are file names, or paths below the data folder)"),
        ("PK\x03\x04", "cannot be read as a CSV file (an Excel workbook, not text; save it as CSV)"),
    ],
)
def test_bad_truth_gets_a_hint(data, text, message):
    with pytest.raises(DataError) as caught:
        membership(data, text)
    assert message in str(caught.value)


def test_zeros_that_a_spreadsheet_has_removed(data):
    (data / "membership/a/test/unknown/x.png").rename(data / "membership/a/test/unknown/0042.png")
    with pytest.raises(DataError, match=r"such as '42' .42 may be 0042, whose zeros a spreadsheet has removed"):
        membership(data, "image_id,used\n42,1\ny,0\n")


def test_mistakes_are_found_without_an_answer(data):
    catalog = read_catalog(str(data))
    assert check_truth_files(str(data), catalog) is None
    membership(data, "image_id,used\nx,1\ny,0\n")
    attribution(data, "image_id,generator\nt1,vae\nt2,gan\n")
    assert check_truth_files(str(data), catalog) is None
    (data / "membership/b/test/truth.csv").write_text("image_id,used\nx,yes\n")
    with pytest.raises(DataError, match=r"membership/b/test/truth\.csv: 1 values of `used` are not 0 or 1"):
        check_truth_files(str(data), catalog)
    (data / "membership/b/test/truth.csv").unlink()
    (data / "attribution/test/truth.csv").write_text("image_id,generator\nt1,vae\n")
    with pytest.raises(DataError, match="1 test images are missing, such as 't2'"):
        check_truth_files(str(data), catalog)


def test_slices_of_one_file_have_truth_by_id_or_by_path(data):
    pages = [Image.new("L", (8, 8), number) for number in (10, 20)]
    pages[0].save(data / "attribution/test/stack.tif", save_all=True, append_images=pages[1:])
    expected = {"stack#0001": "gan", "stack#0002": "vae", "t1": "a", "t2": "b"}
    for stack in ("stack", "attribution/test/stack"):
        text = f"image_id,generator\nt1,a\nt2,b\n{stack}#0001,gan\n{stack}#0002,vae\n"
        assert attribution(data, text) == expected


def test_truth_beside_the_folders_of_the_layout(data):
    """DATA holds one folder, which holds the collection."""
    membership(data, "image_id,used\nx,1\ny,0\n")
    (data / "unpacked").mkdir()
    for task in ("membership", "attribution"):
        (data / task).rename(data / "unpacked" / task)
    assert read_membership_truth(str(data), read_catalog(str(data)), "a") == {"membership/a/test/unknown/x": 1, "y": 0}


def test_bad_attribution_truth(data):
    with pytest.raises(DataError, match="1 values of `generator` are empty, such as that of 't2'"):
        attribution(data, "image_id,generator\nt1,vae\nt2,\n")
    with pytest.raises(DataError, match="1 ids fit no test image, such as 'x'"):
        attribution(data, "image_id,generator\nt1,vae\nt2,gan\nx,gan\n")


def test_the_shared_truth(shared):
    data = str(shared / "challenge")
    catalog = read_catalog(data)
    for name in ("glo", "warp"):
        used = read_membership_truth(data, catalog, name)
        assert list(used) == catalog.unknown(name).ids.tolist()
        assert sum(used.values()) == 65
    generators = read_attribution_truth(data, catalog)
    assert len(generators) == 400
    assert len(set(generators.values())) == 4


def imports(source):
    """Every module that a source file may import, `from a import b` as both a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ("gansfp." if node.level else "") + (node.module or "")
            names |= {base.rstrip("."), *(f"{base.rstrip('.')}.{alias.name}" for alias in node.names)}
    return names


def strings(source):
    """Every string of a source file that is not a docstring, pieces of f-strings too."""
    tree = ast.parse(source)
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
    ]


def imports_the_truth(source):
    """True where the source imports gansfp.collection.truth, or holds its name in a string."""
    named = any("truth" in name.split(".") for name in imports(source))
    return named or any(re.search(r"gansfp[.\w]*\.truth", text) for text in strings(source))


def names_the_file(source):
    """True where a string of the source, other than a docstring, holds the name of a truth file."""
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
def test_every_form_of_import_is_seen(line):
    assert imports_the_truth(line)


def test_the_name_of_the_file_is_seen_in_strings_but_not_in_docstrings():
    assert names_the_file("open(f'{data}/test/truth.csv')")
    assert not names_the_file('"""Never reads truth.csv."""\ndef f():\n    """Nor truth.csv."""\n')
    assert not imports_the_truth("from gansfp import catalog\nimport gansfp.collection.catalog\ntruth = {}")


def modules():
    """{path below the repository: source} of every module of the product."""
    paths = [path for folder in ("gansfp", "jobs", "tune") for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def test_only_what_scores_imports_the_truth():
    sources = modules()
    assert "gansfp/collection/truth.py" in sources
    assert set(re.findall(r"[\w/]+\.py", truth.__doc__)) == {*SCORERS, CHECKER}
    assert {path for path, source in sources.items() if imports_the_truth(source)} <= {*SCORERS, CHECKER}
    taken = {name for name in imports(sources[CHECKER]) if "truth" in name}
    assert taken == {"gansfp.collection.truth", "gansfp.collection.truth.check_truth_files"}


def test_what_predicts_for_the_published_systems_cannot_read_the_truth():
    scorers = {path.removesuffix(".py").replace("/", ".") for path in SCORERS}
    checked = 0
    for path, source in modules().items():
        if path.startswith(("gansfp/published/", "jobs/reproduction/")):
            checked += 1
            assert not imports(source) & {"gansfp.collection.truth", *scorers}, path
    assert checked > 10


def test_only_the_truth_its_maker_and_the_layout_name_the_file():
    sources = modules()
    named = {path for path, source in sources.items() if names_the_file(source)}
    assert {"gansfp/collection/truth.py", "gansfp/collection/layout.py"} <= named <= NAMERS


def test_nothing_that_chooses_imports_what_scores():
    scorers = {path.removesuffix(".py").replace("/", ".") for path in SCORERS}
    for path, source in modules().items():
        if path.startswith(("gansfp/", "tune/")):
            assert not imports(source) & scorers, path
