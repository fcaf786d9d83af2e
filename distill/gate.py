"""The gate: may this student answer for the teacher? A pure decision over counts (DECISIONS, section 2, checks a and b)."""

from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

from scipy.stats import beta as beta_distribution

from store.policy import Policy
from store.states import Outcome

Z_NEEDED = 1.645  # one-sided 5 %
CONFIDENCE = 0.95
NOISY = 0.92  # below this agreement with itself, the wider margin applies
QUIET = 0.97  # from this agreement with itself, 300 rows tell enough
ROWS, ROWS_EASY = 500, 300


@dataclass(frozen=True)
class Counts:
    """What an evaluation found. B: the student agrees with t0. A: the teacher, asked again, agrees with t0."""

    n: int
    agree: int  #: B = 1
    teacher_agree: int  #: A = 1
    b: int  #: B = 1 and A = 0
    c: int  #: B = 0 and A = 1
    stable_n: int  #: rows on which t0, t1 and t2 agree
    hard_errors: int  #: stable rows on which the student agrees with none of them
    asked_again: bool  #: False: A is taken as 1 and every row as stable


@dataclass(frozen=True)
class Decision:
    outcome: Outcome
    reason: str
    numbers: dict[str, Any]  #: every input and result, to decide again from


def decide(counts: Counts, policy: Policy) -> Decision:
    """Pass, fail or insufficient evidence, in words and with all numbers."""
    n = counts.n
    self_agreement = counts.teacher_agree / n if n else 0.0
    agreement = counts.agree / n if n else 0.0
    delta = policy.delta_noisy if self_agreement < NOISY else policy.delta
    z = tango_z(n, counts.b, counts.c, -delta) if n else 0.0
    upper = clopper_pearson_upper(counts.hard_errors, counts.stable_n)
    rows_needed = ROWS_EASY if delta >= 0.05 or self_agreement >= QUIET else ROWS
    numbers = {
        **asdict(counts),
        "agreement": agreement,
        "self_agreement": self_agreement,
        "delta": delta,
        "floor": self_agreement - delta,
        "z": z,
        "z_needed": Z_NEEDED,
        "hard_error_upper": upper,
        "hard_error_max": policy.hard_error_max,
        "rows_needed": rows_needed,
    }
    found = f"The student gave the teacher's answer on {counts.agree} of {n} held-out prompts ({agreement:.1%})"
    if not counts.asked_again:
        found += "; the teacher was not asked again, so it is taken to agree with itself always"
    if n < rows_needed:
        reason = f"{found}. {rows_needed} rows are needed to tell: collect about {rows_needed - n} more held-out pairs."
        return Decision(Outcome.INSUFFICIENT, reason, numbers)
    failed = []
    if z <= Z_NEEDED:
        failed.append(f"not shown to be within {delta:.0%} of the teacher's {self_agreement:.1%} (z = {z:.2f}, needed {Z_NEEDED})")
    if upper > policy.hard_error_max:
        failed.append(
            f"hard errors may be as many as {upper:.1%} ({counts.hard_errors} in {counts.stable_n} stable rows; "
            f"allowed {policy.hard_error_max:.0%})"
        )
    if failed:
        return Decision(Outcome.FAILED, f"{found}: {'; and '.join(failed)}.", numbers)
    reason = f"{found}: within {delta:.0%} of the teacher's {self_agreement:.1%} (z = {z:.2f}), hard errors at most {upper:.1%}."
    return Decision(Outcome.PASSED, reason, numbers)


def tango_z(n: int, b: int, c: int, theta: float) -> float:
    """Tango's score statistic for H0: p_B - p_A <= theta, paired (Statistics in Medicine 17, 1998, p. 891).

    n > 0 pairs, b of them B only, c of them A only. Large z speaks against H0.
    """
    a = 2 * n
    beta = -b - c + (2 * n - b + c) * theta
    gamma = -c * theta * (1 - theta)
    q = (sqrt(beta * beta - 4 * a * gamma) - beta) / (2 * a)
    return (b - c - n * theta) / sqrt(n * (2 * q + theta * (1 - theta)))


def clopper_pearson_upper(failures: int, n: int, confidence: float = CONFIDENCE) -> float:
    """One-sided exact upper bound of a binomial share (Biometrika 26, 1934, p. 404); 1.0 when nothing was seen."""
    if failures >= n:
        return 1.0
    return float(beta_distribution.ppf(confidence, failures + 1, n - failures))
