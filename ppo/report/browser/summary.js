"use strict";

/* What ran, how good it is and how it learnt. */

const PHASES = [
  ["time/env", "world", "c1"], ["time/inference", "acting", "c2"], ["time/learn", "learning", "c3"],
  ["time/communicate", "exchange between ranks", "c4"], ["time/evaluation", "evaluations", "c5"],
  ["time/save", "checkpoints", "c6"],
];

function fillSummary(data) {
  byId("name").textContent = data.name;
  const facts = Object.fromEntries(data.facts);
  const ranks = facts.ranks ? `, ${facts.ranks} ${facts.ranks === "1" ? "rank" : "ranks"}` : "";
  byId("summary").textContent =
    `${data.world}${facts.trained ? `, ${facts.trained}` : ""}${ranks}. Report of ${data.made}.`;
  const tiles = [
    ["Return", short(data.score), data.scoreOf ? `mean of the last ${data.scoreOf} games` : ""],
    data.bestEvaluation === null ? null : ["Best evaluation", short(data.bestEvaluation), "mean of its games"],
    ["Agent steps", short(data.steps), ""],
    data.seconds === null ? null : ["Training time", duration(data.seconds), ""],
    data.numGames ? ["Games", short(data.numGames), ""] : null,
    data.seconds ? ["Speed", short(data.steps / data.seconds), "steps a second, on average"] : null,
  ];
  for (const [label, value, note] of tiles.filter((tile) => tile && tile[1] !== "–")) {
    byId("tiles").append(element("div", { class: "tile" }, [
      element("span", { class: "label", text: label }), element("strong", { text: value }),
      element("span", { class: "note", text: note }),
    ]));
  }
  fillLadder(data);
  fillFindings(data);
  fillFacts(data);
}

/** Scores of others and this run's, on one scale, the best first. */
function fillLadder(data) {
  if (data.score === null || !data.references.length) return;
  const own = [{ label: "this run", score: data.score, source: `the last ${data.scoreOf} games of training`, own: true }];
  if (data.evaluation) {
    const { score, games, steps } = data.evaluation;
    own.push({ label: "this run, evaluated", score, source: `${games} games of --mode=evaluate at ${short(steps)} steps`, own: true });
  }
  const rows = [...data.references, ...own]
    .sort((one, other) => other.score - one.score);
  const scores = rows.map((row) => row.score), low = Math.min(...scores), high = Math.max(...scores);
  const body = rows.map((row) => {
    const dot = element("span", { class: "dot" }), line = element("span", { class: "rung" }, [dot]);
    dot.style.left = `${high > low ? 100 * (row.score - low) / (high - low) : 50}%`;
    return element("tr", { class: row.own ? "own" : "" }, [
      element("th", { scope: "row", text: row.label }), element("td", { class: "wide", "aria-hidden": "true" }, [line]),
      element("td", { class: "numeric", text: short(row.score) }), element("td", { class: "note", text: row.source }),
    ]);
  });
  byId("ladder").append(
    element("table", { class: "ladder" }, [element("caption", { class: "hidden", text: "Scores" }), ...body]),
    element("p", { class: "help", text:
      "Published scores have protocols of their own (averages of training, chosen agents, other lengths and versions)." }));
  byId("score").hidden = false;
}

function fillFindings(data) {
  const holder = byId("findings");
  const list = (items) => element("ul", {}, items.map((text) => element("li", { text })));
  if (data.findings.length) holder.append(list(data.findings));
  else holder.append(element("p", { text: data.curves.env_steps.length >= 20
    ? "The curves look healthy: nothing about them is out of the ordinary."
    : "The log is too short to say anything." }));
  if (data.warnings.length) {
    holder.append(element("h3", { text: "Warnings during the run" }), list(data.warnings));
  }
}

function fillFacts(data) {
  for (const [label, value] of data.facts) {
    const shown = label === "command" ? [element("code", { text: value })] : [value];
    byId("facts").append(element("dt", { text: label }), element("dd", {}, shown));
  }
  const changed = Object.entries(data.changed);
  if (changed.length) {
    byId("facts").append(element("dt", { text: "other than the preset" }),
      element("dd", {}, [element("code", { text: changed.map(([name, value]) => `${name}=${value === null ? "none" : value}`).join(" ") })]));
  }
  const sections = Object.entries(data.settings).map(([section, settings]) => element("div", {}, [
    element("h3", { text: section }),
    element("dl", { class: "dense" }, Object.entries(settings).flatMap(([name, value]) => [
      element("dt", { text: name }), element("dd", { text: value === null ? "none" : String(value) })])),
  ]));
  byId("settings").append(element("details", {}, [
    element("summary", { text: "All settings" }), element("div", { class: "columns" }, sections)]));
}

function fillCurves(data) {
  const { curves, games } = data;
  if (curves.env_steps.length < 2) return;
  byId("learning").hidden = byId("time").hidden = false;
  const axes = {
    steps: { label: "steps", of: (columns) => columns.env_steps },
    minutes: { label: "minutes", of: (columns) => columns["time/seconds"].map((value) => value === null ? null : value / 60) },
  };
  let axis = axes.steps;
  const drawn = [];
  const add = (grid, title, help, options, make) => {
    const { series, x } = make();
    const state = chartCard(grid, title, help, { ...options, series, x, xLabel: axis.label });
    drawn.push({ state, make });
  };
  const returns = () => {
    const dots = axis.of(games).map((x, place) => [x, games.return[place]]);
    const lines = axis.of(curves).map((x, place) => [x, curves["rollout/return_mean"][place], curves["evaluation/return_mean"][place]]);
    const merged = [...dots.map(([x, y]) => [x, y, null, null]), ...lines.map(([x, mean, evaluation]) => [x, null, mean, evaluation])]
      .filter((row) => row[0] !== null).sort((one, other) => one[0] - other[0]);
    const column = (place) => merged.map((row) => row[place]);
    return { x: column(0), series: [
      { label: "a game", values: column(1), colour: "faint", dots: true },
      { label: "mean of the last 100 games", values: column(2), colour: "c1" },
      { label: "evaluation", values: column(3), colour: "c4" },
    ] };
  };
  const grid = byId("curves");
  add(grid, "Return", "What a whole game is worth, raw. Every dot is a game (some of them, if there are many).",
    { height: 260, isFull: true }, returns);
  for (const [title, column, shade, help] of CURVES) {
    if (!curves[column].some((value) => value !== null)) continue;
    add(grid, title, help, { group: "curves", height: 150 },
      () => ({ x: axis.of(curves), series: [{ label: title.toLowerCase(), values: curves[column], colour: shade }] }));
  }
  if (curves["time/steps_per_second"].some((value) => value !== null)) {
    add(grid, "Speed", "Agent steps a second over all environments, and what it would be if ranks did nothing but step the "
      + "world, act and learn: the difference is exchange, waiting, evaluations and checkpoints.",
    { group: "curves", height: 150 }, () => ({ x: axis.of(curves), series: speeds(data) }));
  }
  for (const [column, title, help] of [
    ["return", "Returns of the newest games", "How often a return occurs: a second hump is a second way to play, or to fail."],
    ["length", "Lengths of the newest games", "In agent steps."],
  ]) {
    if (data.histograms[column]) histogramCard(grid, title, help, data.histograms[column]);
  }
  fillTime(curves, axes.steps);
  for (const name of ["steps", "minutes"]) {
    byId(`by-${name}`).addEventListener("click", () => {
      axis = axes[name];
      for (const other of ["steps", "minutes"]) byId(`by-${other}`).setAttribute("aria-pressed", other === name);
      for (const { state, make } of drawn) {
        const { x, series } = make();
        replaceData(state, x, series.map((one) => one.values), { xLabel: axis.label });
      }
    });
  }
}

function histogramCard(grid, title, help, histogram) {
  const { counts, edges } = histogram;
  const middles = counts.map((_, place) => (edges[place] + edges[place + 1]) / 2);
  chartCard(grid, title, `${help} The newest ${histogram.of} games.`, {
    x: middles, xLabel: title.split(" ")[0].toLowerCase().replace(/s$/, ""), height: 150,
    series: [{ label: "games", values: counts, colour: "c1", bars: true }],
  });
}

/** The speed, and its limit where the number of steps of an update is known. */
function speeds({ curves, settings }) {
  const series = [{ label: "speed", values: curves["time/steps_per_second"], colour: "c1" }];
  if (!settings.ppo) return series;
  const steps = settings.ppo.num_envs * settings.ppo.rollout_steps;
  const limit = curves["time/env"].map((_, row) => {
    const busy = ["time/env", "time/inference", "time/learn"].map((column) => curves[column][row]);
    return busy.includes(null) ? null : steps / busy.reduce((sum, value) => sum + value, 0);
  });
  return [...series, { label: "limit", values: limit, colour: "soft" }];
}

/** Phases stacked: each line is the sum of the phases up to it. */
function fillTime(curves, axis) {
  const updates = curves.env_steps.length, used = PHASES.filter(([column]) => curves[column].some((value) => value > 0));
  const totals = used.map(([column]) => curves[column].reduce((sum, value) => sum + (value || 0), 0));
  const all = totals.reduce((sum, value) => sum + value, 0);
  if (!all) return;
  const bar = element("div", { class: "shares", role: "img", "aria-label":
    used.map(([, label], place) => `${label} ${Math.round(100 * totals[place] / all)} %`).join(", ") });
  const legend = element("ul", { class: "legend" });
  used.forEach(([, label, shade], place) => {
    const share = element("span", { class: shade });
    share.style.width = `${100 * totals[place] / all}%`;
    bar.append(share);
    legend.append(element("li", {}, [element("i", { class: shade }), `${label} ${Math.round(100 * totals[place] / all)} %`]));
  });
  byId("phases").append(element("div", { class: "card full" }, [
    element("h3", { text: "Shares of the whole run" }), bar, legend,
    element("p", { class: "help", text:
      "World: stepping the environments. Acting: the network's decisions. Learning: gradient steps. With several ranks, the mean over them." }),
  ]));
  const sums = used.map((_, upTo) => Array.from({ length: updates }, (_, row) =>
    used.slice(0, upTo + 1).reduce((sum, [column]) => sum + (curves[column][row] || 0), 0)));
  const stacked = used.map(([, label, shade], place) => ({ label, values: sums[place], colour: shade, fill: true })).reverse();
  chartCard(byId("phases"), "Seconds of an update, stacked",
    "A layer that grows tells what made the run slower: games that became longer, or a busy machine.",
    { x: axis.of(curves), xLabel: axis.label, series: stacked, height: 220, legend: false, isFull: true });
}
