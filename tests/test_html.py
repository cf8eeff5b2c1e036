"""The HTML report of hand-made and real reports: figures, pictures, and that nothing gets out."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksm_eval.evaluate import evaluate_snapshot
from ksm_eval.report.blocks import human_bytes
from ksm_eval.report.decision import Pair, ScanRow
from ksm_eval.report.html import page
from ksm_eval.report.html.heat import MOST, SHADES, bounds, shade_of, short
from ksm_eval.report.html.scale import decades, linear
from ksm_eval.report.html.words import LONG, compact
from ksm_eval.report.model import Report, Run, System, VmaRow
from ksm_eval.report.text import printable
from ksm_eval.report.to_html import NOTEBOOK_ROWS, ROWS, to_fragment, to_html
from ksm_eval.report.to_json import to_json
from tests.fixtures import TINY, snapshot
from tests.html_page import Element, cells, figure, one, parse, shown
from tests.reports import WORKERS, decision, whole
from tests.test_report import HOSTILE, RUN, process, report, sampled, without_smart_scan

MARKUP = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "]]><![CDATA[",
    "<!--<script>",
    "-->",
    "</style></title></textarea>",
    "&lt;b&gt;&amp;&#0;",
    "javascript:alert(1)",
    "{{constructor}}${x}`",
    "\x00",
    "\u2066\u2069\u202e",
    "\ufeff\u200b\u2028",
)
NAMES = (*MARKUP, *HOSTILE)


def html(made: Report) -> Element:
    return parse(to_html(made, RUN))


def section(root: Element, anchor: str) -> Element:
    return one([s for s in root.all("section") if s.attributes["id"] == anchor])


def island(root: Element) -> Any:
    scripts = [s for s in root.all("script") if s.attributes.get("id") == "ksm-eval"]
    return json.loads(one(scripts).text)


# What it says


def test_the_verdict_comes_first() -> None:
    root = html(whole())
    first = root.all("section")[0]
    assert first.attributes["id"] == "verdict"
    verdict = decision().verdict
    assert one(first.all("p", "worth")).text == "Worth it"
    assert one(first.all("p", "lead")).text == verdict.sentence
    tiles = {d.all("dt")[0].text: d.all("dd")[0] for d in one(first.all("dl")).children}
    assert tiles["page frames freed"].text == "11457 44.8 MiB"
    assert tiles["of the RSS of these processes"].text == "18.6 %"
    assert tiles["of the RAM of this host"].text == "4.0 %"
    net = tiles["net memory gained, ksmd's own records taken off"]
    assert (net.text, net.all("span")[0].attributes["title"]) == ("41.2 MiB", "43179584 bytes")
    assert tiles["general_profit, as the kernel will show it"].text == "160.8 MiB"
    assert verdict.profit_explained in first.text
    assert "Over 6 samples in 60.0 s: 10400 to 11457 frames, 37.1 MiB to 41.2 MiB net" in first.text
    for caveat in verdict.caveats:
        assert caveat in first.text


def test_a_loss_says_so() -> None:
    lost = replace(
        decision().verdict, worth="no", net_bytes=-3707328, share_of_rss=-0.01, share_of_ram=None
    )
    first = section(html(whole(decision=decision(verdict=lost))), "verdict")
    assert "Costs more than it gains" in first.text
    assert "net memory lost, ksmd's own records taken off-3.5 MiB" in first.text
    assert "-1.0 %" in first.text
    assert "RAM" not in first.text


def test_what_could_not_be_read_is_said_before_the_figures() -> None:
    text = shown(html(whole()))
    assert "Incomplete: 0.1 % could not be read: 60 of 17900 frames, with 68 of 56170" in text
    assert text.index("Incomplete") < text.index("Worth it")
    assert "Not evaluated at all: 7 (gone): ended meanwhile" in text
    assert "60 pages: swapped" in text
    assert "Complete: all 56170 candidate pages (17900 frames) were read." in shown(html(report()))


def test_tables_have_the_figures_of_the_report() -> None:
    made = whole()
    root = html(made)
    rows = cells(figure(root, "Processes, best first"))
    assert len(rows) == len(made.processes)
    first = made.processes[0]
    assert rows[0] == [
        "100", "web-parent", "/web.slice", "1000", "11234", "11234", "8888", "0",
        "20.0 MiB", human_bytes(first.pss_before), human_bytes(first.pss_after), "97 %",
    ]  # fmt: skip
    groups = cells(figure(root, "Processes together, by cgroup"))
    assert groups[0][:4] == ["/web.slice/app.service", "12", "50000", "40000"]
    assert groups[1][0] == "none"
    assert cells(figure(root, "VMAs worth madvise"))[1][:6] == [
        "101", "web", "0x7f0001000000", "0x7f0002000000", "[heap]", "8400",
    ]  # fmt: skip
    vmas = cells(figure(root, "VMAs, best first"))
    assert vmas[0][0] == "100"
    assert vmas[0][6] == "800"
    assert vmas[-1][7] == "shared"
    counters = {row[0]: row[1:] for row in cells(figure(root, "Counters"))}
    assert counters["pages_sharing"] == ["42037", "164.2 MiB", "40", "+41997"]
    assert counters["pages_unshared (skip)"] == ["0", "0 B", "–", "–"]  # noqa: RUF001
    assert counters["general_profit"][:2] == ["168588672", "160.8 MiB"]
    assert cells(figure(root, "Settings"))[0] == ["max_page_sharing", "8", "option"]
    assert cells(figure(root, "The same memory evaluated"))[1] == [
        "max_page_sharing=64", "max_page_sharing", "2600", "41800", "11250", "40.4 MiB",
        "-828.0 KiB",
    ]  # fmt: skip
    assert cells(figure(root, "Frames freed by who shares"))[0] == ["user", "2", "9800", "1657"]
    assert cells(figure(root, "By reason"))[0][:3] == ["VM_SHARED", "44", "812.0 MiB"]
    assert cells(figure(root, "How soon"))[2] == ["99 %", "3", "34 s"]
    assert cells(figure(root, "Contents that merge"))[0] == [
        "9e3779b97f4a7c15", "zero", "1457", "1457", "12",
    ]  # fmt: skip
    scans = cells(figure(root, "A full scan at other"))
    assert scans[0] == ["100", "20", "11 s", "1.0", "0.11 s", "target, default"]
    verified = cells(figure(root, "Verified"))
    assert verified[1] == ["stable_node_dups", "–", "3", "–", "59", "–"]  # noqa: RUF001
    gained = {row[0]: row[1:] for row in cells(figure(root, "Memory really gained"))}
    assert gained["freed"] == ["11457", "44.8 MiB"]
    assert gained["net"] == ["", "41.2 MiB"]
    assert "~3" in [row[0] for row in cells(figure_of(root, "After each sample", "table"))]


def figure_of(root: Element, caption: str, tag: str) -> Element:
    """Where a picture and a table have one caption."""
    found = [f for f in root.all("figure") if f.children[0].text.startswith(caption) and f.all(tag)]
    return one(found)


def test_numeric_cells_say_what_they_are_sorted_by() -> None:
    root = html(whole())
    numeric = 0
    for table in root.all("table"):
        heads = one(table.all("thead")).all("th")
        for row in one(table.all("tbody")).all("tr"):
            for head, cell in zip(heads, row.children, strict=True):
                assert ("n" in head.styles) == ("n" in cell.styles)
                if "n" in cell.styles and cell.text not in ("", "–"):  # noqa: RUF001
                    numeric += 1
                    assert "data-v" in cell.attributes, cell.text
                    if re.fullmatch(r"-?\d+", cell.text):
                        assert int(cell.attributes["data-v"]) == int(cell.text)
    assert numeric > 500


def test_commands_are_there_to_be_copied() -> None:
    steps = section(html(whole()), "next")
    blocks = [block.text for block in steps.all("pre")]
    assert blocks == ["\n".join(step.commands) + "\n" for step in decision().next_steps]


# Pictures


def test_page_classes_are_as_wide_as_they_are_many() -> None:
    made = figure(html(whole()), "Candidate pages by what becomes")
    bar = one(made.all("svg", "bar"))
    classes = [n for n in decision().page_classes.values() if n]
    total, before = sum(classes), 0
    for shape, pages in zip(bar.all("rect"), classes, strict=True):
        assert shape.number("x") == pytest.approx(1000 * before / total, abs=0.006)
        assert shape.number("width") == pytest.approx(1000 * pages / total, abs=0.006)
        assert f": {pages} pages, " in shape.all("title")[0].text
        before += pages
    legend = one(made.all("ul", "parts")).children
    assert [int(li.all("span")[0].text.split()[0]) for li in legend] == classes


def test_bars_of_processes_and_vmas() -> None:
    root = html(whole())
    made = whole()
    best = sorted(made.processes, key=lambda p: p.pss_after - p.pss_before)
    rows = one(figure(root, "PSS that processes would lose").all("ol")).children
    assert len(rows) == 12
    longest = max(p.pss_before for p in best)
    for row, row_of in zip(rows, best, strict=False):
        behind, bar = row.all("rect")
        saved = row_of.pss_before - row_of.pss_after
        assert behind.number("width") == pytest.approx(
            1000 * row_of.pss_before / longest, abs=0.006
        )
        assert bar.number("width") == pytest.approx(1000 * saved / longest, abs=0.006)
        assert row.text.startswith(f"{row_of.pid} {row_of.comm}")
    gains = [row.gain_bytes for row in decision().madvise]
    bars = one(figure(root, "VMAs that gain most").all("ol")).all("rect")
    for bar, gain in zip(bars, gains, strict=True):
        assert bar.number("width") == pytest.approx(1000 * gain / gains[0], abs=0.006)


def test_without_a_decision_vmas_are_ranked_by_ksm_pages() -> None:
    made = whole(decision=None)
    rows = one(figure(html(made), "VMAs by pages that would be KSM pages").all("ol")).children
    assert [int(row.all("span", "value")[0].text) for row in rows] == list(range(800, 788, -1))
    assert rows[6].all("rect")[0].number("width") == pytest.approx(1000 * 794 / 800, abs=0.006)


def test_less_than_nothing_has_no_length() -> None:
    worse = tuple(process(n, "w", 1, pss_before=4096 * n, pss_after=4096 * 3) for n in (1, 9))
    bars = figure(html(report(processes=worse)), "PSS that processes").all("rect")
    widths = [bar.number("width") for bar in bars]
    assert widths == [1000.0, pytest.approx(666.67), pytest.approx(111.11), 0.0]


def test_concentration_rises_to_all() -> None:
    made = figure(html(whole()), "How concentrated")
    points = decision().kinds.concentration
    dots = made.all("circle")
    assert len(dots) == len(points)
    for dot, (contents, frames) in zip(dots, points, strict=True):
        assert dot.text == f"{contents} contents: {frames} frames"
        assert dot.number("cy") == pytest.approx(208 - 182 * frames / 11457, abs=0.006)
    across = [dot.number("cx") for dot in dots]
    # 1 to 10 is as far as 10 to 100 and 100 to 1000.
    assert across[3] - across[0] == pytest.approx(across[5] - across[3], abs=0.011)
    assert across[7] - across[5] == pytest.approx(across[5] - across[3], abs=0.011)
    assert "500 of 2397 contents, or fewer, give half of the 11457 frames" in made.text
    line = [
        tuple(map(float, p.split(",")))
        for p in one(made.all("polyline")).attributes["points"].split()
    ]
    assert line == [(dot.number("cx"), dot.number("cy")) for dot in dots]


def test_passes_are_lines_of_the_counters() -> None:
    made = whole()
    picture = figure_of(html(made), "After each sample", "polyline")
    names = [li.text for li in one(picture.all("ul", "legend")).children]
    assert names == ["pages_shared", "pages_sharing", "pages_unshared", "pages_volatile"]
    highest = 60000  # the round value above 56170
    dots = iter(picture.all("circle"))
    for name in names:
        for entry in made.timeline:
            value, dot = entry.counters[name], next(dots)
            about = "" if entry.exact else "about "
            assert dot.text == f"pass {entry.number}: {name} {about}{value}"
            assert dot.number("cy") == pytest.approx(208 - 182 * value / highest, abs=0.006)
            assert ("hollow" in dot.styles) is not entry.exact
    assert next(dots, None) is None


def test_scan_times_on_logarithmic_axes() -> None:
    made = figure(html(whole()), "Time of a full scan")
    rows = decision().cost.rows
    dots = made.all("circle", "dot")
    assert len(dots) == len(rows)
    first, tenth, _, hundredth = dots[:4]
    assert hundredth.number("cx") - tenth.number("cx") == pytest.approx(
        tenth.number("cx") - first.number("cx"), abs=0.011
    )
    heights = sorted((dot.number("cy"), -row.seconds) for dot, row in zip(dots, rows, strict=True))
    assert [s for _, s in heights] == sorted(s for _, s in heights)
    assert made.all("circle", "ring")[0].number("cx") == first.number("cx")
    assert [li.text for li in one(made.all("ul", "legend")).children] == [
        "sleep_millisecs 20", "sleep_millisecs 200",
    ]  # fmt: skip


def test_heat_map_is_symmetric_and_darker_with_more() -> None:
    root = html(whole())
    made = figure(root, "Frames of equal contents")
    squares = made.all("rect", "heat")
    assert len(squares) == WORKERS**2
    frames = {(p.first, p.second): p.frames for p in decision().pairs}
    seen = {}
    for index, square in enumerate(squares):
        row, column = divmod(index, WORKERS)
        expected = frames[min(row, column), max(row, column)]
        assert square.text.endswith(f": {expected} frames")
        assert square.number("x") == pytest.approx(squares[column].number("x"))
        seen[expected] = int(square.styles[1].removeprefix("h"))
    shades = [seen[n] for n in sorted(seen)]
    assert shades == sorted(shades)
    assert (shades[0], shades[-1]) == (1, SHADES)
    table = cells(figure(root, "Processes that have equal frames"))
    assert table[0] == ["100 web-parent", "itself", "5000"]


def test_heat_map_of_too_many_and_of_wrong_rows() -> None:
    people = tuple(process(n, "w", 0) for n in range(100))
    pairs = (*(Pair(n, n, 200 - n) for n in range(100)), Pair(7, 100, 5), Pair(-1, 3, 5))
    root = html(report(processes=people, decision=decision(pairs=pairs)))
    assert len(figure(root, "Frames of equal contents").all("rect", "heat")) == MOST**2
    assert f"{100 - MOST} processes with less are not drawn" in section(root, "pairs").text


@given(st.integers(1, 10**9), st.data())
def test_shades(most: int, data: st.DataObject) -> None:
    some = data.draw(st.integers(1, most))
    assert 1 <= shade_of(some, most) <= SHADES
    assert shade_of(some, most) <= shade_of(most, most) == SHADES
    assert shade_of(0, most) == 0
    assert some <= bounds(most)[shade_of(some, most) - 1]


@given(st.integers(0, 10**15 - 10**13))
def test_short_numbers(value: int) -> None:
    text = short(value)
    assert len(text) <= 4
    unit = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1], 1)
    assert float(text.rstrip("kMGT")) * unit == pytest.approx(value, rel=0.051)


@given(st.floats(0, 1e15))
def test_linear_axes(high: float) -> None:
    scale = linear(high, 0, 100)
    ticks = scale.ticks()
    assert scale.high >= max(high, 1)
    assert 2 <= len(ticks) <= 12
    assert ticks[0] == 0
    assert ticks[-1] == pytest.approx(scale.high)
    assert all(b > a for a, b in pairwise(map(scale, ticks)))


@given(st.floats(1e-6, 1e12), st.floats(1, 1e12))
def test_logarithmic_axes(low: float, times: float) -> None:
    scale = decades(low, low * times, 0, 100)
    assert -1e-6 <= scale(low) <= scale(low * times) <= 100 + 1e-6
    assert 1 <= len(scale.ticks()) <= 9


@pytest.mark.parametrize(
    ("value", "said"), [(0, "0"), (500, "500"), (20000, "20k"), (1.5e6, "1.5M"), (2e9, "2G")]
)
def test_ticks(value: float, said: str) -> None:
    assert compact(value) == said


def test_pictures_say_what_they_show() -> None:
    for made in (whole(), report(), sampled()):
        root = html(made)
        for picture in root.all("svg"):
            if picture.attributes.get("aria-hidden") != "true":
                assert picture.attributes["role"] == "img"
                assert picture.children[0].tag == "title"
                assert picture.children[0].text
        for region in root.all("div", "scroll"):  # within reach of the keyboard
            assert region.attributes["tabindex"] == "0"
            assert region.attributes["aria-label"]


# What is not there is left out


def test_sections_without_data_are_left_out() -> None:
    ids = [s.attributes["id"] for s in html(whole()).all("section")]
    assert ids == [
        "verdict", "next", "pages", "where", "pairs", "kinds", "why-not", "security", "cost",
        "what-if", "counters", "passes", "settings", "notes", "run",
    ]  # fmt: skip
    plain = html(report())
    assert [s.attributes["id"] for s in plain.all("section")] == [
        "verdict", "pages", "where", "why-not", "counters", "settings", "notes", "run",
    ]  # fmt: skip
    links = [a.attributes["href"] for a in one(plain.all("nav")).all("a")]
    assert links == [f"#{s.attributes['id']}" for s in plain.all("section")]
    less = decision(what_if=(), pairs=(), next_steps=(), madvise=(), groups=(), choices=())
    gone = {s.attributes["id"] for s in html(report(decision=less)).all("section")}
    assert not gone & {"what-if", "pairs", "next", "passes"}


def test_nothing_at_all() -> None:
    empty = replace(
        report(),
        selection=(), settings={}, system=System({}), observed={}, processes=(), vmas=(),
        ineligible=(), entries={}, notes=(), debug_info="",
        completeness=replace(report().completeness, mappings=0, frames=0),
    )  # fmt: skip
    assert "page frames freed" in shown(html(empty))
    kinds = replace(decision().kinds, concentration=(), top=(), blocked={}, pages_per_split=None)
    cost = replace(decision().cost, rows=(ScanRow(0, 0, 0, 0, 0),), passes_to={}, seconds_to={})
    bare = decision(kinds=kinds, cost=cost, page_classes={}, why_not=(), groups=())
    assert "What kind of duplicates" in shown(html(replace(empty, decision=bare)))


def test_an_older_kernel() -> None:
    text = shown(html(without_smart_scan()))
    assert "general_profit" not in text
    assert "ksm_process_profit" not in text
    assert "Smart scan" not in text


# A file of its own


def test_the_json_inside_is_the_json_report() -> None:
    for made in (report(), whole(), sampled()):
        assert island(html(made)) == json.loads(to_json(made, RUN))


def test_equal_reports_give_equal_bytes() -> None:
    one_ = report(observed={"a": 1, "b": 2}, entries={"candidate": 1, "swap": 2})
    two = report(observed={"b": 2, "a": 1}, entries={"swap": 2, "candidate": 1})
    assert to_html(one_, RUN) == to_html(two, RUN)
    assert to_html(whole(), RUN) == to_html(whole(), RUN)


def test_nothing_is_loaded_and_only_our_script_runs() -> None:
    text = to_html(whole(), RUN)
    root = parse(text)
    metas = {m.attributes.get("http-equiv"): m.attributes["content"] for m in root.all("meta")
             if "content" in m.attributes}  # fmt: skip
    policy = dict(part.split(" ", 1) for part in metas["Content-Security-Policy"].split("; "))
    assert policy.keys() == {"default-src", "style-src", "script-src", "base-uri", "form-action"}
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    code = one([s for s in root.all("script") if not s.attributes]).text
    assert policy["script-src"] == f"'sha256-{digest(code)}'"
    assert policy["style-src"] == f"'sha256-{digest(one(root.all('style')).text)}'"
    assert not re.search(r"url\(|@import|src=|<link|https?://(?!docs\.kernel\.org)", text)
    assert not re.search(r"fetch|XMLHttp|import\(|innerHTML|eval\(|WebSocket", code)
    assert not any("style" in e.attributes for e in root.all())


def digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_ids_are_there_once() -> None:
    ids = [e.attributes["id"] for e in html(whole()).all() if "id" in e.attributes]
    assert len(ids) == len(set(ids))


def test_a_notebook_gets_less() -> None:
    text = to_fragment(whole())
    root = parse(text)
    assert not {"script", "html", "head", "body", "main"} & {e.tag for e in root.all()}
    assert not [e for e in root.all() if "id" in e.attributes]
    assert [child.tag for child in root.children] == ["style", "div"]
    # Nothing of the notebook itself is styled.
    rules = re.sub(r"@media[^{]*\{", "", one(root.all("style")).text)
    for selectors in re.findall(r"([^{}]+)\{", rules):
        for selector in selectors.split(","):
            assert ".ksm-eval" in selector, selector
    many = whole(processes=tuple(process(n, "w", n) for n in range(40)))
    rows = cells(figure(parse(to_fragment(many)), "Processes, best first"))
    assert len(rows) == NOTEBOOK_ROWS
    assert f"{40 - NOTEBOOK_ROWS} more not shown; the JSON has all of them." in to_fragment(many)


# Sizes


def test_large_reports_stay_small() -> None:
    vmas = tuple(
        VmaRow(n // 100, n << 20, (n + 1) << 20, f"/usr/lib/lib{n}.so", n, n, None)
        for n in range(100_000)
    )
    people = tuple(process(n, f"worker{n}", n) for n in range(1000))
    text = to_html(whole(vmas=vmas, processes=people), RUN)
    assert len(text.encode()) < page.ISLAND_BYTES + (2 << 20)
    root = parse(text)
    rows = cells(figure(root, "VMAs, best first"))
    assert len(rows) == ROWS
    assert rows[0][6] == "99999"
    assert f"{100_000 - ROWS} more not shown" in text
    assert f"{1000 - ROWS} more not shown" in text
    data = island(root)
    assert "vmas" not in data
    assert len(data["processes"]) == 1000
    assert "does without vmas" in one(root.all("footer")).text


def test_what_is_left_out_of_the_json_is_the_largest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    made = whole()
    size = len(to_json(made, RUN))
    monkeypatch.setattr(page, "ISLAND_BYTES", size // 100)
    root = html(made)
    assert not {"vmas", "processes", "timeline"} & island(root).keys()
    assert "does without vmas, processes, timeline" in one(root.all("footer")).text


def test_long_names_are_cut_and_the_json_has_them() -> None:
    name = "x" * 4096
    root = html(report(vmas=(VmaRow(1, 0, 4096, name, 1, 1, None),)))
    assert cells(figure(root, "VMAs, best first"))[0][4] == "x" * LONG + "… (4096 characters)"
    assert island(root)["vmas"][0]["name"] == name


# Nothing that the target says becomes markup


def hostile(value: Any, name: Callable[[str], str], path: str = "") -> Any:
    """`value` with name(path) in the place of every string, keys of mappings included."""
    if isinstance(value, str):
        return name(path)
    if isinstance(value, Mapping):
        return {name(f"{path}.key"): hostile(value[key], name, path) for key in value}
    if isinstance(value, tuple):
        return tuple(hostile(item, name, path) for item in value)
    if is_dataclass(value):
        changed = {
            f.name: hostile(getattr(value, f.name), name, f"{path}.{f.name}".lstrip("."))
            for f in fields(value)
        }
        return replace(value, **changed)  # type: ignore[type-var]
    return value


NOT_SHOWN = (
    "target.sizeof",  # for programs
    "system.phase",  # a key of phases
    "observed",  # what the prediction has no counter for
    "calm.counters",  # only those of report.names are
    "ineligible",  # decision.why_not has more to say of it
    "decision.cost.seconds_to",  # whose keys are those of passes_to
    "decision.cost.rows.kind",  # its note says it
    "decision.cost.advisor_",  # cost.advisor says it
    "timeline.counters",  # those of the first pass are the columns
)


def poisoned(text: str) -> tuple[Report, Run, dict[str, str]]:
    """A report with `text` and a number for every string, and which is where."""
    numbers, where = count(1), {}

    def name(path: str) -> str:
        made = f"{text}{next(numbers)}."
        where[made] = path
        return made

    kept = {key: pages for key, pages in decision().page_classes.items() if pages}
    found = decision(page_classes=kept, what_if_left_out=("thp: …",))
    made = whole(entries={"candidate": 1, "swap": 2}, decision=found)
    return hostile(made, name), hostile(RUN, name, "run"), where


def check_hostile(text: str) -> None:
    made, run, where = poisoned(text)
    code = to_html(made, run)
    code.encode("utf-8")  # no surrogate is left
    assert code.replace("\n", "").isprintable()
    root = parse(code)  # nothing but our tags and attributes
    assert len(root.all("script")) == 2
    assert island(root) == json.loads(to_json(made, run))
    seen = shown(root)
    for string, path in where.items():
        verbatim = path.startswith(("decision.next_steps.commands", "run.command"))
        expected = printable(string)
        if verbatim:
            expected = expected.replace("\\\\", "\\")
        assert expected in seen or path.startswith(NOT_SHOWN), (path, expected)
    parse(to_fragment(made))


@pytest.mark.parametrize("text", NAMES)
def test_names_do_not_become_markup(text: str) -> None:
    check_hostile(text)


@settings(max_examples=25, deadline=None)
@given(
    st.text(st.characters(exclude_categories=()), max_size=20)
    | st.text("<>&\"'/!-[]\\\x00=", max_size=20)
)
def test_no_text_becomes_markup(text: str) -> None:
    check_hostile(text)


@pytest.mark.parametrize("text", MARKUP)
def test_the_json_inside_cannot_end_its_element(text: str) -> None:
    code = to_html(report(notes=(text,)), RUN)
    inside = code.split('<script type="application/json" id="ksm-eval">')[1].split("</script>")[0]
    assert not re.search("[<>&]", inside)
    assert json.loads(inside)["notes"] == [text.encode("utf-8", "replace").decode()]


# Colours


def themes() -> list[dict[str, str]]:
    """The colours of the light and the dark theme."""
    blocks = re.findall(r"\{([^{}]*--paper:[^{}]*)\}", page.style())
    assert len(blocks) == 2
    return [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in blocks]


def contrast(one_: str, other: str) -> float:
    """WCAG 2: (L1 + 0.05) / (L2 + 0.05) of relative luminances."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear_ = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear_[0] + 0.7152 * linear_[1] + 0.0722 * linear_[2]

    high, low = sorted((luminance(one_), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_contrast(theme: int) -> None:
    colors = themes()[theme]
    for name in ("ink", "soft", "good", "bad", "c1"):  # text
        assert contrast(colors[name], colors["paper"]) >= 4.5, name
    for number in range(1, 10):  # shapes
        assert contrast(colors[f"c{number}"], colors["paper"]) >= 3, number
    over = (5, 6) if theme == 0 else (4, 5, 6)
    for shade in range(1, 7):  # numbers in squares
        text = colors["over" if shade in over else "under"]
        assert contrast(text, colors[f"h{shade}"]) >= 4.5, shade


def test_a_real_vmcore() -> None:
    made = evaluate_snapshot(snapshot(TINY), passes=4)
    root = parse(to_html(replace(made, decision=decision(pairs=(Pair(0, 1, 5),))), RUN))
    counters = {row[0]: row[1] for row in cells(figure(root, "Counters"))}
    assert counters["pages_sharing"] == str(made.system.counters["pages_sharing"])
    assert len(cells(figure_of(root, "After each full scan", "table"))) == 4
    assert len(cells(figure(root, "Processes, best first"))) == len(made.processes)
    assert island(root)["timeline"][3]["pages_shared"] == made.timeline[3].counters["pages_shared"]
