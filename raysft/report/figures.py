"""All figures of the report, in its order, by section."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib as mpl

from raysft.report.dimension_figures import dimension_by_scale, intrinsic_dimension
from raysft.report.epoch_figures import epochs_and_sizes, gain_by_epoch
from raysft.report.findings import Findings
from raysft.report.gain_figures import gain_matrix, minmax_matrix
from raysft.report.map_figures import map_layouts, model_map, trajectories
from raysft.report.model_gain_figures import gain_by_model
from raysft.report.pair_figures import methods_compared
from raysft.report.plot import LOOK, Absent, Plot
from raysft.report.prediction_figures import noise_ceilings, prediction
from raysft.report.predictor_figures import FAMILIES, gain_against, gain_against_similarity
from raysft.report.similarity_figures import KINDS, matrices_compared, similarity
from raysft.report.training_figures import coverage, scores_measured, training_loss
from raysft.report.transfer_figures import cross_lingual
from raysft.report.trial_figures import components, trial_correlations
from raysft.report.weight_figures import (
    layer_similarity,
    mid_layer,
    update_similarity,
    weight_change,
    weight_change_and_gain,
)

Figures = tuple[Plot | Absent, ...]


@dataclass(frozen=True)
class Drawn:
    """The figures of one section; `about` says in a sentence or two what its reader should look for."""

    anchor: str
    title: str
    about: str
    figures: Figures


def draw(findings: Findings) -> list[Drawn]:
    """Every figure that the findings allow, and a reason for every one that they do not."""
    with mpl.rc_context(LOOK):
        return [
            Drawn("gains", "What each dataset teaches", _GAINS, _gains(findings)),
            Drawn("models", "Model by model", _MODELS, _models(findings)),
            Drawn("choices", "Methods, epochs, languages", _CHOICES, _choices(findings)),
            Drawn("training", "Training", _TRAINING, (training_loss(findings),)),
            Drawn("alike", "What reacts alike", _ALIKE, _alike(findings)),
            Drawn("predictors", "What goes with gain", _PREDICTORS, _predictors(findings)),
            Drawn("layers", "Inside the stack", _LAYERS, _layers(findings)),
            Drawn("map", "Map of models", _MAP, tuple(f(findings) for f in (model_map, map_layouts, trajectories))),
            Drawn("coverage", "Coverage", _COVERAGE, (coverage(findings), scores_measured(findings))),
        ]


def _gains(findings: Findings) -> Figures:
    matrices = [
        gain_matrix(findings, variant, measure) for measure in ("gain", "bits_gain") for variant in findings.variants
    ]
    return (*matrices, *(minmax_matrix(findings, variant) for variant in findings.variants))


def _models(findings: Findings) -> Figures:
    return tuple(
        gain_by_model(findings, variant, published) for published in (False, True) for variant in findings.variants
    )


def _choices(findings: Findings) -> Figures:
    draws = (methods_compared, epochs_and_sizes, gain_by_epoch, cross_lingual)
    return tuple(figure(findings) for figure in draws)


def _alike(findings: Findings) -> Figures:
    kinds = tuple(similarity(findings, kind) for kind in KINDS)
    return (trial_correlations(findings), components(findings), *kinds, matrices_compared(findings))


def _predictors(findings: Findings) -> Figures:
    against = (*(gain_against(findings, family) for family in FAMILIES), gain_against_similarity(findings))
    return (*against, prediction(findings), noise_ceilings(findings))


def _layers(findings: Findings) -> Figures:
    weights = (weight_change, weight_change_and_gain, mid_layer, layer_similarity)
    updates = tuple(update_similarity(findings, kind) for kind in ("dataset", "variant"))
    dimensions = (intrinsic_dimension(findings), dimension_by_scale(findings))
    return (*(figure(findings) for figure in weights), *updates, *dimensions)


_GAINS = (
    "A row is a training set, a column a benchmark task, a cell what fine-tuning changed. Gains off the outlined cells "
    "are transfer; losses are what the model forgot."
)
_MODELS = "The same for every base model by itself: a mean over models may hold for none of them."
_CHOICES = "What to choose: one method or another, few rows or many, how many epochs, and whether it carries over."
_TRAINING = "A curve that does not fall, or that rises, is worth a look before its scores are."
_ALIKE = (
    "Two tasks are alike if the same fine-tunings help both; two datasets or models, if they gain on the same tasks."
)
_PREDICTORS = (
    "Gains come in clusters: all points of one model, and all of one dataset, move together. A plain correlation takes "
    "that for evidence, and finds something in about a quarter of grids that hold nothing. The fixed-effects number "
    "compares within models and within datasets, and is the one to trust. What hardly differs between models has none "
    "to speak of: there the permutation p is. A q has paid for all that was tried beside it."
)
_LAYERS = "How far fine-tuning moved each layer, and what that did to the geometry of the texts it was trained on."
_MAP = "Models that lie close give the same texts the same probability."
_COVERAGE = "What this report rests on. Grey cells above come from here."
