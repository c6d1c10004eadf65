"""tune.trials, with stand-ins for Ray: what Optuna draws, and how errors come home from workers."""

import zlib
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

from gansfp.errors import DataError, GansfpError
from tune.membership import MEMBERSHIP
from tune.problem import SearchConfig
from tune.trials import BATCH, Batches, _optuna, for_each_pair

PAIRS = [pair for pair in MEMBERSHIP.default_pairs if pair[0].startswith("highpass")]


def drawn(slots, last_first=False, total=4 * BATCH, sign=1):
    """The trials of a search whose trials run in so many processes. last_first: of those, the last one ends first.
    sign: of the trials' results."""
    searcher, running, trials = Batches(_optuna(SearchConfig("membership", seed=0), MEMBERSHIP, PAIRS)), [], []
    while running or len(trials) < total:
        while len(running) < slots and len(trials) < total:
            suggestion = searcher.suggest(f"id{len(trials)}")
            if suggestion is None:
                break
            running.append((f"id{len(trials)}", suggestion["trials"][0]))
            trials.append(suggestion["trials"][0])
        ended, trial = running.pop(-1 if last_first else 0)
        merit = sign * zlib.crc32(trial.encode())
        searcher.on_trial_complete(ended, {"merit": merit, "training_iteration": 1})
    return trials


@pytest.mark.parametrize("last_first", [False, True])
@pytest.mark.parametrize("slots", [1, 2, 3, 8, 64])
def test_a_seed_draws_the_same_trials_on_every_machine(slots, last_first):
    assert drawn(slots, last_first) == drawn(2)


def test_what_is_drawn_comes_from_the_results_before():
    plain, reverse = drawn(2), drawn(2, sign=-1)
    assert plain[:BATCH] == reverse[:BATCH]
    assert plain[-BATCH:] != reverse[-BATCH:]
    assert drawn(2, total=BATCH + 3) == plain[: BATCH + 3]


@pytest.fixture
def raising(monkeypatch):
    """for_each_pair where Ray raises this error."""

    def run(error):
        def get(references):
            raise error

        monkeypatch.setattr(ray, "put", lambda value: value)
        monkeypatch.setattr(ray, "remote", lambda function: SimpleNamespace(remote=lambda *_: None))
        monkeypatch.setattr(ray, "get", get)
        return for_each_pair(SimpleNamespace(task=MEMBERSHIP), PAIRS, lambda pair, vectors: None)

    return run


def of_worker(error):
    text = f'\x1b[36mray::task()\x1b[39m\n  File "trials.py", line 200, in task\n{type(error).__module__}.'
    return RayTaskError("task", f"{text}{type(error).__qualname__}: {error}", error).as_instanceof_cause()


def test_an_error_of_gansfp_comes_home_as_it_was_raised(raising):
    with pytest.raises(DataError) as caught:
        raising(of_worker(DataError("W/embeddings/lbp/full: no embedding of 3 images")))
    assert str(caught.value) == "W/embeddings/lbp/full: no embedding of 3 images"


def test_a_worker_that_is_lost_is_one_line(raising):
    with pytest.raises(GansfpError, match=r"^search membership: a process was lost \(WorkerCrashedError: .+\); run"):
        raising(WorkerCrashedError())


@pytest.mark.parametrize("error", [of_worker(ZeroDivisionError("a defect")), OutOfMemoryError("memory")])
def test_other_errors_are_left_to_the_frame_of_commands(raising, error):
    with pytest.raises(type(error)):
        raising(error)
