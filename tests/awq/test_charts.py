"""Charts: well-formed, and values where they belong."""

from xml.etree import ElementTree

import pytest

from awq.charts import LogAxis, Series, heat_map, legend, panel


def test_the_axis_is_logarithmic() -> None:
    axis = LogAxis(1, 100, str)
    assert [axis.place(value) for value in (1, 10, 100)] == pytest.approx([0, 0.5, 1])
    assert axis.place(0) == 0
    wide = LogAxis.around([3.0, 0.0, 700.0], str)
    assert wide.low < 3
    assert wide.high > 700
    assert LogAxis.around([], str).low < 1 < LogAxis.around([], str).high


@pytest.mark.parametrize("high", [1.01, 1.5, 3, 8, 20, 90, 1e3, 1e6, 1e12, 1e30])
def test_a_few_round_ticks(high: float) -> None:
    ticks = LogAxis.around([1.0, high], str).ticks()
    assert 1 <= len(ticks) <= 5
    assert all(f"{tick:.1e}"[1] == "." for tick in ticks)
    assert ticks == sorted(ticks)


def test_lines_go_through_their_points() -> None:
    axis = LogAxis(1, 100, lambda value: f"{value:.0f}")
    drawn = panel("a & b", [Series("x < y", "after", {0: 1.0, 10: 100.0, 5: 10.0})], axis, 10)
    figure = ElementTree.fromstring(drawn)
    assert figure.findtext("figcaption") == "a & b"
    polyline = figure.find(".//polyline")
    assert polyline is not None
    points = [tuple(map(float, point.split(","))) for point in polyline.attrib["points"].split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[1] == pytest.approx(((points[0][0] + points[2][0]) / 2, (points[0][1] + points[2][1]) / 2))
    assert points[0][1] > points[2][1]  # SVG counts downwards
    assert [title.text for title in figure.iter("title")] == [
        "x < y, block 0: 1",
        "x < y, block 5: 10",
        "x < y, block 10: 100",
    ]


def test_one_block_is_drawn() -> None:
    ElementTree.fromstring(panel("one", [Series("s", "after", {0: 2.0})], LogAxis(1, 10, str), 0))


def test_heat_maps_leave_out_what_has_no_value() -> None:
    drawn = heat_map("shares", {"a": {0: 0.5, 2: 2.0}, "b": {1: 0.0}}, 2, 1.0, str)
    cells = [item for item in ElementTree.fromstring(drawn).iter("rect") if item.attrib["class"] == "cell"]
    assert [float(cell.attrib["fill-opacity"]) for cell in cells] == [0.5, 1, 0]
    ElementTree.fromstring(heat_map("nothing", {"a": {0: 0.0}}, 0, 0.0, str))


def test_legend_names_every_line() -> None:
    assert "largest &amp; smallest" in legend([("after", "largest & smallest")])
