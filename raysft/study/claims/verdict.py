"""How a number becomes a verdict, by one rule for all claims.

Supported needs a significant effect in the direction claimed. Not supported needs more than a missing effect: one as
large as would matter must be excluded too, at 5% one-sided (two one-sided tests, Schuirmann 1987). In between, the
study cannot tell, and `reason` says what it could have seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from raysft.study.tables import Reals

SUPPORTED, NOT_SUPPORTED, CANNOT_TELL = "supported", "not supported", "cannot be told"

LEVEL = 0.05
MATTERS_R = 0.3  # a correlation that explains a tenth of the variance
MATTERS_GAIN = 0.02  # of a benchmark's scale: two points of a hundred
_POWER = 0.8

Number = float | int | str | None


@dataclass(frozen=True)
class Outcome:
    """A verdict with what was found, in words and as numbers, and why it is no more than that."""

    verdict: str
    statement: str | None = None
    numbers: Mapping[str, Number] = field(default_factory=dict)
    reason: str | None = None


def cannot(reason: str) -> Outcome:
    """Nothing could be computed."""
    return Outcome(CANNOT_TELL, reason=reason)


@dataclass(frozen=True)
class Estimate:
    """An estimate, its standard error, and two-sided 95% interval and p by Student's t on `df`."""

    value: float
    stderr: float
    df: int

    def bound(self, side: int, level: float = 1 - LEVEL / 2) -> float:
        """The end of a one-sided interval: the upper (side 1) or lower (side -1) one."""
        return self.value + side * float(stats.t.ppf(level, self.df)) * self.stderr

    @property
    def low(self) -> float:
        return self.bound(-1)

    @property
    def high(self) -> float:
        return self.bound(1)

    @property
    def p(self) -> float:
        if self.stderr == 0:
            return 1.0 if self.value == 0 else 0.0
        return float(2 * stats.t.sf(abs(self.value) / self.stderr, self.df))

    @property
    def detectable(self) -> float:
        """The effect that such a study finds in four cases of five."""
        return float(stats.t.ppf(1 - LEVEL / 2, self.df) + stats.t.ppf(_POWER, self.df)) * self.stderr

    def numbers(self, name: str) -> dict[str, Number]:
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high, "p": self.p}


def jackknife(whole: float, without: Reals) -> Estimate:
    """A statistic of m models with its error from leaving out each in turn, `without` of shape (m,) (Tukey 1958)."""
    m = len(without)
    return Estimate(whole, float(np.sqrt((m - 1) / m * ((without - without.mean()) ** 2).sum())), m - 1)


def larger_than_zero(found: Estimate, matters: float, unit: str = "") -> tuple[str, str | None]:
    """Verdict, and its reason, of a claim that something is above zero, by `matters` at least to count as there."""
    if found.value > 0 and found.p <= LEVEL:
        return SUPPORTED, None
    if found.bound(1, 1 - LEVEL) < matters:
        return NOT_SUPPORTED, None
    return CANNOT_TELL, (
        f"the interval holds both 0 and {matters:g}{unit}; an effect of {found.detectable:.2g}{unit} would be found in "
        "four studies of five like this one"
    )


def correlated(r: float, df: int, q: float, sign: int) -> tuple[str, str | None]:
    """Verdict, and its reason, of a claim that a partial correlation on `df` degrees of freedom has this sign.

    That it is below `MATTERS_R` in size is tested on Fisher's z, whose error is 1 / sqrt(df - 1) (Fisher 1924).
    """
    if not np.isfinite(q):
        return CANNOT_TELL, "no test could be made"
    if q <= LEVEL:
        return (SUPPORTED if sign * r > 0 else NOT_SUPPORTED), None
    if df > 1 and excludes(sign * r, df, MATTERS_R):
        return NOT_SUPPORTED, None
    found = f"{smallest_r(df):.2f} would be found" if df > 1 else "none could be found"
    return CANNOT_TELL, (
        f"neither an r of 0 nor one of {sign * MATTERS_R:.1f} is excluded on {df} degrees of freedom; one of {found} "
        "in "
        "four studies of five like this one"
    )


def excludes(r: float, df: int, size: float) -> bool:
    """Whether a partial correlation as large as `size` is excluded at 5% one-sided."""
    apart = np.arctanh(size) - np.arctanh(np.clip(r, -0.999999, 0.999999))
    return bool(stats.norm.sf(apart * np.sqrt(df - 1)) <= LEVEL)


def smallest_r(df: int) -> float:
    """The partial correlation that is found in four cases of five."""
    return float(np.tanh((stats.norm.ppf(1 - LEVEL / 2) + stats.norm.ppf(_POWER)) / np.sqrt(df - 1)))


def pearson_p(r: float, n: int) -> float:
    """Two-sided p of a plain correlation, as if its points were independent."""
    if n < 3 or not np.isfinite(r):
        return np.nan
    return float(2 * stats.t.sf(abs(r) * np.sqrt((n - 2) / max(1 - r * r, 1e-300)), n - 2))


def beside_plain(r: float, n: int, sign: int, verdict: str) -> str:
    """What plain Pearson has, and whether it alone would have said otherwise."""
    p = pearson_p(r, n)
    if not np.isfinite(p):
        return "Plain Pearson is not defined."
    return f"Plain Pearson, r = {r:.2f} ({p_text(p)}), {alone(p <= LEVEL and sign * r > 0, verdict)}."


def alone(plain: bool, verdict: str) -> str:
    """What a plain test by itself would have said, where `plain` says whether it finds what is claimed."""
    if plain:
        return "alone would have said the same" if verdict == SUPPORTED else "alone would have called this supported"
    return "alone would not have seen it" if verdict == SUPPORTED else "alone would not have supported it either"


def p_text(value: float, name: str = "p") -> str:
    """`p = 0.013` or `p < 0.001`."""
    return f"{name} < 0.001" if value < 0.001 else f"{name} = {value:.3f}"


def interval_text(low: float, high: float) -> str:
    """` (95% interval 0.10 to 0.52)`, or nothing where there is none."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return ""
    return f" (95% interval {low:.2g} to {high:.2g})"


def counted(count: int, noun: str) -> str:
    """`1 model`, `12 models`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
