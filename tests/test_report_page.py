"""The page of a comparison: what stands in the file, and how it behaves in a browser (Chromium, where there is one)."""

import json
import re
import shutil
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs
from test_compare import in_process
from test_comparison_statistics import VAL, made

from comparison.curves import Curve, evenly, smooth, thin
from comparison.page import SMOOTHINGS, Section, page, write_page, write_page_of
from comparison.plotting_library import plotting_library
from comparison.runs import Run, describe, describe_all
from runs.logs import POSITIONS

ARGUMENTS = """
--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run
"""
HOSTILE = "</script><script>document.title = 'taken'</script><!--"
SPIKE = 77_777


def a_run(preset="gpt2", seed=1, name="run", steps=300, **keys):
    """Three evaluations and `steps` records of steps."""
    log = made([5.0, 4.0, 3.0 + seed / 100], seed=seed, name=name, arch_preset=preset, **keys)
    rng = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        log.iters.append(
            {
                "type": "iter",
                "step": step,
                "tokens": 10 * step,
                "flops": {"full": 10_000 * step},
                "train_seconds": step / 2,
                "wall_seconds": 10 + step,
                "loss": 5 * step**-0.2 + rng.normal() / 20,
                "grad_norm": 1 + rng.random(),
                "skipped": False,
                "step_ms": 500.0,
                "tokens_per_second": 20.0,
                "mfu": {"full": 0.4, "causal": 0.3},
                "memory": {"peak": 10**9 + step},
            }
        )
    log.evals = [{**record, "wall_seconds": 11 + record["step"]} for record in log.evals]
    log.run["dataset"]["splits"]["train"] = VAL
    return log


def four_runs():
    return [a_run(preset, seed, name=preset) for preset in ("gpt2", "llama") for seed in (1, 2)]


def data_of(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


# ---------------------------------------------------------------------------------------------------------------------
# Curves

LOSSES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300)


def curve_of(values, steps=None):
    steps = np.arange(len(values), dtype=float) if steps is None else np.asarray(steps, dtype=float)
    return Curve(dict.fromkeys(POSITIONS, steps), np.asarray(values, dtype=float))


@given(LOSSES, st.integers(1, 40))
def test_thinning_keeps_every_extreme_of_its_stretch(values, buckets):
    curve = curve_of(values)
    thinned = thin(curve, buckets)
    steps = thinned.x["step"]
    assert len(thinned) <= 2 * buckets + 2 and (np.diff(steps) > 0).all()
    assert thinned.y.tolist() == [values[int(step)] for step in steps]
    assert {steps[0], steps[-1]} == {0, len(values) - 1}
    assert thinned.y.max() == max(values) and thinned.y.min() == min(values)
    reach = len(values) / buckets + 1  # any value lies between two that are kept and not further away
    for step, value in enumerate(values):
        near = thinned.y[np.abs(steps - step) <= reach]
        assert near.min() <= value <= near.max()


@given(st.lists(st.tuples(st.integers(1, 20), st.floats(-100, 100)), min_size=1, max_size=60), st.floats(5, 1000))
def test_smoothing_is_the_weighted_mean_whatever_the_distances(points, scale):
    steps, values = np.cumsum([gap for gap, _ in points]), [value for _, value in points]
    smoothed = smooth(curve_of(values, steps), scale).y
    for index in range(len(values)):
        weights = np.exp(-(steps[index] - steps[: index + 1]) / scale)
        assert smoothed[index] == pytest.approx(np.average(values[: index + 1], weights=weights), rel=1e-9, abs=1e-9)
    assert smoothed[0] == pytest.approx(values[0])


def test_few_points_of_a_smooth_curve_have_its_ends():
    few = evenly(curve_of(range(1000)), 50)
    assert len(few) == 50 and (few.y[0], few.y[-1]) == (0, 999)
    assert len(evenly(curve_of([]), 50)) == 0 == len(smooth(curve_of([]), 3.0))


# ---------------------------------------------------------------------------------------------------------------------
# The file


def test_what_is_drawn_is_what_the_logs_say():
    logs = four_runs()
    data = data_of(page(describe_all(logs), "title", []))
    assert data["unit"] == "nats" and data["mfu"] == "MFU (full attention)"
    for log, run in zip(logs, data["runs"], strict=True):
        assert run["name"] == log.name
        for kind, losses in (("train_loss", log.train_losses), ("val_loss", log.val_losses)):
            for place in POSITIONS:
                drawn = list(zip(run["curves"][kind][place], run["curves"][kind]["y"], strict=True))
                assert np.allclose(drawn, losses(place), rtol=1e-4)
        assert run["curves"]["mfu"]["y"] == [0.4] * 300
        assert np.allclose(run["curves"]["memory"]["y"], [r["memory"]["peak"] for r in log.iters], rtol=1e-4)
        assert np.allclose(run["curves"]["grad_norm"]["y"], [r["grad_norm"] for r in log.iters], rtol=1e-4)
        assert run["bits_per_byte"]["val"] == pytest.approx(1000 / 4000 / np.log(2))
        steps = [r["step"] for r in log.iters]
        for share, means in zip(SMOOTHINGS.values(), run["smooth"]["means"], strict=True):
            weights = np.exp((np.array(steps) - steps[-1]) / (share * 300))
            assert means[-1] == pytest.approx(np.average([r["loss"] for r in log.iters], weights=weights), rel=1e-4)


def test_the_page_says_in_words_what_the_command_does(tmp_path):
    html = page(describe_all(four_runs()), "title", [])
    for heading in ("At equal steps", "At equal tokens", "At equal FLOPs", "At equal training time"):
        assert f"<h3>{heading}</h3>" in html
    assert html.count("the difference of 0 nats") + html.count("llama is exactly equal to gpt2") == 4
    assert "arch_preset" in html and "<td>llama</td>" in html


def test_the_environment_is_what_the_log_says():
    log = a_run(steps=3)
    log.run |= {
        "hardware": {"device_name": "A card", "ranks": 7, "peak_flops_per_second_per_device": 3.12e14},
        "dtype": "bfloat16",
        "compile": True,
        "versions": {"python": "3.11.9", "torch": "2.99"},
        "git": {"commit": "abc123", "changed": False},
        "command": ["train.py", "--seed=1"],
    }
    html = page([describe(log)], "title", [])
    environment = html[html.index('<h2 id="environment">') :]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", environment[: environment.index("<script")])
    assert cells == [
        "run-1", "A card", "7", "n/a", "n/a", "n/a", "3.120e+14", "n/a", "n/a", "bfloat16", "yes", "3.11.9", "2.99",
        "abc123", "no", "run-1", "out/run-1/log.jsonl", "train.py --seed=1",
    ]  # fmt: skip


def test_hostile_names_stay_text(tmp_path):
    log = a_run(steps=3, name=HOSTILE, note=HOSTILE)
    log.run["architecture"] = log.run["command"] = HOSTILE
    figure = {"data": [{"name": HOSTILE, "x": [1], "y": [1]}], "layout": {}}
    section = Section(HOSTILE, [HOSTILE], [HOSTILE], [[HOSTILE]], figure)
    html = page([describe(log, HOSTILE), describe(a_run(steps=3), "b")], HOSTILE, [section])
    assert HOSTILE not in html and html.count("<script") == 3 == html.count("</script")
    assert data_of(html)["runs"][0]["name"] == HOSTILE


def test_nothing_refers_to_the_network(tmp_path):
    html = page(describe_all(four_runs()), "title", [])
    own = html.replace(html[html.index("<script>/**") : html.index("</script>", html.index("<script>/**"))], "")
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)|<link|<img|@import|\bsrc=|\bhref=", own)
    assert "default-src 'none'" in html and "unsafe-eval" not in html.partition("<script")[0]


def test_losses_that_do_not_compare_are_not_drawn():
    runs = [a_run(steps=5), a_run(steps=5, preset="llama", val={**VAL, "checksum": "2", "bytes": 1})]
    html = page(describe_all(runs), "title", [])
    assert data_of(html)["unit"] is None and "Their losses are not drawn together" in html
    runs[1].run["dataset"]["splits"]["val"]["bytes"] = VAL["bytes"]
    html = page(describe_all(runs), "title", [])
    assert data_of(html)["unit"] == "bits per byte" and '<option value="nats">' not in html


def test_the_command_writes_it(tmp_path):
    log = a_run(steps=5)
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [{"time": 0, **record} for record in (log.run, *log.iters, *log.evals)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = in_process(tmp_path, "run", "--report", "report.html")
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "report.html").read_text()
    assert len(data_of(html)["runs"][0]["curves"]["train_loss"]["y"]) == 5


def test_the_library_starts_fast_and_is_whole_where_a_figure_needs_more_than_lines():
    """Fails where a new plotly.js no longer reads as comparison.plotting_library expects."""
    original, whole, lines = get_plotlyjs(), plotting_library(all_kinds=True), plotting_library(all_kinds=False)
    escaped = sum(not letter.isascii() for letter in original) * (len("\\u00b5") - 1)
    assert whole.isascii() and len(whole) == len(original) + len("()") + escaped
    register = ".register(["
    assert (whole.count(register), lines.count(register)) == (1, 0)
    for kind, library in (("scatter", lines), ("heatmap", whole)):
        figures = [Section(kind, figure={"data": [{"x": [1]}, {"type": kind}]})]
        assert library in page(describe_all([a_run(steps=3)]), "title", figures)


# ---------------------------------------------------------------------------------------------------------------------
# In a browser


def until(page, condition, argument=None, seconds=60):
    """Waits for a condition in JavaScript. page.wait_for_function cannot: when the condition does not hold at once, it
    comes again by eval, which the page forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(condition, argument):
        assert time.monotonic() < deadline, f"not in {seconds} s: {condition}"
        page.wait_for_timeout(20)


def drawn(page, chart):
    """Scrolls to a chart, and waits until it is drawn as the controls say. Returns its selector."""
    selector = chart if chart.startswith("[") else f"#{chart}"
    page.locator(selector).scroll_into_view_if_needed()
    until(page, "(selector) => !stale.has(document.querySelector(selector))", selector)
    return selector


def stale(page):
    return page.evaluate("charts.filter((chart) => stale.has(chart)).map((chart) => chart.id)")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=path, args=ARGUMENTS.split())
        yield started
        started.close()


@pytest.fixture
def opened(browser, tmp_path):
    """`opened(runs, sections, **context)`: the page, drawn; afterwards nothing went wrong or was requested."""
    requested, wrong, contexts = [], [], []
    file = tmp_path / "report.html"

    def open_page(runs, sections=(), **options):
        write_page_of(runs, file, "Runs side by side", sections)
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(file.as_uri())
        until(page, "near.size && [...near].every((chart) => !stale.has(chart))")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == [] and set(requested) == {file.as_uri()}


def layout(page, chart="loss"):
    return page.evaluate(
        "(selector) => JSON.parse(JSON.stringify(document.querySelector(selector).layout))", drawn(page, chart)
    )


def traces(page, chart="loss"):
    """Without the arrays."""
    return page.evaluate(
        "(selector) => document.querySelector(selector).data.map(({name, visible, line}) => ({name, visible, line}))",
        drawn(page, chart),
    )


def test_waiting_works_though_the_page_forbids_eval(opened):
    page = opened([describe(a_run(steps=3))])
    page.evaluate("() => { setTimeout(() => { window.later = true; }, 200); }")
    assert page.evaluate("window.later") is None
    until(page, "window.later === true")
    with pytest.raises(AssertionError, match="not in 0"):
        until(page, "window.never === true", seconds=0.1)


def test_a_chart_is_drawn_when_it_comes_near_and_again_after_a_change(opened):
    page = opened(describe_all(four_runs()), viewport={"width": 1200, "height": 500})
    assert stale(page) == ["memory", "grad_norm"] and page.locator("#memory svg, #grad_norm svg").count() == 0
    assert "training tokens" in layout(page, "grad_norm")["xaxis"]["title"]["text"]
    page.evaluate("scrollTo(0, 0)")
    until(page, "near.has(document.getElementById('loss')) && !near.has(document.getElementById('grad_norm'))")
    page.select_option("select[name=x]", "step")
    assert "grad_norm" in stale(page) and layout(page)["xaxis"]["title"]["text"] == "optimizer steps"
    assert layout(page, "grad_norm")["xaxis"]["title"]["text"] == "optimizer steps"


def test_wall_clock_time_is_a_fifth_axis(opened):
    page = opened(describe_all(four_runs()))
    page.select_option("select[name=x]", "wall")
    assert layout(page)["xaxis"]["title"]["text"] == "wall-clock time (s)"
    places = page.evaluate("[0, 1].map((trace) => Array.from(document.getElementById('loss').data[trace].x))")
    assert places == [list(range(11, 311)), [11, 21, 31]]


def test_the_switches_work_by_keyboard(opened):
    page = opened(describe_all(four_runs()))
    assert len(traces(page)) == 8 and len(traces(page, "mfu")) == 4
    assert layout(page)["xaxis"]["title"]["text"] == "training tokens"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "x"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("ArrowDown")
    assert layout(page)["xaxis"]["title"]["text"].startswith("training FLOPs")
    assert layout(page, "mfu")["xaxis"]["title"]["text"].startswith("training FLOPs")
    for name, key in (("xscale", "xaxis"), ("yscale", "yaxis")):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.name") == name
        page.keyboard.press("ArrowDown")
        assert layout(page)[key]["type"] == "log"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    assert [trace["name"] for trace in traces(page)[:3]] == [
        "gpt2-1, training", "gpt2-1, training, smoothed", "gpt2-1, validation",
    ]  # fmt: skip
    page.keyboard.press("Tab")
    before = page.evaluate("document.getElementById('loss').data[2].y[0]")
    page.keyboard.press("ArrowDown")
    assert "bits per byte" in layout(page)["yaxis"]["title"]["text"]
    after = page.evaluate("document.getElementById('loss').data[2].y[0]")
    assert after / before == pytest.approx(1000 / 4000 / np.log(2))


def test_runs_are_chosen_and_the_table_sorted_by_keyboard(opened):
    page = opened(describe_all(four_runs()))
    page.focus("#runs input")
    page.keyboard.press("Space")
    assert [trace["visible"] for trace in traces(page)] == [False, False] + [True] * 6
    page.focus("#none")
    page.keyboard.press("Enter")
    assert not any(trace["visible"] for trace in traces(page, "grad_norm"))
    page.focus("#table th:has-text('last val loss') button")
    page.keyboard.press("Enter")
    names = "[...document.querySelectorAll('#table tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].textContent)"
    assert page.evaluate(names)[0][-1] == "1" and page.get_attribute("th[aria-sort]", "aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert page.evaluate(names)[0][-1] == "2"
    page.fill("#filter", "llama-1")
    assert page.evaluate(names) == ["llama-1"]


def test_keys_that_are_numbers_sort_as_numbers_and_the_unknown_come_last(opened):
    values = (0.01, None, 6e-05, 0.001, 0.0006)
    page = opened([describe(a_run(steps=3, learning_rate=value), str(value)) for value in values])
    names = "[...document.querySelectorAll('#table tbody tr')].map(row => row.cells[0].textContent)"
    page.click("#table th:has-text('learning_rate') button")
    assert page.evaluate(names) == ["6e-05", "0.0006", "0.001", "0.01", "None"]
    page.click("#table th:has-text('learning_rate') button")
    assert page.evaluate(names) == ["0.01", "0.001", "0.0006", "6e-05", "None"]


def test_a_chart_that_had_nothing_to_show_says_so_only_as_long(opened):
    log = a_run(steps=3)
    for record in (*log.iters, *log.evals):
        del record["train_seconds"], record["wall_seconds"]  # as in a log of the older layout
    page, nothing = opened([describe(log)]), "No run's log has this."
    for place, empty in (("time", True), ("tokens", False), ("wall", True), ("flops", False)):
        page.select_option("select[name=x]", place)
        for chart in ("loss", "mfu", "memory", "grad_norm"):
            drawn(page, chart)
            assert (page.text_content(f"#{chart}") == nothing) == empty
            assert (nothing in page.text_content(f"#{chart}")) == empty
            assert (page.locator(f"#{chart} svg.main-svg").count() > 0) != empty


def test_light_dark_print_and_phone(opened):
    page = opened(describe_all(four_runs()))

    def waits_for(ground, text):
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
        until(page, "(color) => document.getElementById('loss').layout.font.color === color", text)

    waits_for("rgb(255, 255, 255)", "#1a1a1a")
    page.emulate_media(color_scheme="dark")
    waits_for("rgb(22, 24, 27)", "#e8e8e8")
    assert "grad_norm" in stale(page)
    page.emulate_media(media="print")
    waits_for("rgb(255, 255, 255)", "#000000")
    assert page.evaluate("charts.map((chart) => chart.layout.width)") == [660] * 4
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 390, "height": 844})
    until(page, "document.querySelector('#loss svg').getBoundingClientRect().width <= 390")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_losses_that_do_not_compare_are_not_drawn_in_a_browser_either(opened):
    runs = [a_run(steps=5), a_run(steps=5, preset="llama", val={**VAL, "checksum": "2", "bytes": 1})]
    page = opened(describe_all(runs))
    page.emulate_media(media="print")
    until(page, "charts.length === 3 && charts.every((chart) => chart.layout.width === 660)")
    assert page.locator("#loss").is_hidden() and page.locator("#loss svg").count() == 0


def test_sections_stand_first_with_their_figures_and_runs_without_numbers_open(opened):
    figure = {"data": [{"x": [1, 2], "y": [3, 4]}], "layout": {"xaxis": {"title": {"text": "N"}, "type": "log"}}}
    section = Section("A ladder", ["Some words."], ["N", "loss"], [["1", "2"]], figure)
    page = opened([describe(made([], name="silent"))], [section])
    assert page.inner_text("h2 >> nth=0") == "A ladder"
    assert page.inner_text("main table >> nth=0").split() == ["N", "loss", "1", "2"]
    axis = layout(page, "[data-figure]")["xaxis"]
    assert (axis["title"]["text"], axis["type"]) == ("N", "log")
    assert page.inner_text(drawn(page, "mfu")) == "No run's log has this."


def test_a_figure_may_be_of_any_kind(opened):
    figure = {"data": [{"type": "bar", "x": ["a", "b"], "y": [1, 2]}, {"type": "heatmap", "z": [[1, 2], [3, 4]]}]}
    page = opened([describe(a_run(steps=3))], [Section("Others", figure=figure)])
    drawn(page, "[data-figure]")
    assert page.locator("[data-figure] .bars .point").count() == 2
    assert page.locator("[data-figure] .heatmaplayer image").count() == 1


def test_hostile_names_do_nothing_in_a_browser(opened):
    log = a_run(steps=3, name=HOSTILE, note=HOSTILE)
    page = opened([describe(log, HOSTILE)])
    assert page.title() == "Runs side by side"
    assert page.inner_text("#runs label") == HOSTILE


@pytest.mark.slow
def test_fifty_runs_of_a_hundred_thousand_steps(browser, tmp_path):
    """The curves are made here: logs of that size would be 3 GB. Each run has one spike of one step."""
    steps, rng, runs = np.arange(1.0, 100_001), np.random.default_rng(0), []
    x = {"step": steps, "tokens": 491_520 * steps, "flops": 4.5e14 * steps, "time": 1.234567 * steps}
    x["wall"] = 1.345678 * steps + 20
    for seed in range(50):
        log = a_run(seed=seed, steps=1)
        log.evals = [
            {**log.evals[0], "step": step, "tokens": 491_520 * step, "val_loss": 3.0}
            for step in range(0, 100_001, 1000)
        ]
        curves = {name: Curve(x, rng.random(len(steps))) for name in ("mfu", "memory", "grad_norm")}
        losses = 10 * steps**-0.1 + rng.normal(0, 0.1, len(steps))
        losses[SPIKE - 1] = 50 + seed
        run = describe(log, f"run {seed}")
        runs.append(Run(run.log, run.numbers, {**run.curves, **curves, "train_loss": Curve(x, losses)}))
    file = tmp_path / "many.html"
    write_page_of(runs, file, "many")
    assert file.stat().st_size < 10e6
    for seed, run in enumerate(data_of(file.read_text())["runs"]):
        spike = run["curves"]["train_loss"]["step"].index(SPIKE)
        assert run["curves"]["train_loss"]["y"][spike] == 50 + seed
    opened = [costs_of_opening(browser, file.as_uri()) for _ in range(3)]
    words = "; ".join(", ".join(f"{name} {ms:.0f} ms" for name, ms in costs.items()) for costs in opened)
    print(f"{file.stat().st_size / 1e6:.1f} MB: {words}")
    assert min(costs["text seen after"] for costs in opened) < 2000
    assert min(costs["computed until the losses are drawn"] for costs in opened) < 2000
    assert min(costs["computed for the other charts"] for costs in opened) < 2000


def costs_of_opening(browser, address):
    """Milliseconds, from the start of the navigation until the text is seen; and those in which the page computes,
    however busy the machine is: from the start until the losses are drawn, and for the charts below on the way down."""
    page = browser.new_page()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def computed():
        metrics = session.send("Performance.getMetrics")["metrics"]
        return 1000 * next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

    page.goto(address)
    until(page, "!stale.has(document.getElementById('loss'))")
    losses = computed()
    text = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    for chart in ("loss", "mfu", "memory", "grad_norm"):
        looks = {(trace["line"]["color"], trace["line"]["dash"]) for trace in traces(page, chart)}
        assert len(looks) == 50
    costs = {
        "text seen after": text,
        "computed until the losses are drawn": losses,
        "computed for the other charts": computed() - losses,
    }
    page.close()
    return costs


def test_the_public_function_takes_logs(tmp_path):
    write_page(four_runs(), tmp_path / "page.html", "A <title>")
    html = (tmp_path / "page.html").read_text()
    assert "<title>A &lt;title&gt;</title>" in html and len(data_of(html)["runs"]) == 4
