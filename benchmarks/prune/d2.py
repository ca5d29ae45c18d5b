"""Claim: D2 on 50,000 samples with 64 features and 10 neighbours takes well under a minute on two cores.

Random features in clusters. Asserted in the same run: on the first 2,000 samples the picks are those of a dense
reference in float64. The ceiling is the matrix product of the features with themselves, which an exact search needs; the
baseline is the authors' way, an argmax over all samples for each pick, timed for 200 picks and scaled up.

    python -m benchmarks.prune.d2
"""

import argparse

import numpy as np

from benchmarks import measure
from fastkd.prune.select.graph import d2_orders, pass_forward, symmetric_edges
from fastkd.prune.select.neighbours import nearest_neighbours


def dense_reference(features: np.ndarray, scores: np.ndarray, num_kept: int, k: int, gamma: float) -> list[int]:
    """D2 with full matrices."""
    x = features.astype(np.float64)
    distances = np.stack([np.sqrt(np.square(x - row).sum(axis=1)) for row in x])
    away = distances + np.diag(np.full(len(x), np.inf))
    linked = np.zeros(distances.shape, bool)
    linked[np.arange(len(x))[:, None], np.argsort(away, axis=1, kind="stable")[:, :k]] = True
    linked |= linked.T
    rho = scores + (np.exp(-distances) * linked) @ scores
    taken: list[int] = []
    for _ in range(num_kept):
        best = int(np.argmax(rho))
        taken.append(best)
        rho -= np.where(linked[best], np.exp(-gamma * distances[best]) * rho[best], 0)
        rho[taken] = -np.inf
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--neighbours", type=int, default=10)
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(50, args.dim)) * 2
    features = (centres[rng.integers(0, 50, args.samples)] + rng.normal(size=(args.samples, args.dim))).astype("f4")
    scores = rng.random(args.samples, np.float32)
    num_kept, k = round(args.keep * args.samples), args.neighbours

    def d2(n: int, count: int) -> list[int]:
        return d2_orders(features[:n], scores[:n], [np.arange(n)], np.array([count]), k=k)[0].tolist()

    assert d2(2000, 1000) == dense_reference(features[:2000], scores[:2000].astype(np.float64), 1000, k, 0.1)

    graph = symmetric_edges(*nearest_neighbours(features, k))
    rho = pass_forward(scores.astype(np.float64), graph)

    def argmax_picks() -> None:
        values, (starts, target, length) = rho.copy(), graph
        for _ in range(200):
            best = int(np.argmax(values))
            part = slice(starts[best], starts[best + 1])
            values[target[part]] -= np.exp(-0.1 * length[part]) * values[best]
            values[best] = -np.inf

    def product() -> None:
        for start in range(0, args.samples, 2048):
            features[start : start + 2048] @ features.T

    seconds = measure.interleave(
        {"d2": lambda: d2(args.samples, num_kept), "product": product, "argmax 200": argmax_picks}, rounds=args.rounds
    )
    measure.save(
        "d2",
        {
            "seconds": {name: measure.summary(times) for name, times in seconds.items()},
            "argmax_picks_s_scaled": measure.summary(seconds["argmax 200"])["median"] * num_kept / 200,
            "times_the_matrix_product": measure.ratios(seconds, "product", "d2"),
            "samples": args.samples,
            "dim": args.dim,
            "neighbours": k,
            "picks": num_kept,
            "rounds": args.rounds,
        },
    )


if __name__ == "__main__":
    main()
