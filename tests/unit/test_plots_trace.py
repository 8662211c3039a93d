"""The picture of a trace: no branches cross, no labels overlap, and what is left out is counted."""

import itertools
import re
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Annotation
from traced_words import Words, run, words

from rmtools.errors import UserError
from rmtools.plots import FORMS, trace_picture
from rmtools.plots.drawing import STYLE_SHEET
from rmtools.plots.trace import fitted, legend_of, plain, summary, trace_figure, width
from rmtools.plots.trace_layout import choose, grow, place

SENTENCES = [
    "Then 2 + 3 = 5.\n",
    "So we have five apples left, and give two of them away.\n",
    "Half of that is $2^3$\n",
    "x\n",
]


class Talk(Words):
    """Sentences by the dozen, of values that part."""

    def log_value(self):
        return np.asarray(
            [[sum(0.9 * np.sin(3.0 * len(w) + len(x)) for w in x) + 0.0 for x in g] for g in self.texts]
        )

    def extend(self, pool_size, draws):
        def said():
            return f"{draws.integers(9)} {draws.choice(SENTENCES)}"

        ended = self.ended
        rows = [
            [x if ended[g, i] else [*x, said()] for i, x in enumerate(row) for _ in range(pool_size)]
            for g, row in enumerate(self.texts)
        ]
        return self.of(rows)

    def of(self, texts):
        return Talk(texts, self.horizons)


def talk(n, m, horizon, scheme="systematic", threshold=0.5, seed=0):
    return run(Talk([[[]]], (horizon,)), ["How many apples?\n"], (n, m, scheme, threshold), seed)[1][0]


def short(n=12, m=2, seed=3):
    root, prompts = words((6,))
    return run(root, prompts, (n, m, "systematic", 0.9), seed)[1][0]


def laid_out(record):
    layers = choose(grow(record))
    place(layers)
    return layers


CASES = [(16, 1, 8), (16, 4, 6), (64, 2, 12), (1, 3, 4), (2, 1, 1), (300, 1, 20)]


@pytest.mark.parametrize("how", CASES)
def test_no_branches_cross_and_no_rows_collide(how):
    layers = laid_out(talk(*how))
    for layer in layers:
        for a, b in itertools.pairwise(layer):
            assert b.y - a.y >= (a.height + b.height) / 2 - 1e-6
            assert a.parent is b.parent or a.parent.y < b.parent.y


@pytest.mark.parametrize("how", CASES)
def test_what_is_drawn(how):
    record = talk(*how)
    every = grow(record)
    assert all(sum(s.heirs for s in layer) == record.n_particles for layer in every)
    for layer, step in zip(every[1:], record.steps, strict=True):
        assert sum(s.copies for s in layer) == record.n_particles
        assert len(layer) == len(set(step.candidates))
    layers = choose(every)
    for layer, whole in zip(layers, every, strict=True):
        assert 1 <= len(layer) <= 48
        assert sum(s.labelled for s in layer) <= 24
        assert sum(s.drawn for s in layer) == 1
        if len(whole) <= 24:
            assert len(layer) == len(whole)
            assert all(s.labelled or s.waits for s in layer)
    for layer, before in zip(layers[1:], layers, strict=False):
        assert all(s.parent in before for s in layer)
    path = [s.node.text for layer in layers[1:] for s in layer if s.drawn and not s.waits]
    assert path == record.solutions()[record.draw]


def labels(figure):
    """The boxes, in pixels, of the step texts."""
    renderer = figure.canvas.get_renderer()
    figure.draw(renderer)
    return [
        t.get_window_extent(renderer) for t in figure.axes[0].texts if isinstance(t, Annotation)
    ], renderer


@pytest.mark.parametrize("how", [(16, 1, 8), (16, 4, 5), pytest.param((80, 1, 24), marks=pytest.mark.slow)])
def test_no_labels_overlap(how):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context(STYLE_SHEET):
        figure = trace_figure(talk(*how))
        FigureCanvasAgg(figure)
        boxes, renderer = labels(figure)
        assert len(boxes) > 12
        x, y, w, h = (np.asarray([getattr(b, n) for b in boxes]) for n in ("x0", "y0", "width", "height"))
        # Boxes hold the room of descenders that need not be there: a tenth of a line is no overlap.
        apart = (x[:, None] >= x + w) | (x[:, None] + w[:, None] <= x)
        apart |= (y[:, None] >= y + 0.9 * h) | (y[:, None] + 0.9 * h[:, None] <= y)
        assert apart[~np.eye(len(x), dtype=bool)].all()
        outside = [t for t in figure.texts if not figure.bbox.contains(*t.get_window_extent(renderer).max)]
        assert not outside
        assert all(figure.bbox.contains(b.x1, b.y1) and figure.bbox.contains(b.x0, b.y0) for b in boxes)


def test_pictures_are_the_same_twice_and_undated():
    record = short()
    for form, head in zip(FORMS, (b"<svg", b"\x89PNG", b"%PDF"), strict=True):
        drawn = trace_picture(record, form)
        assert drawn.startswith(head)
        assert drawn == trace_picture(record, form)
        assert b"CreationDate" not in drawn
        assert b"dc:date" not in drawn


def test_strange_texts_are_drawn():
    """Formulas that do not close, characters no font has, ends of comments: the picture is well-formed, without warnings."""
    record = short()
    strange = [
        "$\\frac{",
        "数学 \U0001f600",
        "--> <a & b>",
        "\x00\x1b[31m\n",
        " \n",
        "\ud800",
        "x" * 5000,
        "a\n\nb",
    ]
    nodes = [replace(x, text=text) for x, text in zip(record.nodes, itertools.cycle(strange), strict=False)]
    record = replace(record, nodes=nodes, prompt=" ".join(strange))
    tree = ElementTree.fromstring(trace_picture(record).decode())
    assert tree.tag.endswith("svg")


def test_words_are_cut_to_their_room():
    from matplotlib.font_manager import FontProperties

    font = FontProperties(size=8)
    assert fitted("  so\nx = 3 ", 500, font) == "so ⏎ x = 3"
    for room in (15, 33.3, 70):
        cut = fitted("So we have five apples left", room, font)
        assert cut.endswith("…")
        assert width(cut, font) <= room
        assert width("So we have five apples left"[: len(cut) + 1] + "…", font) > room
    assert fitted("anything", 1, font) == ""
    assert plain("\x00 a\tb 数") == "□ a b □"


def test_zeros_and_one_value_are_drawn():
    root, prompts = words((4,), ["dead"])
    dead = run(root, prompts, (3, 1, "systematic", 0.5))[1][0]
    root, prompts = words((4,), ["a"])
    alike = run(root, prompts, (3, 1, "top_k", 0.5))[1][0]
    for record in (dead, alike):
        assert trace_picture(record).startswith(b"<svg")
    assert "Ẑ = 0" in summary(dead)
    assert "Ẑ" not in summary(alike)


def test_a_run_without_a_step_is_refused():
    record = short()
    with pytest.raises(UserError, match="took no step"):
        trace_picture(replace(record, steps=[]))


def test_many_particles_are_limited_and_counted():
    record = talk(512, 1, 12)
    drawn = trace_picture(record)
    assert len(drawn) < 1_500_000
    with matplotlib.rc_context(STYLE_SHEET):
        figure = trace_figure(record)
    assert figure.get_size_inches().max() < 40
    total = 1 + sum(len(set(s.candidates)) for s in record.steps)
    (text,) = [t.get_text() for t in figure.texts if "Not drawn" in t.get_text()]
    left, of = (
        int(x.replace(",", "")) for x in re.match(r"Not drawn: ([\d,]+) of ([\d,]+) prefixes", text).groups()
    )
    assert of == total
    assert total - left == sum(len(layer) for layer in choose(grow(record)))


def captions(record):
    with matplotlib.rc_context(STYLE_SHEET):
        return [t.get_text() for t in trace_figure(record).texts]


def test_nothing_is_said_to_be_missing_where_all_is_drawn():
    assert not any("Not drawn" in text for text in captions(talk(8, 1, 4)))


def test_the_legend_names_what_is_there():
    def names(record):
        return {h.get_label() for h in legend_of([s for layer in laid_out(record) for s in layer])}

    record = short()
    assert {"drawn sample", "leads to a final particle", "killed", "ended"} <= names(record)
    undrawn = replace(record, draw=None)
    assert "drawn sample" not in names(undrawn)
    assert "drawn sample" not in summary(undrawn)
    root, prompts = words((4,), ["dead"])
    assert "value zero" in names(run(root, prompts, (3, 1, "systematic", 0.5))[1][0])


def test_the_curve_below():
    record = talk(16, 1, 8)
    with matplotlib.rc_context(STYLE_SHEET):
        tree, _, ess = trace_figure(record).axes
    curve = ess.lines[0].get_xydata()
    np.testing.assert_allclose(curve[:, 1], [s.ess for s in record.steps])
    np.testing.assert_array_equal(curve[:, 0], np.arange(1, 9))
    resampled = ess.lines[1].get_xydata()[:, 0]
    np.testing.assert_array_equal(resampled, [t for t, s in enumerate(record.steps, 1) if s.resampled])
    assert 0 < len(resampled) < 8
    np.testing.assert_array_equal(ess.lines[3].get_ydata(), [len(set(s.ancestors)) for s in record.steps])
    assert set(ess.lines[4].get_ydata()) == {8.0}
    assert tree.get_xlim() == ess.get_xlim()


def test_when_there_is_a_threshold():
    record = short()
    for sampler, there in (
        ({"ess_threshold": 0.5, "resampling": "systematic"}, True),
        ({"ess_threshold": 1}, True),
        ({}, False),
        ({"ess_threshold": 0.0}, False),
        ({"ess_threshold": 0.5, "resampling": "none"}, False),
    ):
        with matplotlib.rc_context(STYLE_SHEET):
            _, _, ess = trace_figure(replace(record, sampler=sampler)).axes
        assert (len(ess.lines) == 5) == there
