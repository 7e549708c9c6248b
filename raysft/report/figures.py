"""All figures of the report, in its order, by section."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib as mpl

from raysft.report.findings import Findings
from raysft.report.gain_figures import gain_by_epoch, gain_by_model, gain_matrix
from raysft.report.layer_figures import dimension_by_scale, intrinsic_dimension, weight_change, weight_change_and_gain
from raysft.report.map_figures import model_map
from raysft.report.plot import LOOK, Absent, Plot
from raysft.report.predictor_figures import FAMILIES, gain_against, gain_against_similarity
from raysft.report.similarity_figures import similarity
from raysft.report.training_figures import coverage, training_loss
from raysft.study.similarity import ENTRIES


@dataclass(frozen=True)
class Drawn:
    """The figures of one section; `about` says in a sentence or two what its reader should look for."""

    anchor: str
    title: str
    about: str
    figures: tuple[Plot | Absent, ...]


def draw(findings: Findings) -> list[Drawn]:
    """Every figure that the findings allow, and a reason for every one that they do not."""
    with mpl.rc_context(LOOK):
        return [
            Drawn("gains", "What each dataset teaches", _GAINS, _gains(findings)),
            Drawn("training", "Training", _TRAINING, (training_loss(findings),)),
            Drawn("alike", "What reacts alike", _ALIKE, tuple(similarity(findings, kind) for kind in ENTRIES)),
            Drawn("predictors", "What goes with gain", _PREDICTORS, _predictors(findings)),
            Drawn("layers", "Inside the stack", _LAYERS, _layers(findings)),
            Drawn("map", "Map of models", _MAP, (model_map(findings),)),
            Drawn("coverage", "Coverage", _COVERAGE, (coverage(findings),)),
        ]


def _gains(findings: Findings) -> tuple[Plot | Absent, ...]:
    matrices = [
        gain_matrix(findings, variant, measure) for measure in ("gain", "bits_gain") for variant in findings.variants
    ]
    return (*matrices, gain_by_model(findings), gain_by_epoch(findings))


def _predictors(findings: Findings) -> tuple[Plot | Absent, ...]:
    return (*(gain_against(findings, family) for family in FAMILIES), gain_against_similarity(findings))


def _layers(findings: Findings) -> tuple[Plot | Absent, ...]:
    draws = (weight_change, weight_change_and_gain, intrinsic_dimension, dimension_by_scale)
    return tuple(figure(findings) for figure in draws)


_GAINS = (
    "A row is a training set, a column a benchmark task, a cell what fine-tuning changed. Gains off the outlined cells "
    "are transfer; losses are what the model forgot."
)
_TRAINING = "A curve that does not fall, or that rises, is worth a look before its scores are."
_ALIKE = (
    "Two tasks are alike if the same fine-tunings help both; two datasets or models, if they gain on the same tasks."
)
_PREDICTORS = (
    "Gains come in clusters: all points of one model, and all of one dataset, move together. A plain correlation takes "
    "that for evidence, and finds something in about a quarter of grids that hold nothing. The fixed-effects number "
    "compares within models and within datasets, and is the one to trust."
)
_LAYERS = "How far fine-tuning moved each layer, and what that did to the geometry of the texts it was trained on."
_MAP = "Models that lie close give the same texts the same probability."
_COVERAGE = "What this report rests on. Grey cells above come from here."
