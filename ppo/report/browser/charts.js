"use strict";

/* Charts by uPlot: one look for all, drawn anew when the theme or the width changes, each with its numbers as a table. */

const charts = [];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/**
 * Draw a chart into an element.
 *
 * `options` has: `x` (an array), `xLabel`, `series` ([{label, values, colour, dots, fill, scale}]), `height`, `label` (for
 * screen readers), `group` (charts whose cursors move together), `range` (of y), `hooks`, `cursor`, `legend` and
 * `secondLabel` (of the scale at the right, which series with `scale: "second"` have), `bands` ([{high, low, shade}], places
 * of series between which it is shaded; all of the chart's series have `isKept` then; one with `isUnnamed` is
 * left out of the legend).
 */
function chart(holder, options) {
  const state = { holder, options, plot: null, shown: [] };
  charts.push(state);
  holder.setAttribute("role", "img");
  draw(state);
  return state;
}

/** The series that have something to show. */
const shownOf = ({ series }) => series.filter((one) => one.isKept || one.values.some((value) => value !== null));

function draw(state) {
  const { holder, options } = state;
  if (state.plot) state.plot.destroy();
  const text = colour("soft"), grid = colour("line"), font = "12px system-ui, sans-serif";
  const axis = { stroke: text, grid: { stroke: grid, width: 1 }, ticks: { show: false }, font, labelFont: font };
  const shown = state.shown = shownOf(options);
  const y = { ...axis, size: 56, values: (plot, values) => values.map(short) };
  const second = shown.some((series) => series.scale === "second");
  const settings = {
    width: Math.max(240, holder.clientWidth),
    height: options.height || 180,
    padding: [10, second ? 4 : 20, 0, 0],
    legend: { show: options.legend !== false, live: true },
    cursor: { points: { size: 7 }, sync: options.group ? { key: options.group } : undefined, ...options.cursor },
    scales: { x: { time: false }, y: options.range ? { range: options.range } : {}, second: {} },
    axes: [
      { ...axis, values: (plot, values) => values.map(short), label: options.xLabel, labelSize: 18, size: 30 },
      y,
      ...(second ? [{ ...y, scale: "second", side: 1, grid: { show: false }, label: options.secondLabel, labelSize: 18 }] : []),
    ],
    hooks: options.hooks || {},
    bands: (options.bands || []).map(({ high, low, shade }) => ({ series: [high + 1, low + 1], fill: `${colour(shade)}2b` })),
    series: [
      { label: options.xLabel, value: (plot, value) => short(value) },
      ...shown.map((series) => ({
        label: series.label,
        scale: series.scale || "y",
        class: series.isUnnamed ? "unnamed" : undefined,
        stroke: colour(series.colour),
        width: series.dots ? 0 : series.width ?? 1.75,
        fill: series.fill || series.bars ? colour(series.colour) : undefined,
        paths: series.dots ? () => null : series.bars ? uPlot.paths.bars({ size: [0.9] }) : undefined,
        points: series.dots
          ? { show: true, size: 3, width: 0, fill: colour(series.colour) }
          : { show: false },
        spanGaps: true,
        value: (plot, value) => short(value),
      })),
    ],
  };
  holder.setAttribute("aria-label", options.label);
  state.plot = new uPlot(settings, [options.x, ...shown.map((series) => series.values)], holder);
}

/**
 * Show other numbers, of the same series, in a chart. It is drawn anew only if its words change, or which series have
 * something to show, since that takes longer.
 */
function replaceData(state, x, columns, words = {}) {
  const { options, plot } = state, hasSameWords = Object.entries(words).every(([name, text]) => options[name] === text);
  Object.assign(options, { x }, words);
  options.series.forEach((series, place) => { series.values = columns[place]; });
  const shown = shownOf(options);
  const hasSameSeries = shown.length === state.shown.length && shown.every((series, place) => series === state.shown[place]);
  if (hasSameWords && hasSameSeries) plot.setData([x, ...shown.map((series) => series.values)]);
  else draw(state);
}

function redrawAll() {
  for (const state of charts) draw(state);
}

let redrawSoon = 0;
new ResizeObserver(() => {
  clearTimeout(redrawSoon);
  redrawSoon = setTimeout(() => {
    for (const state of charts) {
      if (state.holder.clientWidth && Math.abs(state.plot.width - state.holder.clientWidth) > 1) draw(state);
    }
  }, 80);
}).observe(document.documentElement);

/** Return a table of about ten rows of a chart, which opens on demand. */
function tableOf(state) {
  const details = element("details", { class: "numbers" }, [element("summary", { text: "Numbers" })]);
  details.addEventListener("toggle", () => {
    if (!details.open) return;
    const { x, xLabel, series } = state.options, rows = Math.min(10, x.length);
    const header = element("tr", {}, [xLabel, ...series.map((one) => one.label)].map(
      (label) => element("th", { scope: "col", text: label })));
    const body = Array.from({ length: rows }, (_, row) => {
      const place = rows === 1 ? 0 : Math.round(row * (x.length - 1) / (rows - 1));
      return element("tr", {}, [x[place], ...series.map((one) => one.values[place])].map(
        (value) => element("td", { text: short(value) })));
    });
    if (details.lastChild.tagName === "DIV") details.lastChild.remove();
    details.append(element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Numbers" }, [element("table", {}, [header, ...body])]));
  });
  return details;
}

/** Add a card with a title, a sentence on how to read it, a chart and its numbers; with `isFull` it is as wide as the page. */
function chartCard(grid, title, help, options) {
  const holder = element("div", { class: "chart" });
  const readout = element("output", { class: "readout numeric" });
  const card = element("div", { class: options.isFull ? "card plot full" : "card plot" }, [
    element("div", { class: "title" }, [element("h3", { text: title }), readout]),
    element("p", { class: "help", text: help }), holder,
  ]);
  grid.append(card);
  const isSingle = options.series.length === 1 && !options.series[0].bars;
  const hooks = { ...options.hooks, setCursor: [(plot) => { if (isSingle) read(plot, readout); }] };
  const state = chart(holder, { ...options, hooks, legend: !isSingle && options.legend, label: `${title}. ${help}` });
  if (isSingle) read(state.plot, readout);
  card.append(tableOf(state));
  return state;
}

/** Write the value under the cursor, or the last one, of the only curve of a plot. */
function read(plot, readout) {
  const [xs, values] = plot.data, under = plot.cursor.idx;
  let place = under === null || under === undefined ? values.length - 1 : under;
  while (place > 0 && values[place] === null) place--;
  readout.textContent = under === null || under === undefined
    ? short(values[place]) : `${short(values[place])} at ${short(xs[place])}`;
}
