"""A graph as SVG: text alone, no program is needed to draw it."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from axonlike.inspect.boxes import Cluster, Graph, Node
from axonlike.inspect.layout import layout
from axonlike.inspect.places import Layout, Line, Rect, label_of, title_of

_FONT = "ui-sans-serif, system-ui, Helvetica, Arial, sans-serif"
_STYLE = f"""
.model text {{ font: 12px {_FONT}; fill: #1b2638; }}
.model .detail, .model .shape {{ font-size: 10.5px; }}
.model .paper {{ fill: #ffffff; }}
.model .detail, .model .shape, .model .title {{ fill: #536072; }}
.model .layer {{ fill: #eaf1fb; stroke: #5b7db1; }}
.model .input, .model .output {{ fill: #e6f4ea; stroke: #4c9a66; }}
.model .merge {{ fill: #fdf1d3; stroke: #b98900; }}
.model .cluster {{ fill: #7f8c9b; fill-opacity: 0.08; stroke: #9aa4b2; }}
.model .cluster {{ stroke-dasharray: 4 3; }}
.model .line {{ fill: none; stroke: #6b7785; stroke-width: 1.2; stroke-linejoin: round; }}
.model .head {{ fill: #6b7785; }}
@media (prefers-color-scheme: dark) {{
.model text {{ fill: #e6edf5; }}
.model .paper {{ fill: #12171e; }}
.model .detail, .model .shape, .model .title {{ fill: #a9b6c6; }}
.model .layer {{ fill: #1e2c42; stroke: #7299d3; }}
.model .input, .model .output {{ fill: #17301f; stroke: #5fb57c; }}
.model .merge {{ fill: #3a2f10; stroke: #d9a520; }}
.model .line {{ stroke: #93a1b1; }}
.model .head {{ fill: #93a1b1; }}
}}
"""


def svg(graph: Graph) -> str:
    """The picture of a graph."""
    where = layout(graph)
    size = f"{where.width:.0f}", f"{where.height:.0f}"
    clusters = [_cluster(c, where.clusters[c.id]) for c in graph.clusters()]
    lines = [_line(line) for line in where.lines]
    nodes = [_node(graph, node, where) for node in graph.nodes()]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="model" width="{size[0]}" '
        f'height="{size[1]}" viewBox="0 0 {size[0]} {size[1]}">',
        f"<style>{_STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="90"><path class="head" d="M0 0.5 L8 4 L0 7.5 z"/>'
        "</marker></defs>",
        f'<rect class="paper" width="{size[0]}" height="{size[1]}"/>',
    ]
    return "\n".join([*parts, *clusters, *lines, *nodes, "</svg>"])


def _cluster(cluster: Cluster, rect: Rect) -> str:
    title = escape(title_of(cluster))
    return (
        f'<g id="{cluster.id}"><title>{escape(cluster.path)}</title>'
        f"{_rect('cluster', rect, 8)}"
        f'<text class="title" x="{rect.x + 10:.1f}" y="{rect.y + 16:.1f}">{title}</text>'
        "</g>"
    )


def _line(line: Line) -> str:
    """A piece of an arrow: it leaves and arrives upright."""
    head = ' marker-end="url(#head)"' if line.ends else ""
    if len(line.points) > 4:
        path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in line.points)
        return f'<path class="line" d="{path}"{head}/>'
    (x0, first), (_, y0), (x1, y1), (_, last) = line.points
    middle = (y0 + y1) / 2
    curve = f"C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}"
    path = f"M{x0:.1f} {first:.1f} V{y0:.1f} {curve} V{last:.1f}"
    return f'<path class="line" d="{path}"{head}/>'


def _node(graph: Graph, node: Node, where: Layout) -> str:
    rect = where.nodes[node.id]
    x, y = rect.x + rect.width / 2, rect.y + rect.height / 2
    lines = node.detail.splitlines()
    y += 4 - 7 * len(lines)
    rows = [f'<text x="{x:.1f}" y="{y:.1f}" '
            f'text-anchor="middle">{escape(title_of(node))}</text>']  # fmt: skip
    for i, line in enumerate(lines):
        rows.append(
            f'<text class="detail" x="{x:.1f}" y="{y + 15 + 14 * i:.1f}" '
            f'text-anchor="middle">{escape(line)}</text>'
        )
    label = label_of(graph, node)
    if label:
        rows.append(
            f'<text class="shape" x="{x + 7:.1f}" y="{rect.y + rect.height + 14:.1f}">'
            f"{escape(label)}</text>"
        )
    round_ = 13 if node.role != "layer" else 5
    return (
        f'<g id="{node.id}" data-path={quoteattr(node.path)}>'
        f"<title>{escape(node.path)}</title>{_rect(node.role, rect, round_)}"
        f"{''.join(rows)}</g>"
    )


def _rect(kind: str, rect: Rect, radius: float) -> str:
    return (
        f'<rect class="{kind}" x="{rect.x:.1f}" y="{rect.y:.1f}" '
        f'width="{rect.width:.1f}" height="{rect.height:.1f}" rx="{radius}"/>'
    )
