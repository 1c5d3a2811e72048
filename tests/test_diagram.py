"""Pictures of models: what is drawn, that it fits, and the three texts."""

import itertools
import re
import xml.etree.ElementTree as ET

import goldens
import jax
import jax.numpy as jnp
import pytest
from zoo import MODELS

import axonlike as al
from axonlike.extras import optional
from axonlike.inspect.graph import graph
from axonlike.inspect.layout import layout
from axonlike.inspect.places import LABEL, TITLE, label_of, title_of

SVG = "{http://www.w3.org/2000/svg}"
X = al.spec("b 4")


def again(sub, x):
    """A layer on its own output, and on what another made of it."""
    y = sub.f(sub.f(x))
    z = sub.body(y) + y
    return sub.body(z)


def reused():
    """Arrows that go back up: to the box itself, to one above, into a frame above."""
    body = al.serial(al.residual(al.dense(4)), al.layer_norm() & al.dense(4), al.add())
    return al.serial(w=al.wire(again, f=al.dense(4), body=body)), X


def nested():
    """Choices, members and ways past several rows, in each other."""
    inner = al.add(al.dense(4), al.residual(al.dense(4) >> jax.nn.relu), al.identity)
    choice = al.cond(is_even, inner, al.dense(4))
    deep = al.concatenate(choice, al.ensemble(inner, 2) >> al.lift(first)) >> al.dense(
        4
    )
    return al.residual(deep) >> al.repeat(al.residual(inner), 2), X


def is_even(x):
    return x.shape[1] % 2 == 0


def first(y):
    return y[0]


LAID_OUT = {**MODELS, "reused": reused, "nested": nested}


def drawn(name):
    return al.diagram(*LAID_OUT[name]())


def arrows(diagram):
    """The arrows by the titles of their ends."""
    titles = {node.id: node.title for node in diagram.nodes}
    return [(titles[e.source], titles[e.target], e.label) for e in diagram.edges]


def titles(diagram):
    return [node.title for node in diagram.nodes]


def frames(diagram):
    return {c.title: [item.title for item in c.items] for c in diagram.clusters}


# --- golden texts


@pytest.mark.parametrize("name", MODELS)
def test_the_texts_of_a_model_stay(name, request):
    record = request.config.getoption("--record")
    diagram = drawn(name)
    goldens.check(f"diagram/{name}.mmd", diagram.mermaid, record=record)
    goldens.check(f"diagram/{name}.dot", diagram.dot, record=record)
    goldens.check(f"diagram/{name}.svg.txt", outline(diagram.svg), record=record)


def outline(svg):
    """What an SVG consists of, without where it is: forms, their classes and texts."""
    lines = []
    for part in ET.fromstring(svg):
        tag = part.tag.removeprefix(SVG)
        if tag not in ("style", "defs"):
            words = [tag, part.get("class"), part.get("id"), part.get("marker-end")]
            lines.append(" ".join(filter(None, words)))
        if tag == "g":
            lines += [f"  {inner_line(inner)}".rstrip() for inner in part]
    return "\n".join(lines)


def inner_line(part):
    tag = part.tag.removeprefix(SVG)
    return " ".join(filter(None, [tag, part.get("class"), part.text]))


# --- what is drawn


@pytest.mark.parametrize("name", LAID_OUT)
def test_the_picture_has_every_box_frame_and_arrow(name):
    diagram = drawn(name)
    root = ET.fromstring(diagram.svg)
    assert root.tag == f"{SVG}svg"
    groups = [g.get("id") for g in root.iter(f"{SVG}g")]
    wanted = [*(c.id for c in diagram.clusters), *(n.id for n in diagram.nodes)]
    assert groups == wanted
    texts = {"".join(t.itertext()) for t in root.iter(f"{SVG}text")}
    assert {title_of(item) for item in (*diagram.nodes, *diagram.clusters)} <= texts
    assert {line for n in diagram.nodes for line in n.detail.splitlines()} <= texts
    heads = [p for p in root.iter(f"{SVG}path") if p.get("marker-end")]
    pairs = {(e.source, e.target) for e in diagram.edges}
    assert len(heads) == len(pairs)
    assert str(diagram) == diagram._repr_svg_() == diagram.svg


@pytest.mark.parametrize("name", MODELS)
def test_every_box_is_on_a_way_from_the_input_to_the_output(name):
    diagram = drawn(name)
    below, above = {}, {}
    for edge in diagram.edges:
        below.setdefault(edge.source, set()).add(edge.target)
        above.setdefault(edge.target, set()).add(edge.source)
    for node in diagram.nodes:
        assert node.role == "input" or node.id in above
        assert node.role == "output" or node.id in below


@pytest.mark.parametrize("name", MODELS)
def test_arrows_have_the_shapes_that_output_spec_says(name):
    model, spec = MODELS[name]()
    diagram = al.diagram(model, spec)
    (end,) = [node for node in diagram.nodes if node.role == "output"]
    shapes = [shape(leaf) for leaf in jax.tree.leaves(model.output_spec(spec))]
    assert end.detail == ", ".join(shapes)
    assert {e.label for e in diagram.edges if e.target == end.id} <= set(shapes)


def shape(leaf):
    dims = " ".join(map(str, leaf.shape)) or "scalar"
    return dims if leaf.dtype == jnp.float32 else f"{leaf.dtype} {dims}"


def test_residuals_go_past_the_layers_to_a_sum():
    diagram = drawn("resnet")
    assert ("stem", "+", "b 16 16 8") in arrows(diagram)
    assert ("relu", "+", "b 16 16 8") in arrows(diagram)
    assert ("shortcut", "+", "b 8 8 16") in arrows(diagram)
    assert list(frames(diagram)) == ["block1 (residual)", "block2 (residual)"]


def test_a_stacked_and_an_unrolled_repeat_are_drawn_once():
    for name, copies in (("gpt", 6), ("vit", 3)):
        (blocks,) = [c for c in drawn(name).clusters if c.path == "blocks"]
        assert (blocks.title, blocks.copies) == ("blocks", copies)
        assert title_of(blocks) == f"blocks  x {copies}"
    model = al.serial(blocks=al.dense(4) ** 3, rest=al.repeat(al.dense(4), 2))
    diagram = al.diagram(model, X)
    assert titles(diagram) == ["input", "dense", "dense", "output"]
    assert [title_of(c) for c in diagram.clusters] == ["blocks  x 3", "rest  x 2"]


def test_equal_layers_in_a_row_are_one_box():
    model = al.serial(first=al.dense(8), **{f"b{i}": al.dense(8) for i in range(12)})
    diagram = al.diagram(model, X)
    assert [title_of(node) for node in diagram.nodes] == [
        "input", "first", "b0  x 12", "output",
    ]  # fmt: skip
    assert len(diagram.edges) == 3


def test_two_equal_layers_are_two_boxes():
    diagram = al.diagram(al.dense(4) >> al.dense(4), X)
    assert titles(diagram) == ["input", "dense", "dense_1", "output"]


def test_equal_blocks_in_a_row_are_one_frame():
    block = al.residual(al.dense(4) >> jax.nn.relu)
    diagram = al.diagram(al.serial(**{f"block{i}": block for i in range(4)}), X)
    (cluster,) = diagram.clusters
    assert (cluster.title, cluster.copies) == ("block0 (residual)", 4)
    assert titles(diagram) == ["input", "dense", "relu", "+", "output"]


def test_a_shared_encoder_is_one_with_an_arrow_for_each_input():
    """A block used twice is where Axon's tools failed."""
    diagram = drawn("siamese")
    assert frames(diagram) == {"encoder (shared)": ["dense", "relu", "dense_1"]}
    assert [a for a in arrows(diagram) if a[1] == "dense"] == [
        ("input/0", "dense", "b 20"),
        ("input/1", "dense", "b 20"),
    ]


def test_a_layer_without_weights_has_a_box_for_each_use():
    pools = [node for node in drawn("unet").nodes if node.title == "pool"]
    assert [node.specs for node in pools] == [["b 8 8 8"], ["b 4 4 16"]]


def test_the_skips_of_a_wire_are_drawn():
    diagram = drawn("unet")
    by_path = {node.id: node.path for node in diagram.nodes}
    pairs = {(by_path[e.source], by_path[e.target]) for e in diagram.edges}
    assert {("down1/relu_1", "merge1/conv"), ("down2/relu_1", "merge2/conv")} <= pairs


def test_a_layer_on_its_own_output_has_an_arrow_back():
    diagram = drawn("reused")
    assert ("f", "f", "b 4") in arrows(diagram)
    assert ("add", "+", "b 4") in arrows(diagram)
    assert titles(diagram).count("f") == 1


def test_inputs_and_outputs_have_their_names():
    diagram = drawn("two_towers")
    roles = [n.title for n in diagram.nodes if n.role == "input"]
    assert roles == ["input/item", "input/user"]
    assert ("input/item", "embedding", "int32 b") in arrows(diagram)


def test_merges_are_drawn():
    model = al.serial(
        gate=al.multiply(al.dense(4), al.dense(4) >> jax.nn.sigmoid),
        both=al.concatenate(left=al.dense(2), right=al.identity),
        sums=al.add(al.identity, al.dense(6)),
    )
    diagram = al.diagram(model, X)
    merges = [node.title for node in diagram.nodes if node.role == "merge"]
    assert merges == ["x", "concatenate", "+"]
    assert ("x", "concatenate", "b 4") in arrows(diagram)
    assert ("concatenate", "+", "b 6") in arrows(diagram)


def test_members_leave_with_an_axis_more():
    assert ("dense_1", "mean", "5 b 3") in arrows(drawn("ensemble"))


def test_wrappers_are_told():
    assert [title_of(c) for c in drawn("experts").clusters] == [
        "body (mixed, remat)", "choice (switch)", "serial", "out (cond)",
    ]  # fmt: skip
    (cluster,) = drawn("autoencoder").clusters
    assert cluster.title == "encoder (frozen)"
    diagram = al.diagram(al.serial(body=al.frozen(al.dense(2))), X)
    assert [(n.title, n.detail) for n in diagram.nodes[1:2]] == [
        ("body", "dense(features=2) (frozen)"),
    ]


def test_tied_arrays_are_told_in_the_box_that_uses_them():
    (expand,) = [node for node in drawn("autoencoder").nodes if node.title == "expand"]
    assert expand.detail.splitlines()[1:] == ["kernel tied to code/kernel"]
    pair = al.serial(a=al.attention(2), b=al.attention(2))
    arrays = [f"{n}/{w}" for n in ("query", "key") for w in ("kernel", "bias")]
    model = al.tie(pair, {f"b/{path}": f"a/{path}" for path in arrays})
    (box,) = [n for n in al.diagram(model, al.spec("b t 4")).nodes if n.path == "b"]
    assert box.detail.splitlines()[1:] == [
        "query/kernel tied to a/query/kernel", "query/bias tied to a/query/bias",
        "and 2 more",
    ]  # fmt: skip


def test_a_tie_in_every_copy_is_told_once_and_one_in_a_row_of_layers_unfolds_it():
    block = al.tie(al.serial(a=al.dense(4), b=al.dense(4)), {"b/kernel": "a/kernel"})
    for model, home in (
        (al.serial(x=al.repeat(block, 3)), "x/*/"),
        (al.serial(x=al.repeat(block, 3, stacked=False)), "x/0/"),
        (al.serial(x=block, y=block, z=block), "x/"),
    ):
        diagram = al.diagram(model, X)
        assert [c.copies for c in diagram.clusters] == [3]
        assert [n.detail.splitlines()[1:] for n in diagram.nodes[1:3]] == [
            [], [f"kernel tied to {home}a/kernel"],
        ]  # fmt: skip
    row = al.serial(**{name: al.dense(4) for name in "abcd"})
    tied = al.diagram(al.tie(row, {"c/kernel": "a/kernel"}), X)
    assert titles(tied) == ["input", "a", "b", "c", "d", "output"]


def test_a_repeat_with_one_set_of_weights_is_told_from_one_with_many():
    model = al.serial(
        one=al.repeat(al.dense(4) >> abs, 3, tied=True), many=al.repeat(al.dense(4), 3)
    )
    diagram = al.diagram(model, X)
    assert title_of(diagram.clusters[0]) == "one (tied repeat)  x 3"
    assert [c.title for c in diagram.clusters[1:]] == ["many"]


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (al.repeat(al.dense(4) >> abs, 3), "repeat  x 3"),
        (al.repeat(al.dense(4) >> abs, 3, stacked=False), "repeat  x 3"),
        (al.repeat(al.dense(4), 3, tied=True), "dense  x 3"),
        (al.repeat(al.dense(4) >> abs, 3, tied=True), "tied repeat  x 3"),
        (al.ensemble(al.dense(4), 3), "ensemble  x 3"),
        (al.remat(al.repeat(al.dense(4), 3)), "repeat  x 3"),
    ],
)
def test_copies_without_a_name_are_counted(model, wanted):
    diagram = al.diagram(model, X)
    assert wanted in map(title_of, [*diagram.nodes, *diagram.clusters])


def test_depth_makes_boxes_of_frames():
    model, spec = MODELS["gpt"]()
    diagram = al.diagram(model, spec, depth=1)
    assert titles(diagram) == [
        "input", "embed", "positions", "blocks", "norm", "head", "output",
    ]  # fmt: skip
    assert not diagram.clusters
    assert len(al.diagram(model, spec, depth=2).clusters) == 1


def test_layers_of_the_catalogue_are_boxes_and_those_of_users_are_frames():
    @al.layer
    def mlp(width):
        return al.serial(up=al.dense(width), down=al.dense(4))

    diagram = al.diagram(al.serial(low=al.low_rank(4, 2), own=mlp(8)), X)
    assert titles(diagram) == ["input", "low", "up", "down", "output"]
    assert list(frames(diagram)) == ["own (mlp)"]


def test_a_single_layer_is_drawn():
    assert titles(al.diagram(al.dense(2), X)) == ["input", "dense", "output"]
    assert len(al.diagram(al.identity, X).edges) == 1


def test_a_model_with_a_billion_params_is_drawn_from_shapes():
    block = al.residual(al.layer_norm() >> al.dense(8192) >> al.dense(2048))
    model = al.serial(embed=al.embedding(50_000, 2048), blocks=block**30)
    diagram = al.diagram(model, al.spec("b t", int))
    assert title_of(diagram.clusters[0]) == "blocks  x 30"


# --- the layout: nothing lies on anything else


def boxes_of(name):
    g = graph(*LAID_OUT[name]())
    return g, layout(g)


def apart(a, b, room=0.0):
    return (
        a[0] + a[2] + room <= b[0]
        or b[0] + b[2] + room <= a[0]
        or a[1] + a[3] + room <= b[1]
        or b[1] + b[3] + room <= a[1]
    )


def labels_of(g, where):
    """The places of the shapes below boxes."""
    for node in g.nodes():
        rect, text = where.nodes[node.id], label_of(g, node)
        if text:
            x = rect.x + rect.width / 2 + 7
            yield node.id, (x, rect.y + rect.height + 4, 5.6 * len(text), 11)


def along(line, n=40):
    """Points along an arrow."""
    if len(line.points) > 4:  # back up, with corners
        for (x0, y0), (x1, y1) in itertools.pairwise(line.points):
            for k in range(n + 1):
                yield x0 + k / n * (x1 - x0), y0 + k / n * (y1 - y0)
        return
    (x0, first), (_, y0), (x1, y1), (_, last) = line.points
    middle = (y0 + y1) / 2
    for k in range(n + 1):
        t = k / n
        a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
        yield (a + b) * x0 + (c + d) * x1, a * y0 + (b + c) * middle + d * y1
        yield x0, first + t * (y0 - first)
        yield x1, y1 + t * (last - y1)


@pytest.mark.parametrize("name", LAID_OUT)
def test_nothing_overlaps(name):
    g, where = boxes_of(name)
    for a, b in itertools.combinations(where.nodes.values(), 2):
        assert apart(a, b, 8)
    labels = list(labels_of(g, where))
    for (_, label), rect in itertools.product(labels, where.nodes.values()):
        assert apart(label, rect)
    for (_, a), (_, b) in itertools.combinations(labels, 2):
        assert apart(a, b)
    for rect in where.nodes.values():
        assert 0 <= rect.x <= rect.x + rect.width <= where.width
        assert 0 <= rect.y <= rect.y + rect.height <= where.height


@pytest.mark.parametrize("name", LAID_OUT)
def test_frames_are_around_what_is_in_them_and_nothing_else(name):
    g, where = boxes_of(name)
    for cluster in g.clusters():
        frame = where.clusters[cluster.id]
        inside = {item.id for item in below(cluster)}
        for node in g.nodes():
            rect = where.nodes[node.id]
            if node.id in inside:
                assert frame.x < rect.x
                assert rect.x + rect.width < frame.x + frame.width
                assert frame.y + 20 < rect.y
                assert rect.y + rect.height < frame.y + frame.height
            else:
                assert apart(rect, frame)


def below(cluster):
    for item in cluster.items:
        yield item
        yield from below(item) if hasattr(item, "items") else ()


@pytest.mark.parametrize("name", LAID_OUT)
def test_arrows_pass_no_box_shape_or_title(name):
    g, where = boxes_of(name)
    shown = dict(where.nodes) | dict(labels_of(g, where))
    for line in where.lines:
        for x, y in along(line):
            for other, (left, top, width, height) in shown.items():
                inside = left + 1 < x < left + width - 1
                inside = inside and top + 1 < y < top + height - 1
                assert not inside, (name, line.source, other)
    for cluster in g.clusters():
        frame = where.clusters[cluster.id]
        title = frame.x + 10 + 0.85 * TITLE * len(title_of(cluster))
        for line in where.lines:
            for x, y in along(line):
                over = frame.x + 10 < x < title and frame.y + 6 < y < frame.y + 18
                assert not over, (name, cluster.title)


def test_a_box_is_as_wide_as_its_text():
    model = al.lift(jnp.tanh, name="a_very_long_name_" * 6)
    g = graph(al.serial(model), X)
    where = layout(g)
    assert where.nodes["n1"].width >= TITLE * len("a_very_long_name_" * 6)
    assert LABEL < TITLE


# --- names that mean something in XML, Mermaid or DOT


NASTY = 'a<b>&"c"; [d] \\'


def test_names_are_escaped(tmp_path):
    model = al.serial(al.dense(2, name=NASTY), al.serial(al.dense(2), name="x<y"))
    diagram = al.diagram(model, X)
    root = ET.fromstring(diagram.svg)
    texts = ["".join(t.itertext()) for t in root.iter(f"{SVG}text")]
    assert NASTY in texts
    assert "x<y" in texts
    assert 'n1["a#60;b#62;#38;#34;c#34;#59; [d] #92;<br/>' in diagram.mermaid
    assert 'n1 [label="a<b>&\\"c\\"; [d] \\\\\\n' in diagram.dot
    diagram.save(tmp_path / "model.svg")
    assert ET.parse(tmp_path / "model.svg").getroot().tag == root.tag


# --- the texts keep to their grammars

MERMAID = re.compile(
    r"flowchart TD"
    r"|\s+subgraph cluster_\d+\[\"[^\"<>]*\"\]"
    r"|\s+end"
    r"|\s+n\d+(\(\[|\[|\(\()\"[^\"]*\"(\]\)|\]|\)\))"
    r"|\s+n\d+ -->(\|\"[^\"]*\"\|)? n\d+"
)
DOT = re.compile(
    r"digraph model \{"
    r"|\s+node \[shape=box, style=\"rounded\"\];"
    r"|\s+subgraph cluster_\d+ \{"
    r"|\s+label=\"([^\"\\]|\\.)*\";"
    r"|\s+n\d+ \[label=\"([^\"\\]|\\.)*\"(, shape=circle)?\];"
    r"|\s+n\d+ -> n\d+ \[label=\"([^\"\\]|\\.)*\"\];"
    r"|\s*\}"
)


@pytest.mark.parametrize("name", MODELS)
def test_every_line_is_of_its_grammar(name):
    """Keras's plot_model draws with Graphviz alone, Axon's as_graph is Mermaid alone."""
    diagram = drawn(name)
    for line in diagram.mermaid.splitlines():
        assert MERMAID.fullmatch(line), line
    for line in diagram.dot.splitlines():
        assert DOT.fullmatch(line), line
    assert diagram.mermaid.count("subgraph") == diagram.mermaid.count("    end")
    assert diagram.dot.count("{") == diagram.dot.count("}")


def test_heads_point_down_as_every_arrow_arrives():
    """Turned with the line, they would lie where its last piece has no length."""
    root = ET.fromstring(drawn("reused").svg)
    assert root.find(f"{SVG}defs/{SVG}marker").get("orient") == "90"
    for line in graph_lines("reused"):
        (x0, y0), (x1, y1) = line.points[-2:]
        assert x0 == x1
        assert y0 <= y1


def graph_lines(name):
    return [line for line in boxes_of(name)[1].lines if line.ends]


def test_its_style_is_for_itself_alone():
    """Notebooks put pictures into one page, where a style is for all of it."""
    style = ET.fromstring(drawn("mlp").svg).find(f"{SVG}style").text
    rules = [line for line in style.splitlines() if line and line[0] not in "@}"]
    assert all(part.strip().startswith(".model ") for r in rules
               for part in r.partition("{")[0].split(","))  # fmt: skip
    assert "prefers-color-scheme: dark" in style


# --- files


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [(".svg", "svg"), (".SVG", "svg"), (".mmd", "mermaid"), (".mermaid", "mermaid"),
     (".dot", "dot"), (".gv", "dot")],
)  # fmt: skip
def test_a_file_is_what_its_name_says(tmp_path, suffix, kind):
    diagram = al.diagram(al.dense(2), X)
    diagram.save(tmp_path / f"model{suffix}")
    text = (tmp_path / f"model{suffix}").read_text(encoding="utf-8")
    assert text == getattr(diagram, kind)


def test_a_png_needs_an_extra(tmp_path, monkeypatch):
    called = {}

    class Cairo:
        @staticmethod
        def svg2png(*, bytestring, write_to, scale):
            called.update(bytestring=bytestring, write_to=write_to, scale=scale)

    monkeypatch.setitem(__import__("sys").modules, "cairosvg", Cairo)
    diagram = al.diagram(al.dense(2), X)
    diagram.save(str(tmp_path / "model.png"))
    assert called["bytestring"] == diagram.svg.encode()
    assert called["write_to"].endswith("model.png")
    monkeypatch.setitem(__import__("sys").modules, "cairosvg", None)
    with pytest.raises(ImportError, match=r"pip install 'axonlike\[diagram\]'"):
        optional("cairosvg", "diagram")


def test_an_unknown_ending_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"ends with \.svg, .* or \.png, got 'm\.x'"):
        al.diagram(al.dense(2), X).save(tmp_path / "m.x")


@pytest.mark.parametrize("depth", [0, -1, 1.5, True])
def test_depth_is_a_number(depth):
    with pytest.raises(ValueError, match="diagram: depth must be a positive int"):
        al.diagram(al.dense(2), X, depth=depth)


def test_a_model_is_a_layer_or_a_function():
    assert titles(al.diagram(jnp.tanh, X)) == ["input", "tanh", "output"]
    with pytest.raises(TypeError, match="diagram: expected a layer or a function, got"):
        al.diagram(3, X)


def test_a_model_that_does_not_fit_its_input_says_so():
    model = al.serial(a=al.dense(4), b=al.max_pool(2))
    with pytest.raises(al.ShapeError):
        al.diagram(model, X)


def test_its_repr_says_how_much_is_drawn():
    assert repr(drawn("mlp")) == "<diagram: 6 boxes, 5 arrows>"
