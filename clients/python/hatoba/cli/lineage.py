"""Lineage for people: as two trees in the terminal, and as a picture in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import click

from hatoba.errors import InvalidSpec
from hatoba.models import short_name
from hatoba.v1 import model_pb2

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

Spots = Mapping[str, tuple[float, float]]

COLOURS = {
    "model": "#4c78a8",
    "dataset": "#59a14f",
    "code": "#9c755f",
    "job": "#b279a2",
    "deployment": "#e45756",
}
GONE = "#999999"
SHOWN_FACTS = 4
SHOWN_COMMIT = 12


class Step(NamedTuple):
    """One line of a tree: how deep, which, how it is related, and whether it stood before."""

    depth: int
    name: str
    relation: str
    again: bool


def show_lineage(found: model_pb2.Lineage) -> None:
    """What something is, what it came from, and what became of it."""
    nodes = {node.name: node for node in found.nodes}
    click.echo(line_of(nodes, found.root))
    for title, backwards in (("came from", True), ("became", False)):
        steps = walk(found, backwards=backwards)
        if steps:
            click.echo(f"  {title}")
        for step in steps:
            again = "  (see above)" if step.again else f"  {facts_of(nodes, step.name)}"
            line = f"{'  ' * (step.depth + 1)}{short_name(step.name)}  {step.relation}{again}"
            click.echo(line.rstrip())
    if found.truncated:
        click.echo("  ... and more: say --depth", err=True)


def walk(found: model_pb2.Lineage, *, backwards: bool) -> list[Step]:
    """The tree below the root, one way; what stands in several places is opened in the first."""
    below: dict[str, list[tuple[str, str]]] = {}
    for edge in found.edges:
        source, target = getattr(edge, "from"), edge.to
        one, other = (target, source) if backwards else (source, target)
        below.setdefault(one, []).append((other, edge.relation))
    steps: list[Step] = []
    seen = {found.root}
    stack = [(1, *each) for each in sorted(below.get(found.root, []), reverse=True)]
    while stack:
        depth, name, relation = stack.pop()
        steps.append(Step(depth, name, relation, name in seen))
        if name not in seen:
            seen.add(name)
            stack += [(depth + 1, *each) for each in sorted(below.get(name, []), reverse=True)]
    return steps


def line_of(nodes: Mapping[str, model_pb2.LineageNode], name: str) -> str:
    """A node with what people want to see of it."""
    return f"{short_name(name)}  {facts_of(nodes, name)}".rstrip()


def facts_of(nodes: Mapping[str, model_pb2.LineageNode], name: str) -> str:
    """State and figures of a node, in a few words."""
    node = nodes.get(name)
    if node is None:
        return ""
    if node.gone:
        return "(gone)"
    facts = dict(node.attributes)
    state = [facts.pop("state")] if "state" in facts else []
    facts.pop("created_by", None)
    if "commit" in facts:
        facts["commit"] = facts["commit"][:SHOWN_COMMIT]
    shown = [f"{key} {value}" for key, value in sorted(facts.items())[:SHOWN_FACTS]]
    return ", ".join([*state, *shown])


# -- the picture -----------------------------------------------------------------------------------


def layers(found: model_pb2.Lineage) -> dict[str, int]:
    """Columns from left to right: everything stands right of all that it came from."""
    sources: dict[str, set[str]] = {node.name: set() for node in found.nodes}
    for edge in found.edges:
        sources.setdefault(edge.to, set()).add(getattr(edge, "from"))
        sources.setdefault(getattr(edge, "from"), set())
    columns = dict.fromkeys(sources, 0)
    # As many rounds as there are nodes would be needed only for one chain of them all; a circle,
    # which there cannot be, ends here too.
    for _ in columns:
        moved = False
        for name, before in sources.items():
            wanted = max((columns[one] + 1 for one in before), default=0)
            if wanted > columns[name] and wanted < len(columns):
                columns[name], moved = wanted, True
        if not moved:
            break
    return columns


def places(found: model_pb2.Lineage) -> dict[str, tuple[float, float]]:
    """Where each node stands: its column, and its row about the middle."""
    columns = layers(found)
    taken: dict[int, list[str]] = {}
    for name in sorted(columns):
        taken.setdefault(columns[name], []).append(name)
    return {
        name: (float(column), (len(names) - 1) / 2 - row)
        for column, names in taken.items()
        for row, name in enumerate(names)
    }


def draw(found: model_pb2.Lineage, path: str) -> None:
    """Draw a lineage into a file, arrows from left to right. Needs matplotlib, the extra `demo`."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidSpec(
            "--plot needs matplotlib, which is not installed", remedy="pip install 'hatoba[demo]'"
        ) from None
    spots = places(found)
    width = max(x for x, _ in spots.values()) + 1
    height = max(abs(y) for _, y in spots.values()) * 2 + 1
    room = 0.7 if any(_bend(spots, edge) for edge in found.edges) else 0.2
    figure = Figure(figsize=(2.6 * width + 0.6, 0.9 * (height + 2 * room) + 0.5))
    axes = figure.add_axes((0.0, 0.0, 1.0, 0.9))
    axes.set_axis_off()
    axes.set_xlim(-0.6, width - 0.4)
    axes.set_ylim(-height / 2 - room, height / 2 + room)
    boxes = {
        node.name: _box(axes, node, spots[node.name], root=node.name == found.root)
        for node in found.nodes
    }
    for edge in found.edges:
        _arrow(axes, edge, _bend(spots, edge), (spots, boxes))
    figure.suptitle(f"lineage of {short_name(found.root)}")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise InvalidSpec(f"{path} cannot be written: {error}") from None


def _bend(spots: Spots, edge: model_pb2.LineageEdge) -> float:
    """How an arrow is bent: not between neighbours, else around what stands between, upwards
    (negative) or downwards."""
    start, end = spots[getattr(edge, "from")], spots[edge.to]
    span = end[0] - start[0]
    if span <= 1:
        return 0.0
    return min(0.15 + 0.02 * span, 0.3) * (1 if start[1] + end[1] < 0 else -1)


def _arrow(
    axes: Axes, edge: model_pb2.LineageEdge, bend: float, drawn: tuple[Spots, Mapping[str, Text]]
) -> None:
    spots, boxes = drawn
    source, target = getattr(edge, "from"), edge.to
    arrow = {
        "arrowstyle": "-|>",
        "color": "#888888",
        "connectionstyle": f"arc3,rad={bend}",
        "patchA": boxes[source].get_bbox_patch(),
        "patchB": boxes[target].get_bbox_patch(),
        "shrinkA": 1,
        "shrinkB": 1,
    }
    axes.annotate("", spots[target], spots[source], arrowprops=arrow)
    middle = _middle(axes, spots[source], spots[target], bend)
    white = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
    axes.annotate(
        edge.relation, middle, ha="center", va="center", fontsize=7, color="#555555", bbox=white
    )


def _middle(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float
) -> tuple[float, float]:
    """The middle of a bent arrow, which is a parabola on the screen."""
    (x0, y0), (x1, y1) = axes.transData.transform([start, end])
    x = (x0 + x1) / 2 + bend * (y1 - y0) / 2
    y = (y0 + y1) / 2 - bend * (x1 - x0) / 2
    found = axes.transData.inverted().transform((x, y))
    return float(found[0]), float(found[1])


def _box(
    axes: Axes, node: model_pb2.LineageNode, place: tuple[float, float], *, root: bool
) -> Text:
    colour = GONE if node.gone else COLOURS.get(node.kind, GONE)
    facts = facts_of({node.name: node}, node.name)
    return axes.annotate(
        f"{short_name(node.name)}\n{facts[:28]}" if facts else short_name(node.name),
        place,
        ha="center",
        va="center",
        fontsize=8,
        color="white",
        zorder=3,
        bbox={
            "boxstyle": "round,pad=0.4",
            "facecolor": colour,
            "edgecolor": "black" if root else colour,
            "linewidth": 2 if root else 1,
        },
    )
