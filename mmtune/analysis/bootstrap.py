"""Bootstrap confidence intervals and a sign test for two models' scores on the same samples."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_CELLS_AT_ONCE = 2**22  # limits the memory where scores have many distinct values


def resampled_means(values: Floats, *, replicates: int, seed: int, stream: str) -> Floats:
    """Compute the mean of each bootstrap replicate, a sample of len(values) values drawn with replacement.

    The counts of the *distinct* values in a replicate follow a multinomial distribution and are drawn from it. The time
    grows with the number of distinct values (three for differences of scores of 0 and 1), not with the number of rows.
    The same random numbers serve twice, for the distinct values in ascending and in descending order: the replicates of
    -values are then exactly the negated replicates of values, in another order, so that exchanging two models mirrors
    their interval.

    Args:
        values: [n], not empty.
        replicates: number of replicates, even.
        seed: seed of the random numbers.
        stream: name of the stream of random numbers. Each task has its own, so that its interval does not depend on the
            other tasks in the comparison.

    Returns:
        [replicates].
    """
    distinct, counts = np.unique(values, return_counts=True)
    shares = counts / len(values)
    at_once = max(1, _CELLS_AT_ONCE // len(distinct))
    sizes = [min(at_once, replicates // 2 - begun) for begun in range(0, replicates // 2, at_once)]

    def means(order: slice) -> Floats:
        rng = np.random.default_rng([seed, zlib.crc32(stream.encode(errors="backslashreplace"))])
        sums = [rng.multinomial(len(values), shares[order], size=size) @ distinct[order] for size in sizes]
        return np.concatenate(sums) / len(values)

    return np.concatenate([means(slice(None)), means(slice(None, None, -1))])


def interval(replicates: Floats, confidence: float) -> tuple[float, float]:
    """Return the percentile interval (Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 13.3)."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def sign_test(gained: int, lost: int) -> float:
    """Compute the two-sided p value of the hypothesis that gains and losses are equally likely.

    For scores of 0 and 1 it is the exact McNemar test: under the null hypothesis the gains are binomial with
    n = gained + lost and probability 1/2 (McNemar 1947, Psychometrika 12; Fay 2010, The R Journal 2(1)). The p value
    is twice the smaller tail, at most 1.
    """
    n, fewer = gained + lost, min(gained, lost)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k = np.arange(fewer + 1)
    log_terms = log_factorials[n] - log_factorials[k] - log_factorials[n - k] - n * np.log(2)
    return min(1.0, 2 * float(np.exp(log_terms).sum()))
