"""A pack: a set with known truth, dealt from an archive, that goes through search, stack and verdict in one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from gansfp.decision.blind import MEASURED, Facts, normal_scores
from gansfp.decision.conclusion import Conclusion, Left, conclude
from gansfp.decision.decide import FinalConfig, decide_membership
from gansfp.decision.evidence import Evidence, membership_evidence
from gansfp.decision.judged import DecidedSet, judged_by_truth
from gansfp.decision.planted import Planted
from gansfp.decision.search_result import ScoredRows, SetIds, Trial
from gansfp.embedding.embedder import Embedder
from gansfp.embedding.measures import MEASURES
from gansfp.embedding.shards import Pair
from gansfp.errors import DataError, UsageError
from gansfp.labels import NOT_USED, UNKNOWN
from gansfp.scoring.membership import Sweep, learns_from_labels
from gansfp.simulation.generators import GeneratorSettings, blended_copy, generate, most_alike
from gansfp.simulation.patients import Archive
from gansfp.statistics.resampling import stratified_group_folds
from jobs.validation.biases import BIASES, Bias, apply
from tune.left_for_final import own_numbers
from tune.membership import FOLDS, MembershipSlices
from tune.planted import DISPLACEMENT, Plant, make_copies, measure
from tune.problem import COPY_BLEND, Sweeps, TrialOptions
from tune.set_slices import SetSlices

PAIRS = (("highpass-w0-64", "full"), ("highpass-w15-64", "full"), ("highpass-w31-32", "full"))
# Fewer values than a search sweeps, so that a pack takes seconds; all methods that do not learn are there.
SWEEP = Sweep(
    methods=("clusters", "nearest", "reverse", "span", "whitened"),
    ks=(4, 32),
    linkages=("ward",),
    neighbours=(1, 5),
    spans=(20, 60),
    whitened=(100,),
)
GENERATED = 250
GLO_STEPS = 150  # of training, half of the default: so many packs are needed
MIXED = 1.0  # standard deviations by which patients of the two sources overlap
TIMES = (0.5, 1.0, 2.0)  # the size that is found with 80 %
CLASSES = ("used", "not_used", "unknown_used", "unknown_not_used")


@dataclass(frozen=True)
class Pack:
    """What one pack is.

    patients: of each labelled class, and twice as many unknown ones. leak: the generator that is trained on the used
    slices; "": `warp` is trained on other patients. bias: of BIASES, or "". share: of the unknown patients, used ones.
    copies: without a leak of another kind, the share of generated slices that are blended copies of used ones. power:
    measure how small a leak of this kind would have been seen.
    """

    seed: int
    patients: int
    leak: str = ""
    bias: str = ""
    share: float = 0.5
    copies: float = 0.0
    power: bool = False
    permutations: int = 200


@dataclass(frozen=True)
class Outcome:
    """What the audit of a pack said, beside the truth.

    auc, blind, p_value_conditional: None where all unknown patients are of one class. named, used_named, used, unknown:
    patients; low, value, high: the estimated share; kinds: of named differences; smallest: of Power, where it was
    measured.
    """

    finding: str
    auc: float | None
    blind: float | None
    p_value: float
    p_value_conditional: float | None
    kinds: tuple[str, ...]
    named: int
    used_named: int
    used: int
    unknown: int
    low: float
    value: float
    high: float
    smallest: float | None = None


@dataclass(frozen=True, eq=False)
class EmbeddedArchive:
    """Real slices of patients, and their vectors by embedding, (n, d) float32: computed once for all packs."""

    slices: Archive
    vectors: Mapping[Pair, np.ndarray]


def embed_archive(slices: Archive) -> EmbeddedArchive:
    """Embeds the slices of an archive."""
    return EmbeddedArchive(slices, _embed(slices.pixels))


def run_pack(archive: EmbeddedArchive, pack: Pack) -> dict[str, Outcome]:
    """The outcome of a pack, by the name "".

    Where the pack measures power, the outcomes of three leaks that are planted, by how many times the smallest one that
    would have been found they are; none where nothing would have been found. Raises UsageError where the archive has
    too few patients.
    """
    outcome = audit_pack(archive, pack)
    if not pack.power:
        return {"": outcome}
    leaks = {times: replace(pack, copies=min(1.0, (outcome.smallest or 0) * times), power=False) for times in TIMES}
    return {f"{times:g}": audit_pack(archive, leak) for times, leak in leaks.items() if leak.copies}


def audit_pack(archive: EmbeddedArchive, pack: Pack) -> Outcome:
    """Deals, generates, embeds, searches and concludes. Raises UsageError where the archive has too few patients."""
    torch.set_num_threads(1)
    rng = np.random.default_rng([pack.seed, 11])
    dealt = _deal(archive, pack, rng)
    rows = np.concatenate([dealt[name] for name in CLASSES])
    of_class = np.repeat(np.arange(len(CLASSES)), [len(dealt[name]) for name in CLASSES])
    used = np.isin(of_class, (0, 2)).astype(np.int64)
    real, patients = archive.slices.pixels[rows], archive.slices.patients[rows]
    outsiders = archive.slices[dealt["outside"]]
    vectors, training = {pair: of_pair[rows] for pair, of_pair in archive.vectors.items()}, outsiders.pixels
    if pack.bias and (bias := BIASES[pack.bias]).change:
        real = apply(bias, real, _strengths(bias, patients, used, rng), rng)
        training = apply(bias, training, _strengths(bias, outsiders.patients, np.ones(len(outsiders)), rng), rng)
        vectors = _embed(real)
    if pack.leak:
        training = real[used == 1]
    generated = generate(pack.leak or "warp", training, GENERATED, pack.seed, GeneratorSettings(glo_steps=GLO_STEPS))
    if pack.copies:
        copied = _copies(real[used == 1], patients[used == 1], max(1, round(pack.copies * GENERATED)), rng)
        generated[: len(copied)] = copied
    labels = np.where(of_class < 2, used, UNKNOWN)
    both = {pair: np.concatenate([of_pair, vectors[pair]]) for pair, of_pair in _embed(generated).items()}
    return _audited(both, real, labels, used, patients, pack)


def _copies(pictures: np.ndarray, patients: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Blended copies of used slices, as decision/power.py plants them: (count, 256, 256) uint8."""
    neighbours, chosen = most_alike(pictures, patients), rng.integers(len(pictures), size=count)
    partners = [rng.choice(neighbours[row]) for row in chosen]
    return np.stack(
        [
            blended_copy(pictures[row], pictures[partner], COPY_BLEND, DISPLACEMENT, rng)
            for row, partner in zip(chosen, partners, strict=True)
        ]
    )


def _embed(pixels: np.ndarray) -> dict[Pair, np.ndarray]:
    return Embedder([*PAIRS, MEASURED], {})(pixels, np.zeros(pixels.shape, bool))


def _deal(archive: EmbeddedArchive, pack: Pack, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The rows of each class and of those outside. Patients keep 1 to all of their slices, more often few."""
    patients = rng.permutation(np.unique(archive.slices.patients))
    n, unknown_used = pack.patients, round(2 * pack.patients * pack.share)
    sizes = {
        "used": n,
        "unknown_used": unknown_used,
        "outside": n,
        "not_used": n,
        "unknown_not_used": 2 * n - unknown_used,
    }
    if sum(sizes.values()) > len(patients):
        raise UsageError(f"validation: got {len(patients)} patients, expected at least {sum(sizes.values())}")
    patients = patients[: sum(sizes.values())]
    if pack.bias and BIASES[pack.bias].change is None:
        # Used patients and those outside come from one end of what slices show, not-used ones from the other.
        measured = normal_scores(_patient_means(archive, patients))
        patients = patients[np.argsort(measured + rng.normal(0, MIXED, len(patients)))]
    ends = np.cumsum(list(sizes.values()))
    dealt = {}
    for name, of_class in zip(sizes, np.split(patients, ends[:-1]), strict=True):
        rows = [np.flatnonzero(archive.slices.patients == patient) for patient in of_class]
        kept = [rng.permutation(of)[: int(np.ceil(len(of) ** rng.random()))] for of in rows]
        dealt[name] = np.concatenate(kept) if kept else np.array([], dtype=np.int64)
    return dealt


def _patient_means(archive: EmbeddedArchive, patients: np.ndarray) -> np.ndarray:
    """A trait of each patient: the mean width of the body."""
    column = [measure.name for measure in MEASURES].index("width of the body")
    width = archive.vectors[MEASURED][:, column]
    return np.array([width[archive.slices.patients == patient].mean() for patient in patients])


def _strengths(bias: Bias, patients: np.ndarray, used: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The strength of the bias in each slice (n,): one a patient."""
    codes = np.unique(patients, return_inverse=True)[1]
    of_patient = bias.usual + bias.spread * rng.standard_normal(codes.max() + 1)
    return of_patient[codes] + bias.spread * bias.apart * (used == 0)


def _audited(
    vectors: Mapping[Pair, np.ndarray],
    real: np.ndarray,
    labels: np.ndarray,
    used: np.ndarray,
    patients: np.ndarray,
    pack: Pack,
) -> Outcome:
    """Searches and concludes. vectors: by embedding, (GENERATED + n, d), the generated slices first; real: (n, 256,
    256) uint8."""
    n = len(labels)
    folds = np.full(n, -1)
    labelled = labels != UNKNOWN
    folds[labelled] = stratified_group_folds(labels[labelled], patients[labelled], FOLDS, pack.seed)
    of_set = SetSlices("pack", np.arange(GENERATED), GENERATED + np.arange(n), labels, patients, folds)
    slices = MembershipSlices((of_set,))
    rows = [
        row
        for backbone, view in PAIRS
        for row in slices.evaluate(
            Trial(backbone, view, 0, metric="euclidean"), vectors[backbone, view], TrialOptions(Sweeps(SWEEP, ()))
        )
    ]
    learns = np.array([learns_from_labels(row.configuration.choices) for row in rows])
    scores = np.stack([row.scores for row in rows if row.scores is not None])
    config = FinalConfig(permutations=pack.permutations, seed=pack.seed, power=pack.power)
    decided = decide_membership(scores, labels, folds, learns=learns)
    names = [f"slice_{row:05d}" for row in range(n)]
    generated = [f"generated_{row:05d}" for row in range(GENERATED)]
    ids = SetIds(names, generated, labels.tolist(), folds.tolist(), patients.tolist())
    scored = ScoredRows(np.arange(len(rows)), [row.configuration for row in rows], scores)
    decided_set = DecidedSet(ids, scored, labels, folds, patients, learns, decided)
    unknown = ~labelled
    truth = dict(zip(np.array(names)[unknown].tolist(), used[unknown].tolist(), strict=True))
    evidence = membership_evidence(
        used[unknown],
        decided.combined.score[unknown],
        decided.decision[unknown],
        patients[unknown],
        scores[:, unknown],
        config,
    )
    pictures = {pair: own_numbers(vectors[pair][GENERATED:]).astype(np.float64) for pair in PAIRS}
    facts = Facts(MEASURES, vectors[MEASURED][GENERATED:].astype(np.float64), pictures)
    left = Left(facts, _planted(vectors, real, of_set, pack.seed) if pack.power else None)
    concluded = conclude(decided_set, judged_by_truth(decided_set, truth), evidence, left, config)
    of_patient = dict(zip(patients.tolist(), used.tolist(), strict=True))
    return _outcome(concluded, evidence, of_patient)


def _planted(vectors: Mapping[Pair, np.ndarray], real: np.ndarray, of_set: SetSlices, seed: int) -> Planted | None:
    rows = np.flatnonzero(of_set.labels == NOT_USED)
    copies = make_copies(rows, of_set.groups[rows], lambda row: real[row], PAIRS, Plant(COPY_BLEND, seed))
    if copies is None:
        return None
    embedded = {pair: of_set.with_axes(vectors[pair]) for pair in PAIRS}
    spaces = [space for pair in PAIRS for space in measure(embedded[pair], copies, pair, SWEEP.whitened)]
    return Planted(copies.rows, copies.partners, spaces, COPY_BLEND)


def _outcome(concluded: Conclusion, evidence: Evidence, used: Mapping[str, int]) -> Outcome:
    controls, listed, share = concluded.controls, concluded.patients.listed, concluded.share
    if not listed or not share:
        raise DataError("validation: got no unknown patients, expected some")
    truth = np.array([used[patient] for patient in concluded.patients.names.tolist()])
    return Outcome(
        finding=concluded.verdict.finding,
        auc=evidence.figures["auc"].estimate.as_dict()["value"],
        blind=controls.blind.value if controls.blind else None,
        p_value=evidence.p_value_selected or 1.0,
        p_value_conditional=controls.conditional.p_value if controls.conditional else None,
        kinds=tuple(difference.kind for difference in controls.differences),
        named=int(listed.named.sum()),
        used_named=int(truth[listed.named].sum()),
        used=int(truth.sum()),
        unknown=len(truth),
        low=share.low,
        value=share.value,
        high=share.high,
        smallest=concluded.power.smallest if concluded.power else None,
    )
