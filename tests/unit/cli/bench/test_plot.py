"""The plot is a file that a browser can show: well-formed, with every line and mark, and nothing outside of it."""

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.cli.bench.chart import Line, Mark, Panel, chart, nice_ticks
from streamq.cli.bench.plan import Sample
from streamq.cli.bench.plot import check_plot, write_plot
from streamq.model.errors import RefusedError

SVG = "{http://www.w3.org/2000/svg}"


@given(st.floats(1e-6, 1e12))
def test_ticks_begin_at_zero_reach_the_top_and_are_few(top: float) -> None:
    ticks = nice_ticks(top)
    assert ticks[0] == 0
    assert ticks[-1] >= top * (1 - 1e-6) - 1e-9
    assert 2 <= len(ticks) <= 8


def test_every_point_lies_inside_and_names_are_escaped() -> None:
    text = chart("a < b & c", [Panel("records/s", [Line("<x>", [(0.0, 0.0), (5.0, 80.0), (10.0, 20.0)])])], [Mark(4.0, "kill & co")])
    root = ElementTree.fromstring(text)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    (drawn,) = root.findall(f"{SVG}polyline")
    points = [tuple(map(float, pair.split(","))) for pair in drawn.attrib["points"].split()]
    assert len(points) == 3
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    assert points[1][1] < points[2][1] < points[0][1], "more is higher up"
    assert {"a < b & c", "<x>", "kill & co"} <= {element.text for element in root.iter(f"{SVG}text")}


def test_intervals_without_latencies_have_no_point_and_no_panel_if_there_are_none(tmp_path: Path) -> None:
    samples = [Sample(at_s=1.0, records_per_s=10.0, p50_ms=0.0, p99_ms=0.0), Sample(at_s=2.0, records_per_s=20.0, p50_ms=0.0, p99_ms=0.0)]
    write_plot(tmp_path / "a.svg", "t", [("consume", samples)])
    text = (tmp_path / "a.svg").read_text()
    assert "records/s" in text
    assert "latency" not in text
    write_plot(tmp_path / "b.svg", "t", [("produce", [*samples, Sample(at_s=3.0, records_per_s=1.0, p50_ms=1.0, p99_ms=2.0)])])
    assert "latency, ms" in (tmp_path / "b.svg").read_text()


def test_a_plot_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        check_plot(str(tmp_path / "nowhere" / "a.svg"))


def test_png_is_drawn_by_the_extra_or_refused_with_the_way_to_get_it(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(RefusedError, match="extra `plot`") as refused:
            check_plot(str(path))
        assert "streamq[plot]" in refused.value.hint
    else:
        check_plot(str(path))
        write_plot(path, "t", [("produce", [Sample(at_s=1.0, records_per_s=1.0, p50_ms=1.0, p99_ms=2.0)])])
        assert path.read_bytes().startswith(b"\x89PNG")
