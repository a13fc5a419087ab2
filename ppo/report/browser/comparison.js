"use strict";

/* Several runs on one page: final returns, learning curves and performance profiles of groups of seeds. */

const SHADES = ["c1", "c3", "c2", "c4", "c5", "c6"];
const AXES = [["steps", "Steps"], ["minutes", "Minutes"], ["episodes", "Games"]];

const FACTS = ["started", "command", "ranks", "hosts", "code", "commit"];

const shadeOf = (place) => SHADES[place % SHADES.length];

function fillComparison(content) {
  const { groups } = content, seeds = groups.reduce((sum, group) => sum + group.seeds.length, 0);
  byId("name").textContent = content.name;
  byId("summary").textContent = `${seeds} ${seeds === 1 ? "run" : "runs"} in ${groups.length} `
    + `${groups.length === 1 ? "group" : "groups"}. Made ${content.made}.`;
  fillFinals(groups, content.goal);
  fillReturns(groups);
  fillProfile(content);
  fillRan(groups.flatMap((group) => group.seeds));
}

/** A row for each group: its seeds as dots on one scale, the interval, and the numbers. */
function fillFinals(groups, goal) {
  const all = groups.flatMap((group) => [...group.seeds.map((seed) => seed.final), group.low, group.high]);
  const low = Math.min(...all), high = Math.max(...all);
  const at = (value) => `${high > low ? 2 + 96 * (value - low) / (high - low) : 50}%`;
  const titles = ["runs", "seeds", "", "interquartile mean", "mean", "deviation", "steps", "minutes"];
  if (goal !== null) titles.push(`steps to ${short(goal)}`);
  const rows = groups.map((group, place) => {
    const line = element("span", { class: "rung strip" });
    const bar = element("span", { class: `span ${shadeOf(place)}` });
    bar.style.left = at(group.low);
    bar.style.width = `calc(${at(group.high)} - ${at(group.low)})`;
    const mark = element("span", { class: `tick ${shadeOf(place)}` });
    mark.style.left = at(group.iqm);
    line.append(bar, mark, ...group.seeds.map((seed) => {
      const dot = element("span", { class: `dot small ${shadeOf(place)}`, title: `${seed.name}: ${short(seed.final)}` });
      dot.style.left = at(seed.final);
      return dot;
    }));
    const interval = group.seeds.length > 1 ? ` (${short(group.low)} to ${short(group.high)})` : "";
    const numbers = [`${short(group.iqm)}${interval}`,
      ...[group.mean, group.deviation, group.steps, group.minutes].map(short)];
    if (goal !== null) numbers.push(`${short(group.toGoal)} (${group.reached} of ${group.seeds.length})`);
    return element("tr", {}, [
      element("th", { scope: "row", text: group.label }), element("td", { class: "numeric", text: group.seeds.length }),
      element("td", { class: "wide", "aria-hidden": "true" }, [line]),
      ...numbers.map((text) => element("td", { class: "numeric", text })),
    ]);
  });
  const head = element("tr", {}, titles.map((text) => text ? element("th", { scope: "col", text }) : element("td", { class: "wide" })));
  byId("finals").append(element("table", { class: "ladder finals" }, [head, ...rows]));
}

function fillReturns(groups) {
  let axis = "steps", showsSeeds = false, state = null;
  const holder = byId("curves");
  const show = () => {
    if (state) charts.splice(charts.indexOf(state), 1);
    holder.replaceChildren();
    const series = [], bands = [], { places } = groups[0].axes[axis];
    groups.forEach((group, number) => {
      const { mean, low, high, seeds } = group.axes[axis], shade = shadeOf(number), first = series.length;
      const thin = { colour: shade, isKept: true, isUnnamed: true, width: 0 };
      series.push({ label: `${group.label}, high`, values: high, ...thin }, { label: `${group.label}, low`, values: low, ...thin },
        { label: group.label, values: mean, colour: shade, isKept: true, width: 2.25 });
      bands.push({ high: first, low: first + 1, shade });
      if (showsSeeds) {
        seeds.forEach((values, seed) => series.push(
          { label: group.seeds[seed].name, values, colour: shade, isKept: true, isUnnamed: true, width: 0.75 }));
      }
    });
    state = chartCard(holder, "Return", "Mean of the last 100 games, raw.",
      { x: places, xLabel: axis === "episodes" ? "games" : axis, series, bands, height: 360, legend: true, isFull: true });
  };
  for (const [name, label] of AXES) {
    byId("axes").append(element("button", { type: "button", text: label, "aria-pressed": String(name === axis),
      onclick: (event) => {
        axis = name;
        for (const button of byId("axes").children) button.setAttribute("aria-pressed", button === event.currentTarget);
        show();
      } }));
  }
  byId("seeds").addEventListener("change", () => { showsSeeds = byId("seeds").checked; show(); });
  show();
}

function fillProfile({ groups, thresholds }) {
  if (groups.every((group) => group.seeds.length < 2)) {
    byId("profile-section").hidden = true;
    return;
  }
  const series = groups.map((group, place) => ({ label: group.label, values: group.profile, colour: shadeOf(place) }));
  chartCard(byId("profile"), "Share of seeds above a return", "1 is all of them.",
    { x: thresholds, xLabel: "final return", series, height: 240, range: [0, 1.02], legend: true, isFull: true });
}

/** A row for each run, and a column for each fact that is known of any. */
function fillRan(runs) {
  const known = FACTS.filter((name) => runs.some(({ facts }) => facts[name]));
  byId("ran-section").hidden = !known.length;
  const head = element("tr", {}, ["run", ...known].map((text) => element("th", { scope: "col", text })));
  const rows = runs.map(({ name, facts }) => element("tr", {}, [element("th", { scope: "row", text: name }),
    ...known.map((fact) => element("td", {}, [fact === "command" && facts[fact]
      ? element("code", { text: facts[fact] }) : facts[fact] || ""]))]));
  byId("ran").append(element("table", { class: "ran" }, [head, ...rows]));
}

drawPage(fillComparison, () => {});
