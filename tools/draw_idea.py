"""Draws the README's picture of the idea: `python tools/draw_idea.py > tools/idea.svg`."""

BOXES = (
    (10, 60, "images", "any source"),
    (150, 60, "beton", "one file, sample_ids 0 … N-1"),
    (340, 10, "mask", "the kept sample_ids"),
    (340, 110, "teacher", "sees K views of each, once"),
    (540, 110, "logit store", "its answers, K a sample"),
    (540, 10, "seeded views", "the same pixels again"),
    (740, 60, "students", "as fast as without a teacher"),
)
WIDTH, HEIGHT = 130, 56
ARROWS = ((0, 1), (1, 2), (1, 3), (2, 5), (3, 4), (4, 6), (5, 6))


def svg() -> str:
    """The picture, as text."""
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 920 180" font-family="sans-serif" text-anchor="middle">',
        '<defs><marker id="a" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L6 3L0 6z" fill="#57606a"/></marker></defs>',
        '<rect width="920" height="180" fill="#fff"/>',
    ]
    for start, end in ARROWS:
        (x, y, _, _), (u, v, _, _) = BOXES[start], BOXES[end]
        w = width_of(start)
        lines.append(
            f'<line x1="{x + w}" y1="{y + HEIGHT // 2}" x2="{u - 2}" y2="{v + HEIGHT // 2}" stroke="#57606a" marker-end="url(#a)"/>'
        )
    for number, (x, y, name, note) in enumerate(BOXES):
        w = width_of(number)
        lines.append(f'<rect x="{x}" y="{y}" width="{w}" height="{HEIGHT}" rx="8" fill="#eaf2fb" stroke="#0969da"/>')
        lines.append(f'<text x="{x + w // 2}" y="{y + 24}" font-size="15" font-weight="bold">{name}</text>')
        lines.append(f'<text x="{x + w // 2}" y="{y + 43}" font-size="10" fill="#57606a">{note}</text>')
    return "\n".join([*lines, "</svg>"])


def width_of(number: int) -> int:
    """Of a box, in pixels."""
    return {0: 100, 1: 165}.get(number, WIDTH + 30)


if __name__ == "__main__":
    print(svg())
