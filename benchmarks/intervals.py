"""How often 95 % intervals of mean average precision hold the value of the whole population.

A made-up population: 19 classes that 3 to 50 % of the samples have, independently; scores are
normal, those of positives 0.3 to 1.5 standard deviations higher. Its mAP is an integral. Every
turn draws N samples anew and measures them as an evaluation does, with 200 resamples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from measuring import parse_arguments, print_result
from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.metrics import multilabel_metrics

NUM_CLASSES = 19
SIZES = (14, 96, 500, 3000)
NAMES = ("macro_map", "micro_map")


def population() -> tuple[Floats, Floats]:
    """Shares of positives and the lead of their scores, (19,) each."""
    generator = np.random.default_rng(1)
    shares = np.exp(generator.uniform(np.log(0.03), np.log(0.5), NUM_CLASSES))
    return shares, generator.uniform(0.3, 1.5, NUM_CLASSES)


def true_values(shares: Floats, leads: Floats) -> dict[str, float]:
    """mAP of the population: precision at the scores of positives, averaged over these."""
    scores = np.linspace(-9, 11, 20_001)
    density = norm.pdf(scores - leads[:, None]) * (scores[1] - scores[0])
    positives = shares[:, None] * norm.sf(scores - leads[:, None])
    everything = positives + (1 - shares[:, None]) * norm.sf(scores)
    macro = (density * positives / everything).sum(axis=1).mean()
    all_density = shares @ density / shares.sum()
    micro = (all_density * positives.sum(axis=0) / everything.sum(axis=0)).sum()
    return {"macro_map": float(macro), "micro_map": float(micro)}


def draw(
    generator: np.random.Generator, num_samples: int, shares: Floats, leads: Floats
) -> tuple[Floats, NDArray[np.bool_]]:
    """Scores (N, 19) and labels (N, 19) bool."""
    labels = generator.random((num_samples, NUM_CLASSES)) < shares
    return generator.normal(size=labels.shape) + leads * labels, labels


def main() -> None:
    """Print the share of turns in which the interval holds the true value, and the mean value."""
    arguments = parse_arguments(__doc__ or "", repeats=200)
    shares, leads = population()
    truth = true_values(shares, leads)
    runs = []
    for num_samples in SIZES[:2] if arguments.quick else SIZES:
        generator = np.random.default_rng(num_samples)
        results = [
            multilabel_metrics(*draw(generator, num_samples, shares, leads), seed=turn)
            for turn in range(arguments.repeats)
        ]
        run: dict[str, float] = {"num_samples": num_samples}
        for name in NAMES:
            metrics = [result.metric(name) for result in results]
            held = [metric.low <= truth[name] <= metric.high for metric in metrics]
            run[f"{name}_coverage"] = round(float(np.mean(held)), 3)
            run[f"{name}_mean"] = round(float(np.mean([metric.value for metric in metrics])), 4)
        runs.append(run)
    print_result("intervals", arguments, truth=truth, runs=runs)


if __name__ == "__main__":
    main()
