"""What is measured of a sweep's models and datasets besides benchmarks."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raysft.spec.recipe import Frozen, exactly_one

Pooling = Literal["mean", "last_token", "first_response_token"]


class SentenceModel(Frozen):
    """A sentence-embedding model: a `transformers` encoder in a local folder, or a hub name with its revision."""

    path: Path | None = None
    hub: str | None = Field(None, min_length=1)
    revision: str = "main"

    @model_validator(mode="after")
    def _one_source(self) -> SentenceModel:
        exactly_one(self, "path", "hub")
        return self


class PerplexityProbe(Frozen):
    """Perplexity, lengths and benchmark similarity of each dataset under each base model."""

    rows: int = Field(512, ge=1, description="rows of each dataset, and texts of each benchmark, that are measured")
    sentence_model: SentenceModel | None = Field(None, description="a second opinion on similarity, of no base")


class WeightChangeProbe(Frozen):
    """Relative Frobenius norm of the change of every tensor."""


class IntrinsicDimensionProbe(Frozen):
    """TwoNN, MLE and Gride of the training texts' hidden states, before and after."""

    texts: int = Field(1000, ge=20)
    neighbours: int = Field(100, ge=2, description="of each text; the largest order of Gride is at most this")
    mle_neighbours: int | None = Field(None, ge=2, description="k of the MLE; by default 20, or neighbours if fewer")
    overlap_neighbours: int | None = Field(
        None, ge=1, description="k of the neighbourhood overlap; by default 30, or neighbours if fewer"
    )
    half_samples: int = Field(20, ge=0, description="random splits into halves that intervals come from; 0 for none")
    estimators: tuple[str, ...] = Field((), description="further estimators of scikit-dimension, by the class's name")
    sample: int = Field(
        1000, ge=20, description="texts, at most, that the spectrum and further estimators are taken of"
    )
    seed: int = Field(0, ge=0, description="of half-samples, of the sample, and of estimators that draw")
    pooling: Pooling = Field("mean", description="how the hidden states of a text's tokens become one vector")
    batch_size: int = Field(64, ge=1, description="texts that an actor takes at a time; not part of any key")
    keep_embeddings: bool = Field(False, description="keep the hidden states after the estimates; not part of any key")

    @model_validator(mode="after")
    def _enough_texts(self) -> IntrinsicDimensionProbe:
        if self.neighbours + 2 > self.texts:
            raise ValueError(f"neighbours must be at most texts - 2, found {self.neighbours} and {self.texts}")
        for name in ("mle_neighbours", "overlap_neighbours"):
            found = getattr(self, name)
            if found is not None and found > self.neighbours:
                raise ValueError(f"{name} must be at most neighbours, found {found} and {self.neighbours}")
        return self

    @field_validator("estimators")
    @classmethod
    def _known_estimators(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        valid = _further_estimators() if value else ()
        unknown = [name for name in value if name not in valid]
        if unknown:
            raise ValueError(f"no further estimator {unknown[0]!r} in scikit-dimension; valid: {', '.join(valid)}")
        if len(set(value)) < len(value):
            raise ValueError("an estimator is named twice")
        return value

    @property
    def mle_k(self) -> int:
        """k of the MLE."""
        return min(20, self.neighbours) if self.mle_neighbours is None else self.mle_neighbours

    @property
    def overlap_k(self) -> int:
        """k of the neighbourhood overlap."""
        return min(30, self.neighbours) if self.overlap_neighbours is None else self.overlap_neighbours

    @property
    def estimates_identity(self) -> dict[str, Any]:
        """What the estimates of given embeddings depend on; for keys."""
        identity: dict[str, Any] = {
            "neighbours": self.neighbours,
            "mle_neighbours": self.mle_k,
            "half_samples": self.half_samples,
            "sample": self.sample,
            "seed": self.seed,
        }
        return {**identity, "estimators": sorted(self.estimators)} if self.estimators else identity


class LogLikelihoodProbe(Frozen):
    """Log-likelihood vector over a fixed text set: `shipped`, `skills` (generated statements), or one text a line."""

    texts: Literal["shipped", "skills"] | Path = "shipped"
    max_length: int = Field(1024, ge=8, description="tokens; longer texts are refused")
    epochs: Literal["last", "all"] | tuple[Annotated[int, Field(ge=1)], ...] = Field(
        "last", min_length=1, description="measured epochs whose vector is taken, and the base's; not part of any key"
    )

    def is_taken_of(self, epoch: int | None, last: int | None) -> bool:
        """Whether the vector is taken at the end of `epoch` of a trial of `last` epochs; always of a base, epoch 0."""
        if epoch == 0 or self.epochs == "all":
            return True
        return epoch == last if self.epochs == "last" else epoch in self.epochs


class ContaminationProbe(Frozen):
    """Share of each benchmark's items of which an n-gram of words stands in each training set."""

    ngram: int = Field(13, ge=2, le=100, description="words; fewer, down to 8, where a benchmark's items are shorter")


class Probes(Frozen):
    """What is measured besides benchmarks; `null` turns a probe off."""

    perplexity: PerplexityProbe | None = PerplexityProbe()
    weight_change: WeightChangeProbe | None = WeightChangeProbe()
    intrinsic_dimension: IntrinsicDimensionProbe | None = IntrinsicDimensionProbe()
    log_likelihood: LogLikelihoodProbe | None = LogLikelihoodProbe()
    contamination: ContaminationProbe | None = ContaminationProbe()


@functools.cache
def _further_estimators() -> tuple[str, ...]:
    """Names of scikit-dimension's estimators but those that are always made.

    They are read in its source, since importing it takes seconds that whoever only reads a sweep should not wait for.
    """
    package = importlib.util.find_spec("skdim")
    folders = (package and package.submodule_search_locations) or []
    found = [Path(folder) / "id" / "__init__.py" for folder in folders]
    tree = ast.parse("".join(path.read_text(encoding="utf-8") for path in found if path.is_file()))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    return tuple(sorted(names - {"TwoNN", "MLE", "GRIDE"}))
