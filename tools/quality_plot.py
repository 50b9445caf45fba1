"""The frontier as a picture for a page: panels side by side, each a column of the rows against the ratio.

An SVG that needs nothing else and follows the reader's light or dark. Points lie at the ratio that was
reached, not at the one that was asked for; what leaves a panel's scale is cut off at its edge.
"""
import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT, TOP, BOTTOM, LEFT, GAP = 420, 300, 34, 250, 52, 10
STYLE = """<style>
svg { font: 12px system-ui, sans-serif; color: #24292f; background: #fff }
text { fill: currentColor } .title { font-weight: 600 } .grid { stroke: currentColor; opacity: .15 }
polyline { fill: none; stroke-width: 2 } .default { stroke-width: 3.5 }
@media (prefers-color-scheme: dark) { svg { color: #d0d7de; background: #0d1117 } }
</style>"""
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]


class Panel:
    """One column against the ratio; a scale from low to high."""

    def __init__(self, at, title, column, low, high):
        self.left = at * (WIDTH + GAP) + LEFT
        self.right = (at + 1) * (WIDTH + GAP) - GAP
        self.title, self.column, self.low, self.high = title, column, low, high

    def x(self, ratio, ratios):
        first, last = math.log2(ratios[0]), math.log2(ratios[-1])
        share = (math.log2(ratio) - first) / (last - first)
        return self.left + 12 + share * (self.right - self.left - 30)

    def y(self, value):
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return BOTTOM - share * (BOTTOM - TOP)

    def axes(self, ratios):
        yield f'<text class="title" x="{self.left}" y="18">{escape(self.title)}</text>'
        for i in range(6):
            value = self.low + (self.high - self.low) * i / 5
            y = self.y(value)
            yield f'<line class="grid" x1="{self.left}" x2="{self.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        for ratio in ratios:
            if ratio * 1.2 < ratios[-1] or ratio == ratios[-1]:  # none that would touch the last
                yield (f'<text x="{self.x(ratio, ratios):.1f}" y="{BOTTOM + 18}" '
                       f'text-anchor="middle">{ratio:g}×</text>')

    def line(self, policy, rows, colour, ratios):
        points = sorted((row["ratio"], row[self.column]) for row in rows if self.column in row)
        at = [(self.x(ratio, ratios), self.y(value), ratio, value) for ratio, value in points]
        yield (f'<polyline class="{escape(policy)}" stroke="{colour}" points="'
               + " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in at) + '"/>')
        for x, y, ratio, value in at:
            yield (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}">'
                   f"<title>{escape(policy)} at {ratio:.1f}×: {value:.4g}</title></circle>")


def legend(policies):
    x = LEFT
    for policy, colour in zip(policies, COLOURS):
        yield f'<circle cx="{x}" cy="{HEIGHT - 12}" r="5" fill="{colour}"/>'
        yield f'<text x="{x + 10}" y="{HEIGHT - 8}">{escape(policy)}</text>'
        x += 40 + 8 * len(policy)


def draw(rows, policies, panels):
    """The picture of these policies; a panel is (title, column, low, high)."""
    rows = [row for row in rows if row["policy"] in policies and "ratio" in row]
    ratios = sorted({row["target_ratio"] for row in rows})
    panels = [Panel(i, *panel) for i, panel in enumerate(panels)]
    width = len(panels) * (WIDTH + GAP)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" '
             f'width="{width}" height="{HEIGHT}" role="img">', STYLE]
    for panel in panels:
        lines += panel.axes(ratios)
        for policy, colour in reversed(list(zip(policies, COLOURS))):  # the first on top
            own = [row for row in rows if row["policy"] == policy]
            lines += panel.line(policy, own, colour, ratios)
    return "\n".join([*lines, *legend(policies), "</svg>", ""])
