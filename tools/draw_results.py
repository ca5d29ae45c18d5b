"""Draws the table of a sweep for the README: `python tools/draw_results.py benchmarks/results/sweeps/NAME.csv > tools/results.svg`.

Top-1 over the fraction that is kept, a line for each way of training; a dot is the mean of the seeds, a bar reaches from the
lowest to the highest.
"""

import csv
import itertools
import math
import statistics
import sys

LEFT, RIGHT, TOP, BOTTOM = 60, 420, 20, 220
WIDTH, HEIGHT = 640, 270
COLOURS = ("#57606a", "#0969da", "#bc4c00", "#1a7f37")


def lines_of(path: str) -> dict[str, dict[float, list[float]]]:
    """Way of training, and of pruning where there are several → fraction in percent → top-1 of each seed; the last is the highest."""
    with open(path, encoding="utf-8") as table:
        runs = list(csv.DictReader(table))
    has_methods = len({run["mask.method"] for run in runs if run["mask.method"]}) > 1
    found: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        way = "labels alone" if run["source"] == "labels" else f"{run['kd'].upper()}, alpha {run['alpha']}"
        way += f", {run['mask.method'] or 'all'}" if has_methods else ""
        top1 = found.setdefault(way, {}).setdefault(100 * float(run["fraction"]), [])
        top1.append(float(run["val_top1"]))
    return dict(sorted(found.items(), key=lambda item: statistics.fmean(item[1][max(item[1])])))


def svg(lines: dict[str, dict[float, list[float]]]) -> str:
    """The picture, as text."""
    fractions = sorted({fraction for line in lines.values() for fraction in line})
    every = [value for line in lines.values() for values in line.values() for value in values]
    step = next(one for one in (1, 2, 5, 10, 20) if (max(every) - min(every)) / one <= 6)
    low, high = math.floor(min(every) / step) * step, math.ceil(max(every) / step) * step
    width = math.log(fractions[-1] / fractions[0]) or 1

    def x(fraction: float) -> float:
        return round(LEFT + 30 + (RIGHT - LEFT - 60) * math.log(fraction / fractions[0]) / width, 1)

    def y(top1: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (top1 - low) / (high - low), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for value in range(low, high + 1, step):
        parts.append(f'<line x1="{LEFT}" y1="{y(value)}" x2="{RIGHT}" y2="{y(value)}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4}" text-anchor="end">{value}</text>')
    parts += [f'<text x="{x(one)}" y="{BOTTOM + 20}" text-anchor="middle">{one:.3g} %</text>' for one in fractions]
    parts.append(
        f'<text x="{(LEFT + RIGHT) // 2}" y="{BOTTOM + 42}" text-anchor="middle">kept part of the images</text>'
    )
    middle = (TOP + BOTTOM) // 2
    parts.append(f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">top-1, %</text>')
    label = HEIGHT
    for (way, line), colour in zip(lines.items(), itertools.cycle(COLOURS)):
        means = [(x(fraction), y(statistics.fmean(line[fraction]))) for fraction in sorted(line)]
        points = " ".join(f"{u},{v}" for u, v in means)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for (u, v), fraction in zip(means, sorted(line), strict=True):
            bar = f'y1="{y(min(line[fraction]))}" x2="{u}" y2="{y(max(line[fraction]))}"'
            parts.append(
                f'<line x1="{u}" {bar} stroke="{colour}" stroke-width="2"/><circle cx="{u}" cy="{v}" r="4" fill="{colour}"/>'
            )
        label = min(means[-1][1] + 4, label - 16)
        parts.append(f'<text x="{RIGHT + 12}" y="{label}" fill="{colour}">{way}</text>')
    return "\n".join([*parts, "</svg>"])


if __name__ == "__main__":
    print(svg(lines_of(sys.argv[1])))
