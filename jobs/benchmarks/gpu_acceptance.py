"""The acceptance of gansfp on a GPU: `python -m jobs.benchmark --gpu-acceptance`, in 25 minutes, with one JSON.

Each step runs commands as a user starts them, and has a budget of seconds. A step that fails, or takes longer, is
recorded, and the others go on. The JSON is written anew after each step, so that what was found is kept whatever
happens then.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from gansfp import store
from gansfp.collection.catalog import read_catalog
from gansfp.decision.search_result import read_search
from gansfp.embedding import shards
from gansfp.embedding.embedder import EmbedConfig, identity, load_all_weights
from gansfp.errors import GansfpError
from gansfp.images.lungs import threshold_mask
from gansfp.runtime.record import versions
from gansfp.simulation.phantom import draw_patient, draw_slice
from jobs.benchmarks.machine import describe_machine
from jobs.benchmarks.runs import ROOT

BACKBONES, VIEWS = ("resnet10t@random", "highpass", "residual", "lbp"), ("full", "lungs", "outer")
DIFFERENT = 1e-4  # of a vector's norm: more than this is not rounding
ENDING = 30.0  # seconds that a command has to end after SIGTERM
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}

Facts = Mapping[str, object]  # what a step found, as JSON

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AcceptanceSizes:
    """How much work the steps do. needs_gpu: without a GPU the first step fails, and nothing left behind is looked for.

    tests: arguments of pytest; benchmark: of jobs.benchmark; volumes, slices: of the U-Net's examples, and its epochs;
    patience: a factor of the steps' budgets.
    """

    needs_gpu: bool = True
    tests: tuple[str, ...] = ("-m", "gpu")
    benchmark: tuple[str, ...] = ("--full", "--repeats", "1")
    volumes: int = 6
    slices: int = 16
    epochs: int = 10
    max_steps: int = 20
    patience: float = 1.0

    @classmethod
    def tiny(cls) -> AcceptanceSizes:
        """Sizes with which all steps end in minutes on a CPU."""
        benchmark = ("--slices", "8", "--seconds", "1", "--repeats", "1")
        return cls(
            False, ("tests/test_stopwatch.py",), benchmark, volumes=2, slices=4, epochs=2, max_steps=1, patience=10.0
        )


@dataclass
class Place:
    """Where the steps work. folder: scratch, with the DATA and WORK that later steps use. deadline: of the step."""

    folder: str
    sizes: AcceptanceSizes
    deadline: float = 0.0

    def __call__(self, name: str) -> str:
        """Returns a path in the folder."""
        return os.path.join(self.folder, name)

    def run(self, *command: str, environment: Mapping[str, str] = {}, expected: Sequence[int] = (0,)) -> str:
        """Runs `python -m` with these arguments and returns its output.

        Raises GansfpError with its last line where it ends with another status, or does not end before the deadline.
        """
        with tempfile.TemporaryFile() as output:
            process = self.start(command, environment, output.fileno())
            try:
                process.wait(max(1.0, self.deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise GansfpError(f"{command[0]} was stopped at the end of the step's time") from None
            finally:
                _end(process)
            output.seek(0)
            said = output.read().decode(errors="replace")
        if process.returncode not in expected:
            last = (said.strip().splitlines() or ["nothing"])[-1]
            raise GansfpError(f"{command[0]} ended with status {process.returncode} and said: {last}")
        return said

    def start(self, command: Sequence[str], environment: Mapping[str, str], output: int) -> subprocess.Popen[bytes]:
        """Starts `python -m` with these arguments in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a command and all processes that it has started; first by SIGTERM, with which it ends its Ray itself."""
    if process.poll() is None:
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)  # a command in the background of a shell ignores SIGINT
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDING)
        _kill([psutil.Process(process.pid), *below] if process.poll() is None else below)
        process.wait()


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):  # it has ended
            process.kill()
    psutil.wait_procs(processes, ENDING)


def find_device(place: Place) -> Facts:
    """Returns what the driver and PyTorch say of the GPUs. Raises GansfpError where PyTorch finds none."""
    code = "import torch; print(torch.cuda.is_available(), torch.version.cuda, torch.cuda.device_count())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    facts = {
        "cuda": said[:1] == ["True"],
        "cuda_version": said[1:2],
        "nvidia_smi": _nvidia_smi("--query-gpu=name,memory.total,compute_cap,driver_version"),
    }
    if place.sizes.needs_gpu and not facts["cuda"]:
        raise GansfpError(f"PyTorch finds no GPU ({facts}); this acceptance needs one")
    return facts


def _nvidia_smi(query: str) -> list[str]:
    """Returns the lines of the driver's answer; none where there is no driver."""
    try:
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def compare_arrays(place: Place) -> Facts:
    """Runs the tests that compare a GPU's arrays with a CPU's."""
    said = place.run("pytest", "-q", "-p", "no:cacheprovider", *place.sizes.tests)
    summary = said.strip().splitlines()[-1]
    if place.sizes.needs_gpu and "passed" not in summary:
        raise GansfpError(f"no test ran: {summary}")
    return {"pytest": summary}


def compare_pipelines(place: Place) -> Facts:
    """Embeds one challenge with and without GPUs. Raises GansfpError where a vector differs by more than rounding."""
    data, works = place("data"), {"gpu": place("work"), "cpu": place("work-cpu")}
    place.run("jobs.simulate", "--out", data, "--small")
    options = ["--backbones", ",".join(BACKBONES), "--views", ",".join(VIEWS), "--precision", "float32"]
    seconds = {}
    for name, work in works.items():
        started = time.monotonic()
        environment = NO_GPU if name == "cpu" else {}
        place.run("jobs.embed", "--data", data, "--work", work, *options, environment=environment)
        seconds[name] = round(time.monotonic() - started, 1)
    pairs = tuple((backbone, view) for backbone in BACKBONES for view in VIEWS)
    config, weights = EmbedConfig(pairs), load_all_weights(BACKBONES, None)
    images, differences = read_catalog(data).hashes(), {}
    for pair in pairs:
        gpu, cpu = (shards.read_embeddings(work, identity(pair, config, weights), images) for work in works.values())
        norms = np.linalg.norm(cpu.vectors, axis=1).clip(1e-9)
        differences[" ".join(pair)] = float((np.linalg.norm(gpu.vectors - cpu.vectors, axis=1) / norms).max())
    facts = {"slices": len(images), "seconds": seconds, "largest_differences": differences}
    if max(differences.values()) > DIFFERENT:
        raise GansfpError(f"vectors differ by more than {DIFFERENT:g} of their norm: {json.dumps(facts)}")
    return facts


def measure_rate(place: Place) -> Facts:
    """Measures embedding against the bare forward, with jobs.benchmark. Raises GansfpError for a row that failed."""
    out = place("benchmark")
    place.run("jobs.benchmark", "--only", "embedding", *place.sizes.benchmark, "--out", out, expected=(0, 1))
    report = json.loads(Path(out, "benchmark.json").read_text())
    rows = [
        {name: row[name] for name in ("name", "value", "unit", "other", "ratio", "met", "error")}
        for row in report["rows"]
    ]
    if failed := [row["error"] for row in rows if row["error"]]:
        raise GansfpError(f"embedding could not be measured: {failed[0]}")
    return {"precision": report["sizes"]["precision"], "rows": rows}


def compare_searches(place: Place) -> Facts:
    """Searches both tasks with and without GPUs, and compares the best configurations and their figures."""
    facts: dict[str, object] = {}
    for task in ("membership", "attribution"):
        found, seconds = {}, {}
        for name, options in {"gpu": (), "cpu": ("--gpus", "0")}.items():
            work, started = place(f"search-{task}-{name}"), time.monotonic()
            shutil.copytree(place("work-cpu"), work)  # float32: both search the same vectors
            backbones = ["--backbones", ",".join(BACKBONES[:2]), "--views", "full", "--precision", "float32"]
            place.run("tune.search", "--data", place("data"), "--work", work, "--task", task, *backbones, *options)
            seconds[name], found[name] = round(time.monotonic() - started, 1), read_search(work, task)
        gpu, cpu = ({} if search is None else search.result.best for search in found.values())
        same = {name: gpu[name].configuration == cpu[name].configuration for name in cpu if name in gpu}
        merits = {name: [gpu[name].columns.get("auc"), cpu[name].columns.get("auc")] for name in same}
        facts[task] = {"seconds": seconds, "same_configuration": same, "auc_gpu_cpu": merits}
    return facts


def train_networks(place: Place) -> Facts:
    """Trains a lung U-Net, with one kill -9 in its middle, and a classifier; returns their figures and rates."""
    sizes, images, masks = place.sizes, place("images"), place("masks")
    _draw_masked_slices(images, masks, sizes)
    unet = ["jobs.train", "unet", "--images", images, "--masks", masks, "--work", place("work"), "--name", "unet"]
    unet += ["--epochs", str(sizes.epochs), "--patience", "0"]
    resumed = _kill_in_the_middle(place, unet, Path(place("work"), "models", "unet", "state.pt"))
    place.run(*unet)
    classifier = ["jobs.train", "classifier", "--data", place("data"), "--work", place("work"), "--name", "classifier"]
    classifier += ["--backbone", "resnet10t@random", "--target", "generated", "--set", "warp"]
    place.run(*classifier, "--epochs", str(sizes.epochs), "--max-steps", str(10 * sizes.max_steps))
    facts: dict[str, object] = {"killed_in_the_middle": resumed}
    for name in ("unet", "classifier"):
        model = json.loads(Path(place("work"), "models", name, "model.json").read_text())
        facts[name] = {key: model[key] for key in ("epochs", "figures", "seconds", "peak_memory", "examples")}
    return facts


def _draw_masked_slices(images: str, masks: str, sizes: AcceptanceSizes) -> None:
    """Writes slices of the phantom and their threshold masks under the same names, which begin with the volume's."""
    rng = np.random.default_rng(0)
    for folder in (images, masks):
        os.makedirs(folder)
    for volume in range(sizes.volumes):
        patient = draw_patient(rng)
        for number in range(sizes.slices):
            pixels = draw_slice(patient, 0.3 + 0.4 * number / sizes.slices, rng)
            name = f"volume{volume}_z{number:03}.png"
            Image.fromarray(pixels).save(os.path.join(images, name))
            Image.fromarray(threshold_mask(pixels).astype(np.uint8)).save(os.path.join(masks, name))


def _kill_in_the_middle(place: Place, command: Sequence[str], state: Path) -> bool:
    """Starts a training, and kills all its processes with SIGKILL once it has a checkpoint; False if it ended first."""
    process = place.start(command, {}, subprocess.DEVNULL)
    while process.poll() is None and not state.exists():
        if time.monotonic() > place.deadline:
            _end(process)
            raise GansfpError("the training wrote no checkpoint in the step's time")
        time.sleep(0.1)
    killed = process.poll() is None
    if killed:
        _kill([psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)])
    process.wait()
    return killed


def reproduce(place: Place) -> Facts:
    """Runs the published systems at trial size, whose tasks train and predict on the device."""
    options = ["--random-weights", "--upscaler", "bicubic", "--max-steps", str(place.sizes.max_steps)]
    said = place.run("jobs.reproduce", "--data", place("data"), "--work", place("work"), *options, "--input-size", "64")
    return {"warnings": [line for line in said.splitlines() if "failed" in line or "have no scores" in line]}


def look_for_leftovers(place: Place) -> Facts:
    """Returns the processes that hold memory of a GPU. Raises GansfpError where there are some."""
    left = _nvidia_smi("--query-compute-apps=pid,used_memory")
    if left and place.sizes.needs_gpu:
        raise GansfpError(f"processes still hold memory of the GPU: {'; '.join(left)}")
    return {"processes": left}


@dataclass(frozen=True)
class Step:
    """A part of the acceptance. budget: seconds that it may take."""

    name: str
    budget: float
    run: Callable[[Place], Facts]


STEPS = (
    Step("device", 30, find_device),
    Step("arrays", 180, compare_arrays),
    Step("pipeline", 120, compare_pipelines),
    Step("rate", 470, measure_rate),
    Step("search", 210, compare_searches),
    Step("training", 280, train_networks),
    Step("reproduce", 200, reproduce),
    Step("left behind", 10, look_for_leftovers),
)


@dataclass
class StepResult:
    """How a step ended. error: one line, "" where it passed."""

    name: str
    seconds: float
    budget: float
    facts: Facts = field(default_factory=dict)
    error: str = ""


def accept(sizes: AcceptanceSizes, out: str, steps: Sequence[Step] = STEPS) -> list[StepResult]:
    """Runs the steps one after the other and writes OUT/gpu_acceptance.json after each. Raises DataError for OUT."""
    store.check_writable(out)
    content: dict[str, object] = {"machine": describe_machine(), "versions": versions(), "sizes": asdict(sizes)}
    results: list[StepResult] = []
    with tempfile.TemporaryDirectory(prefix="gansfp-acceptance-", ignore_cleanup_errors=True) as folder:
        place = Place(folder, sizes)
        for step in steps:
            started, budget = time.monotonic(), step.budget * sizes.patience
            place.deadline = started + budget
            result = StepResult(step.name, 0.0, budget)
            try:
                result.facts = step.run(place)
            except Exception as error:  # any failure: the other steps must still run
                log.warning("%s failed", step.name, exc_info=not isinstance(error, GansfpError))
                result.error = store.one_line(error)
            result.seconds = round(time.monotonic() - started, 1)
            results.append(result)
            log.info("acceptance: %s %s in %.0f s", step.name, result.error or "passed", result.seconds)
            content |= {"passed": not any(one.error for one in results), "steps": [asdict(one) for one in results]}
            store.write_bytes_atomically(store.join(out, "gpu_acceptance.json"), json.dumps(content, indent=1).encode())
    return results
