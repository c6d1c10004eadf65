"""No source file of ours reads what can hold code, pickles above all: a look at each of them, not at what it does."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "pandas", "yaml"}
CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "read_pickle", "to_pickle", "restore", "unpickle"}
HARMLESS = {("compile", "re"), ("compile", "torch")}
READERS = {"read_table", "ParquetFile", "ParquetDataset", "read_parquet", "read_feather", "open_file", "open_stream"}


def findings(code: str) -> list[str]:
    """What in a source file may run what it reads, or a shell."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found += findings_in_import(node)
        elif isinstance(node, ast.Call):
            found += findings_in_call(node)
    return found


def findings_in_import(node: ast.Import | ast.ImportFrom) -> list[str]:
    names = [alias.name for alias in node.names]
    module = getattr(node, "module", None) or ""
    pickles = [place for place in (module, *names) if PICKLES & set(place.split("."))]
    foreign = isinstance(node, ast.ImportFrom) and not module.startswith("tune")
    readers = [name for name in names if name in READERS] if foreign else []
    return [f"import {place}" for place in pickles + readers]


def findings_in_call(node: ast.Call) -> list[str]:
    attribute = isinstance(node.func, ast.Attribute)
    name = node.func.attr if attribute else getattr(node.func, "id", "")
    owner = ast.unparse(node.func.value) if attribute else ""
    options = {option.arg: ast.unparse(option.value) for option in node.keywords}
    unsafe_options = {options.get(option, "False") for option in ("allow_pickle", "shell")} - {"False"}
    checks = {
        f"{owner}.{name}": name in CALLS and bool(node.args or node.keywords) and (name, owner) not in HARMLESS,
        f"{owner}.{name}, expected store.read_parquet": name in READERS and owner not in ("", "store"),
        **loads(name, owner, options),
        f"{owner}.{name} with allow_pickle or shell": bool(unsafe_options),
    }
    return [finding for finding, is_so in checks.items() if is_so]


def loads(name: str, owner: str, options: dict[str | None, str]) -> dict[str, bool]:
    """Whether a call loads what may be a pickle."""
    if name in ("load", "loads", "load_state_dict", "jit_load") and owner.split(".")[0] in ("torch", "timm"):
        return {f"{owner}.{name} without weights_only=True": options.get("weights_only") != "True"}
    if name in ("load", "loads", "Unpickler"):
        # exif_tags is a PIL.Image.Exif, which holds numbers and texts
        return {f"{owner}.{name}": owner not in ("json", "slices", "safetensors.torch", "exif_tags")}
    return {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from cloudpickle import loads",
        "import ray.cloudpickle",
        "from ray import cloudpickle",
        "import joblib as quick",
        "import shelve, marshal",
        "np.load(place)",
        "np.load(place, allow_pickle=True)",
        "numpy.lib.format.read_array(file, allow_pickle=maybe)",
        "torch.load(place)",
        "torch.load(place, weights_only=False)",
        "torch.load(place, weights_only=flag)",
        "torch.jit.load(place)",
        "timm.models.load_state_dict(place)",
        "pd.read_pickle(place)",
        "eval(text)",
        "builtins.exec(text)",
        "yaml.load(text)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "tune.Tuner.restore(place)",
        "pq.read_table(place)",
        "from pyarrow.parquet import read_table",
        "ray.data.read_parquet(place)",
        "pa.ipc.open_file(place)",
        "feather.read_feather(place)",
    ],
)
def test_what_could_run_code_is_found(code):
    assert findings(code)


def test_what_cannot_is_not():
    code = "json.loads(t); re.compile(t); torch.load(p, weights_only=True); store.read_parquet(p); network.eval()"
    assert findings(code) == []


def test_nothing_here_runs_what_it_reads():
    files = [path for folder in ("gansfp", "jobs", "tune") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 40
    own = {"store.py": ["pq.ParquetFile, expected store.read_parquet"]}  # after which it looks at the columns
    for path in files:
        assert findings(path.read_text()) == own.get(path.name, []), path
