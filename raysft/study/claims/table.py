"""The table of claims: what the paper found, what would decide it, and what this study says."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raysft.study.claims import data, languages, layers, likelihood, structure, training
from raysft.study.claims.evidence import Evidence
from raysft.study.claims.schema import CLAIMS
from raysft.study.claims.verdict import CANNOT_TELL, FEWEST_MODELS, Number, Outcome, cannot, counted
from raysft.study.tables import from_rows


@dataclass(frozen=True)
class Claim:
    """A finding of the paper in our words, what part of it says so, and the criterion with the test that applies it."""

    name: str
    claim: str
    section: str
    criterion: str
    test: Callable[[Evidence], Outcome]


ABSTRACT = "abstract"

CLAIMS_OF_THE_PAPER: tuple[Claim, ...] = (
    Claim(
        "perplexity",
        "The lower the perplexity of a dataset under the base model, the larger the gain from it.",
        f"{ABSTRACT}; perplexity against gain",
        "partial r given model and dataset below 0 at q <= 0.05; not supported if r <= -0.3 is excluded at 5%",
        data.perplexity_predicts,
    ),
    Claim(
        "perplexity unseen",
        "Perplexity foretells how well fine-tuning will work.",
        f"{ABSTRACT}; perplexity against gain",
        "with models held out, its 95% interval of skill over the mean of the other models is above 0; not supported "
        "if it is below 5%",
        data.perplexity_predicts_unseen,
    ),
    Claim(
        "perplexity or similarity",
        "Perplexity tells more about gain than the similarity of dataset and benchmark does.",
        f"{ABSTRACT}; similarity against gain",
        "-r of perplexity above |r| of similarity, both given model and dataset, at p <= 0.025; not supported if a "
        "lead of 0.1 is excluded at 5%",
        data.perplexity_beats_similarity,
    ),
    Claim(
        "perplexity or length",
        "The length of a dataset's answers tells less about gain than perplexity does.",
        "length against gain",
        "-r of perplexity above |r| of length with models and datasets resampled, at p <= 0.025; not supported if a "
        "lead of 0.1 is excluded at 5%",
        data.length_matters_less,
    ),
    Claim(
        "middle layers",
        "Of all layers, the weight change of those in the middle goes with gain most strongly.",
        f"{ABSTRACT}; weight change by layer",
        "given model and dataset, the strongest depth has r > 0, p <= 0.05 as the strongest of all, and is within 0.4 "
        "to 0.8 in 80% of resamples; not supported if it is outside in 80%, or r >= 0.3 is excluded at every depth",
        layers.middle_layers,
    ),
    Claim(
        "dimension",
        "Intrinsic dimension before and after fine-tuning is alike up to a depth of about 0.6 and parts there.",
        "intrinsic dimension by layer",
        "relative change is larger from depth 0.6 on at p <= 0.05, errors clustered by model and dataset, and the "
        "mean curve starts to rise within 0.4 to 0.8 in 80% of resamples; not supported if it starts elsewhere in "
        "80%, or a difference of 2% is excluded",
        layers.dimension_splits,
    ),
    Claim(
        "synergies persist",
        "Some pairs of dataset and benchmark go together for every base model.",
        f"{ABSTRACT}; gains by dataset and task",
        "a pair whose gain has one sign for all models and q <= 0.05 over models; not supported if 2 points of a "
        "hundred are excluded for every pair",
        structure.synergies_persist,
    ),
    Claim(
        "synergies differ",
        "Other pairs of dataset and benchmark vary from base model to base model.",
        f"{ABSTRACT}; gains by dataset and task",
        "a pair whose gains differ between models beyond their standard errors, Cochran's Q, at q <= 0.05; not "
        "supported if a spread (standard deviation) of 2 points of a hundred is excluded for every pair at 5%",
        structure.synergies_differ,
    ),
    Claim(
        "tasks or datasets",
        "Base models agree on which tasks go together more than on which datasets do.",
        "similarity of tasks, datasets and models",
        "mean r of models' task similarities above that of their dataset similarities at p <= 0.05, models left out "
        "in turn; not supported if a lead of 0.1 is excluded at 5%",
        structure.models_agree_on_tasks,
    ),
    Claim(
        "components",
        "About five principal components hold over nine tenths of the variance of the gains.",
        "principal components of the gains",
        "five components of gains scaled to -1 to 1 hold 90%, and 85% at the lower end of the interval of resamples; "
        "not supported if the upper end is below 90%; told only if gains as shares of each task's scale agree and "
        "shuffled ones do not reach 90%",
        structure.few_components,
    ),
    Claim(
        "base sets the place",
        "On the map of log-likelihoods, models lie by their base model rather than by their data.",
        "map of log-likelihoods",
        "base models account for more of the squared distances than datasets do, beyond chance, at p <= 0.05 with "
        "models left out in turn, and permuted p <= 0.05; not supported if a lead of 10% is excluded",
        likelihood.base_sets_the_place,
    ),
    Claim(
        "one direction",
        "Whatever the base model and the data, fine-tuning moves models along one common direction.",
        "map of log-likelihoods over epochs",
        "ways of fine-tunings that share neither model nor data have a mean cosine of 0.3 or more, 95% interval above "
        "0; not supported if 0.3 is excluded at 5%",
        likelihood.one_direction,
    ),
    Claim(
        "LoRA gains as much",
        "LoRA gains about what full fine-tuning gains.",
        "LoRA against full fine-tuning",
        "equivalence: on every task the 95% interval of full minus LoRA lies within 2 points of a hundred; not "
        "supported if a task's difference is larger than that at q <= 0.05, tested against the margin",
        training.lora_gains_as_much,
    ),
    Claim(
        "LoRA same structure",
        "Tasks that go together under full fine-tuning go together under LoRA.",
        "LoRA against full fine-tuning",
        "the two similarity matrices of tasks correlate at 0.5 or more with Mantel's q <= 0.05; not supported if 0.5 "
        "is excluded at 5%",
        training.lora_same_structure,
    ),
    Claim(
        "full on mathematics",
        "On mathematics, full fine-tuning is ahead of LoRA.",
        "LoRA against full fine-tuning",
        "full minus LoRA above 0 at q <= 0.05 on every benchmark of mathematics; not supported if 2 points of a "
        "hundred are excluded on one of them",
        training.full_ahead_on_maths,
    ),
    Claim(
        "few rows",
        "A thousand rows gain what twenty thousand do.",
        "1k against 20k rows over epochs",
        "non-inferiority: a lead of many rows of 2 points of a hundred is excluded at 5%, errors clustered by model "
        "and task; not supported if it is larger than that at 5%",
        training.few_rows_suffice,
    ),
    Claim(
        "more epochs",
        "On a thousand rows, gains go on growing after the first epoch.",
        "1k against 20k rows over epochs",
        "last epoch minus first above 0 at p <= 0.05, errors clustered by model and task; not supported if 2 points "
        "of a hundred are excluded at 5%",
        training.more_epochs_help,
    ),
    Claim(
        "languages",
        "What fine-tuning on English data does to MMLU it does to MMLU in Chinese and Japanese.",
        "transfer across languages",
        "r of the gains on both above 0 at q <= 0.05 for every language, whole models and datasets permuted; not "
        "supported if r >= 0.3 is excluded at 5% for one, models and datasets resampled",
        languages.crosses_languages,
    ),
)


def claim_table(tables: Mapping[str, pa.Table]) -> pa.Table:
    """Every claim with its verdict, of schema `CLAIMS`, in the order of the paper.

    Args:
        tables: the study's tables by name (`STUDY_TABLES`); a missing one counts as empty.
    """
    study = Evidence(tables)
    return from_rows([_row(claim, _decided(claim, study)) for claim in CLAIMS_OF_THE_PAPER], CLAIMS)


def _decided(claim: Claim, study: Evidence) -> Outcome:
    """What the claim's test says, unless there are too few base models to say anything of base models.

    A test that numbers break takes neither the other claims nor the study with it: it warns, and the reason says what
    broke. Any other error is the program's, not the data's, and goes on up.
    """
    try:
        found = claim.test(study)
    except (ArithmeticError, IndexError, ValueError) as error:
        broke = f"its test broke off with {type(error).__name__}: {' '.join(str(error).split())}"
        warnings.warn(f"claim {claim.name!r}: {broke}", RuntimeWarning, stacklevel=3)
        return cannot(broke)
    count = len(study.models)
    if found.verdict == CANNOT_TELL or not 0 < count < FEWEST_MODELS:
        return found
    return Outcome(CANNOT_TELL, found.statement, found.numbers, f"{counted(count, 'model')}, {FEWEST_MODELS} needed")


def _row(claim: Claim, found: Outcome) -> dict[str, Any]:
    return {
        "name": claim.name,
        "claim": claim.claim,
        "section": claim.section,
        "criterion": claim.criterion,
        "verdict": found.verdict,
        "statement": found.statement,
        "numbers": json.dumps({name: _plain(value) for name, value in found.numbers.items()}),
        "reason": found.reason,
    }


def _plain(value: Number) -> Number:
    """A number as JSON has it: six digits, null for what is not finite."""
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
