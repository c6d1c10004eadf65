"""All texts of the report, in one place, so that a translation is one file. The verdicts' sentences come from
gansfp/decision. Braces are filled in by the page; figures that they take are given with their unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gansfp.decision.verdict import CANNOT_TELL, LEAK, NO_EVIDENCE, NOT_TOLD_APART, TOLD_APART


@dataclass(frozen=True)
class Meaning:
    """What a finding means, what it does not mean, and what to do: a sentence or two an entry."""

    answer: str
    means: Sequence[str]
    not_means: Sequence[str]
    do: Sequence[str]


MEANINGS: Mapping[str, Meaning] = {
    LEAK: Meaning(
        "Yes. The synthetic slices carry traces of the slices that trained the generator.",
        (
            "The used patients' slices resemble the synthetic slices more than the not-used patients' slices do. "
            "Chance does not explain it, and neither does what the slices show by themselves.",
        ),
        (
            "It is not proof about one patient. Only the patients who are named below can be pointed to, and a part of "
            "these names may be wrong.",
            "It does not say how the generator keeps the traces, nor that a patient's whole picture can be rebuilt.",
            "It does not say that a stranger can be identified by name: that also takes somebody who has the real "
            "slice.",
        ),
        (
            "Do not release these synthetic slices or the generator before this is settled.",
            "Tell the person who answers for the patients' data (the data protection officer). That person decides "
            "whether an authority or patients must be told, and what to do about slices that were already released.",
            "Look at the pictures below: where slices were copied, they show what was kept.",
            "Train the generator again so that it remembers less (fewer epochs, no slice twice, more patients, "
            "differential privacy), or remove synthetic slices that lie too near to a real one. Then audit again.",
        ),
    ),
    NO_EVIDENCE: Meaning(
        "No evidence of a leak was found.",
        (
            "The used patients' slices do not resemble the synthetic slices more than chance allows, with all that "
            "this audit has tried.",
        ),
        (
            "It is not proof that nothing leaks. A leak that is smaller than the one under 'What would have been "
            "seen', "
            "or that only another attack sees, may still be there.",
            "It says nothing about an attacker who has the generator itself, and not only its slices.",
        ),
        (
            "Read what would have been seen, and decide whether such a leak is small enough for this release. Where it "
            "was not measured, add not-used patients first.",
            "Keep this page in your files, as the record of what was tested.",
            "Audit again when the generator, its training data or the released slices change.",
        ),
    ),
    CANNOT_TELL: Meaning(
        "This audit cannot tell.",
        ("The data do not allow an answer. The reason stands in the sentence above.",),
        (
            "It is not a pass: a leak may be there.",
            "It is not an accusation: a high score may come from the difference between the two groups of patients, "
            "and not from the generator.",
        ),
        (
            "If the two groups differ by themselves: compare with not-used slices from the same scanners, tables, "
            "dates and files as the used ones.",
            "If there are too few patients: add patients, used and not used.",
            "If even a large leak would have been missed: add patients or synthetic slices.",
            "Until then, treat the synthetic slices as if they could leak.",
        ),
    ),
    TOLD_APART: Meaning(
        "Yes, better than chance. The synthetic slices fall into groups that agree with the generators; how well, the "
        "ARI says (1 is perfect).",
        ("Whoever holds such slices can say which of them come from the same generator.",),
        (
            "A group is not a name. Its generator is named only where it resembles a generator whose slices were "
            "given with a label.",
            "It says nothing about patients.",
        ),
        (
            "Check in the figures below that the groups are not told apart by the size of their files or by their grey "
            "levels alone.",
            "Do not blame a generator for a slice by its group alone: the table of groups and generators shows the "
            "mix.",
        ),
    ),
    NOT_TOLD_APART: Meaning(
        "No. The groups agree with the generators no better than chance.",
        ("With all that this audit has tried, the slices do not show which generator made them.",),
        ("It is not proof that they cannot be told apart.",),
        ("Do not rely on the cluster numbers in attribution.csv.",),
    ),
}

FIGURE_NAMES: Mapping[str, str] = {
    "auc": "AUC",
    "f1": "F1",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "kappa": "kappa",
    "tpr_at_fpr_0.01": "true positive rate at 1 % false positives",
    "tpr_at_fpr_0.1": "true positive rate at 10 % false positives",
    "ari": "ARI",
    "nmi": "NMI",
    "v_measure": "V-measure",
    "purity": "purity",
}

_TEXTS = {
    "title": "Audit of synthetic chest-CT slices",
    "lead": (
        "Did a generator of synthetic slices give away the patients it was trained on, and which generator made each "
        "slice? This page answers from the files alone."
    ),
    "confidential": "Confidential: this page shows pictures of patients and names them. Do not publish it.",
    "names_patients": "This page has no pictures, but it names slices and patients.",
    "audited": "Audited on {day} with gansfp {version}.",
    "no_groups": (
        "{n} real slices have no patient or volume (groups.csv): each counts as a patient of its own. If some are of "
        "one "
        "patient, the answers look surer than they are."
    ),
    "not_read": (
        "{n} unknown slices of this set could not be read. No figure speaks of them; the CSV file calls them not used."
    ),
    "power_unknown": "How small a leak would have been seen is not known, so this answer says little.",
    "left_out_note": "What is left out can hide a leak. It cannot make one.",
    "provisional": "Provisional: these features are still to be tried: {pending}. The final answer follows.",
    "unfinished": "This audit is not finished. The page shows what there is, and says what is missing.",
    "running": "{job}, step {stage}: {done} of {total} {unit}, {failed} failed.",
    "stopped": "It was stopped: {error}.",
    "ended": "The job has ended.",
    "killed": "It was ended from outside: run the same command again, and it goes on where it was.",
    "lives": "It is running.",
    "as_of": "State of {time}.",
    "no_answer": "There is no answer yet: the final step has not run.",
    "question_leak": "Set “{name}”: did these patients' slices train the generator?",
    "question_attribution": "Which generator made each synthetic slice?",
    "how_sure": (
        "If the generator had learned nothing from the used patients, a result as strong as this would appear with "
        "the probability p = {p} (after counting everything that was tried: p = {selected}; beyond what the slices "
        "show by themselves: p = {conditional}). The test level is {alpha}."
    ),
    "how_sure_all": "All three must be below the level before anybody may speak of a leak.",
    "how_sure_none": "There is no valid p-value: see the reasons.",
    "null": (
        "Null hypothesis: the generator treats used and not-used patients alike, so that their labels could be "
        "exchanged, each patient's slices together."
    ),
    "who_none": "No patient can be named.",
    "who": (
        "{named} of {n} unknown patients can be named as used. On average up to {fdr} of the names are wrong: expect "
        "about {wrong} wrong ones. They are marked in the list of patients."
    ),
    "who_not_allowed": (
        "Nobody should be accused. The scores of {withheld} of {n} unknown patients are as high as those of used "
        "patients, but the answer above does not allow to name them: what raises their scores may be no leak."
    ),
    "who_no_unknown": "There are no unknown patients in this set: nobody was to be named.",
    "wrong": (
        "Seen from the other side: {wrong} of {of} patients who were certainly not used score as high as the last "
        "patient "
        "named, so at most {most} of all not-used patients would be named by mistake (95 % sure)."
    ),
    "share": "Estimated from the scores, {value} of the unknown patients were used ({low} to {high}, 95 % sure).",
    "share_careful": "Where there is no leak, it only says how many are like the used patients.",
    "share_none": (
        "The share of used patients is not known: it takes used, not-used and unknown patients, and scores that tell "
        "used from not-used ones."
    ),
    "power_none": "How small a leak would have been seen was not measured: {reason}.",
    "power_seen": (
        "A test of the method, no finding: if one synthetic slice in {every} were a deformed copy of a used slice "
        "(blended to {blend} with another patient's), this audit would have found the leak in {found} of trials."
    ),
    "power_never": (
        "A test of the method: not even a generator whose slices are all copies would have been found in {found} of "
        "trials."
    ),
    "glance_attack": "Attack: used against not used",
    "glance_blind": "Control: real slices alone",
    "glance_used": "Control: used against used",
    "glance_not_used": "Control: not used against not used",
    "glance_matched": "Attack, patients who are alike",
    "glance_caption": (
        "How well two groups of patients are told apart (AUC: 0.5 is chance, 1 is perfect), with 95 % intervals. The "
        "attack should stand out from the controls before anybody believes it. The controls show what happens where "
        "nothing can leak."
    ),
    "pictures_flagged": "The slices that look most as if they had been used",
    "pictures_others": "Slices that were not flagged, from the most to the least suspicious",
    "pictures_coincidences": "The same for slices whose truth is 'not used': what coincidence looks like",
    "pictures_caption": (
        "1: the real slice. 2: the synthetic slice nearest to it. 3: their difference after the synthetic slice was "
        "moved "
        "onto the real one (turned, scaled, shifted, and bent by at most 8 pixels): grey is equal, red is brighter in "
        "the synthetic slice, blue is darker. 4: the real slice again, with the area that agrees in orange. Equal "
        "names "
        "in different sets need not be the same patient."
    ),
    "pictures_hint": (
        "Compare with the last group: outlines and chest walls of different patients agree too, in some 45 % of the "
        "body. Far more speaks for a copy."
    ),
    "pictures_copies": (
        "In this set the flagged slices agree much more than coincidence: look for vessels and edges that are the same."
    ),
    "pictures_evident": (
        "On average the flagged slices agree not clearly more than coincidence does, but {n} of them as copies do, in "
        "up to {share} of the body: look there for vessels and edges that are the same."
    ),
    "pictures_no_copies": (
        "On average the flagged slices agree not clearly more than coincidence does, and none of those shown agrees as "
        "copies do. What was found, if anything, is in the scores alone."
    ),
    "pictures_careful": (
        "The answer for this set is no leak: the scores and probabilities below are no evidence against a patient."
    ),
    "pictures_none": "This page was made without pictures (--pictures none), so that it can be shared.",
    "pictures_no_data": "There are no pictures: the files of the collection could not be found.",
    "no_flagged": "No slice was flagged.",
    "unknown_truth": "not known",
    "scores_caption": "Scores of the slices. The further the two heaps lie apart, the better used slices are told.",
    "roc_caption": (
        "How many used slices are found at the price of how many false accusations, from one accusation upwards "
        "(logarithmic). The band is the 95 % interval. On the dashed line nothing is known."
    ),
    "calibration_caption": (
        "Is a stated probability right? Of the slices to which 80 % is given, 80 % should have been used."
    ),
    "patients_caption": "The unknown patients by their score. Marked ones are named.",
    "patient_line": (
        "A line of this list: the score of the patient, from all slices together (the pictures have scores of slices); "
        "p, the probability that a patient who was "
        "not used scores as high; q, the share of wrong names if everybody down to this line is named. For the patient "
        "it means: if named, the scan was probably used, and traces of it lie in the synthetic slices. If not named, "
        "the scan may still have been used."
    ),
    "power_caption": "How often a leak of each size would have been found, from copies planted into these data.",
    "share_caption": "The share of the unknown patients that were used, with its 95 % interval.",
    "luck_caption": (
        "How much of the best result is luck: the best of everything that was tried, again and again with labels "
        "exchanged at random, beside the best that was observed."
    ),
    "new_generator": "a generator that is not known",
    "clusters_caption": (
        "Each point is a slice. Neighbours are alike; how far heaps lie apart, and how large they are, means nothing "
        "(t-SNE)."
    ),
    "silhouettes_caption": (
        "How clearly the slices fall into a number of clusters (mean silhouette, 1 is best, 0 is none), of the chosen "
        "method."
    ),
    "spectra_caption": (
        "What is left of a slice after smoothing, by its fineness: generators leave different fine patterns, and this "
        "is what tells them apart. The pictures show the same in both directions, with coarse patterns in the middle."
    ),
    "heat_caption": "The best {unit} of each kind of feature and part of the slice; chance is {chance}.",
    "not_measured": "not measured",
    "risk_note": (
        "Both authorities use the threshold 0.09 for the risk that a person is re-identified in released documents. "
        "Membership is another risk. The threshold stands here for comparison, not as a pass mark. With few patients "
        "an "
        "upper bound is high even where nothing was found."
    ),
    "risk_sources": (
        "EMA, External guidance on the implementation of the policy on the publication of clinical data (Policy 0070), "
        "EMA/90915/2016; Health Canada, Guidance on Public Release of Clinical Information (2019). The three risks: "
        "Article 29 Working Party, Opinion 05/2014 on anonymisation techniques (WP 216). Risk from attack and control: "
        "Giomi et al. 2023 (Anonymeter)."
    ),
    "linkability": "not measured by this audit: it would take a second collection of the same patients",
}

# A number and its per cent sign stay on one line.
TEXTS: Mapping[str, str] = {name: text.replace(" %", "\N{NO-BREAK SPACE}%") for name, text in _TEXTS.items()}
