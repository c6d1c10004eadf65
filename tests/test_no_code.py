"""No source file of ours reads what can hold code, pickles above all: a look at each of them, not at what it does."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "pandas", "yaml"}
CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "read_pickle", "to_pickle", "restore", "unpickle"}
READERS = {"read_table", "ParquetFile", "ParquetDataset", "read_parquet", "read_feather", "open_file", "open_stream"}


def findings(code: str) -> list[str]:
    """What in a source file may run what it reads, or a shell."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            places = names if isinstance(node, ast.Import) else [node.module or "", *names]
            outside = names if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("tune") else []
            found += [f"import {place}" for place in places if PICKLES & set(place.split("."))]
            found += [f"import {place}" for place in outside if place in READERS]
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        if name in CALLS and (node.args or node.keywords) and not (name == "compile" and owner in ("re", "torch")):
            found.append(f"{owner}.{name}")
        if name in READERS and owner not in ("", "store", "trials"):  # trials.read_table is store.read_parquet
            found.append(f"{owner}.{name}, expected store.read_parquet")
        if name in ("load", "loads", "load_state_dict", "jit_load") and owner.split(".")[0] in ("torch", "timm"):
            if options.get("weights_only") != "True":
                found.append(f"{owner}.{name} without weights_only=True")
        elif name in ("load", "loads", "Unpickler") and owner not in ("json", "slices", "safetensors.torch"):
            found.append(f"{owner}.{name}")
        if options.get("allow_pickle", "False") != "False" or options.get("shell", "False") != "False":
            found.append(f"{owner}.{name} with allow_pickle or shell")
    return found


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
