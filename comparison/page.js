"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const controls = document.getElementById("controls").elements;
const media = { dark: matchMedia("(prefers-color-scheme: dark)"), print: matchMedia("print") };

const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "2px,6px"];
const AXES = { step: "optimizer steps", tokens: "training tokens", flops: "training FLOPs (full attention)",
  time: "training time (s)", wall: "wall-clock time (s)" };
const CURVES = { mfu: data.mfu, memory: "peak memory (bytes)", grad_norm: "gradient norm, before clipping" };
const FEW_MARKS = 1000;  // of all runs: each is an element of its own, and slow
const shown = data.runs.map(() => true);
document.getElementById("loss").hidden = data.unit === null;
const charts = [...document.querySelectorAll(".chart:not([hidden])")];
const near = new Set(), stale = new Set(charts);  // within a screen of the window; not drawn as the controls say
let printing = media.print.matches;

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const color = (run) => run.color === "#000000" ? css("--text") : run.color;
const dash = (run) => DASHES[run.dashes];

// The points of a curve whose place is known, over what is chosen.
function points(curve, factor = 1, y = curve.y) {
  const places = curve[controls.x.value];
  const known = [...places.keys()].filter((index) => places[index] !== null);
  return { x: known.map((index) => places[index]), y: known.map((index) => y[index] * factor) };
}

function line(run, index, style) {
  return { type: "scatter", mode: "lines", name: run.name, visible: shown[index],
    line: { color: color(run), dash: dash(run), width: 1.5 }, ...style };
}

function lossTraces() {
  const traces = [];
  const marks = data.runs.reduce((sum, run) => sum + run.curves.val_loss.y.length, 0) <= FEW_MARKS;
  data.runs.forEach((run, index) => {
    const unit = controls.unit.value === "bits per byte" ? run.bits_per_byte : { train: 1, val: 1 };
    const smoothing = Number(controls.smoothing.value);
    if (unit.train !== null) {
      const width = { color: color(run), dash: dash(run), width: 1 };
      traces.push(line(run, index, { ...points(run.curves.train_loss, unit.train), line: width,
        opacity: smoothing >= 0 ? 0.25 : 0.6, name: run.name + ", training" }));
      if (smoothing >= 0)
        traces.push(line(run, index, { ...points(run.smooth, unit.train, run.smooth.means[smoothing]), line: width,
          name: run.name + ", training, smoothed" }));
    }
    if (unit.val !== null)
      traces.push(line(run, index, { ...points(run.curves.val_loss, unit.val), mode: marks ? "lines+markers" : "lines",
        line: { color: color(run), dash: dash(run), width: 2 }, marker: { size: 6, color: color(run) },
        name: run.name + ", validation" }));
  });
  return traces;
}

function layout(title, y = {}) {
  const axis = { gridcolor: css("--line"), linecolor: css("--quiet"), zerolinecolor: css("--line"), automargin: true };
  return { font: { color: css("--text"), family: "system-ui, sans-serif" }, paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--quiet"), activecolor: css("--focus") }, margin: { l: 50, r: 10, t: 30, b: 45 },
    ...(printing ? { width: 660, height: 300 } : { autosize: true }),
    xaxis: { ...axis, title: { text: AXES[controls.x.value] }, type: controls.xscale.value,
      exponentformat: controls.x.value === "flops" ? "power" : "B" },
    yaxis: { ...axis, title: { text: title }, ...y } };
}

function show(id, traces, form) {
  const chart = document.getElementById(id);
  const known = traces.some((trace) => trace.x.length);
  chart.style.height = known ? "" : "auto";
  if (known) {
    if (!chart.data) chart.textContent = "";  // what was said while there was nothing to draw
    Plotly.react(chart, traces, form, { responsive: !printing, displaylogo: false });
  } else {
    Plotly.purge(chart);
    chart.textContent = "No run's log has this.";
  }
}

function drawLosses() {
  const unit = controls.unit.value === "nats" ? "nats per token" : "bits per byte";
  show("loss", lossTraces(), layout("loss (" + unit + ")", { type: controls.yscale.value }));
}

function drawCurves(id) {
  const format = id === "mfu" ? { tickformat: ".2~%", rangemode: "tozero" } : id === "memory" ?
    { rangemode: "tozero", exponentformat: "B" } : { type: "log" };
  show(id, data.runs.map((run, index) => line(run, index, points(run.curves[id]))), layout(CURVES[id], format));
}

function drawFigure(place) {
  const figure = data.figures[place.dataset.figure], themed = layout(""), given = figure.layout ?? {};
  Plotly.react(place, figure.data, { ...themed, xaxis: undefined, yaxis: undefined, showlegend: true, ...given,
    font: themed.font, paper_bgcolor: themed.paper_bgcolor, plot_bgcolor: themed.plot_bgcolor,
    ...axes(given, themed) }, { responsive: !printing, displaylogo: false });
}

// A section's own axes in the colours of the page.
function axes(given, themed) {
  const names = new Set(["xaxis", "yaxis", ...Object.keys(given).filter((name) => /^[xy]axis\d*$/.test(name))]);
  const { gridcolor, linecolor, zerolinecolor } = themed.xaxis;
  return Object.fromEntries([...names].map((name) => [name, { automargin: true, ...given[name], gridcolor, linecolor,
    zerolinecolor }]));
}

// Draws what is stale and near the window, one chart a task so that the page answers in between; for the printer, which
// does not wait, all that is stale.
function drawStale() {
  const due = charts.filter((chart) => stale.has(chart) && (printing || near.has(chart)));
  for (const chart of printing ? due : due.slice(0, 1)) {
    stale.delete(chart);
    if (chart.dataset.figure) drawFigure(chart);
    else if (chart.id === "loss") drawLosses();
    else drawCurves(chart.id);
  }
  if (!printing && due.length > 1) setTimeout(drawStale);
}

function draw() {
  charts.forEach((chart) => stale.add(chart));
  drawStale();
}

function listRuns() {
  const list = document.getElementById("runs");
  data.runs.forEach((run, index) => {
    const label = document.createElement("label"), box = document.createElement("input");
    const sample = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    box.type = "checkbox";
    box.checked = true;
    box.addEventListener("change", () => { shown[index] = box.checked; draw(); });
    sample.setAttribute("width", 36);
    sample.setAttribute("height", 12);
    sample.setAttribute("aria-hidden", "true");
    const stroke = document.createElementNS(sample.namespaceURI, "line");
    const dashes = { solid: "", dash: "9,6", dot: "3,3", dashdot: "9,4,3,4", longdash: "15,6", longdashdot: "15,4,3,4" };
    for (const [name, value] of Object.entries({ x1: 0, x2: 36, y1: 6, y2: 6, "stroke-width": 3,
      stroke: run.color.replace("#000000", "currentColor"), "stroke-dasharray": dashes[dash(run)] ?? dash(run) }))
      stroke.setAttribute(name, value);
    sample.append(stroke);
    label.append(box, sample, run.name);
    list.append(label);
  });
  for (const [id, state] of [["all", true], ["none", false]])
    document.getElementById(id).addEventListener("click", () => {
      list.querySelectorAll("input").forEach((box) => { box.checked = state; });
      shown.fill(state);
      draw();
    });
}

function sortable(table) {
  const body = table.tBodies[0], headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
    const descending = heading.getAttribute("aria-sort") === "ascending";
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const isUnknown = (row) => ["", "n/a", "None"].includes(value(row));
    const known = [...body.rows].filter((row) => !isUnknown(row)), unknown = [...body.rows].filter(isUnknown);
    const numbers = known.every((row) => Number.isFinite(Number(value(row))));
    const compare = (a, b) => numbers ? Number(value(a)) - Number(value(b)) : value(a).localeCompare(value(b), undefined, { numeric: true });
    known.sort((a, b) => descending ? compare(b, a) : compare(a, b));
    body.append(...known, ...unknown);
  }));
  document.getElementById("filter").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}

function print(state) {
  printing = state;
  draw();
}

listRuns();
sortable(document.getElementById("table"));
const watcher = new IntersectionObserver((changes) => {
  for (const { target, isIntersecting } of changes)
    if (isIntersecting) near.add(target);
    else near.delete(target);
  drawStale();
}, { rootMargin: "100% 0%" });
charts.forEach((chart) => watcher.observe(chart));
document.getElementById("controls").addEventListener("change", draw);
document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
media.dark.addEventListener("change", draw);
media.print.addEventListener("change", () => print(media.print.matches));
addEventListener("beforeprint", () => print(true));
addEventListener("afterprint", () => print(false));
