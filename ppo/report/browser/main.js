"use strict";

/* Puts the page together: the summary, the game, and a check of the page's agent against the saved one. */

const MILLISECONDS_OF_WORK = 25;
const MILLISECONDS_OF_REST = 15;

let player = null;

function fillGame(content, array) {
  if (!content.game) {
    byId("agent-lead").textContent = content.reason || "There is no agent to show.";
    return;
  }
  const game = new Recording(content.game, array);
  const network = content.network ? new Network(content.network, array) : null;
  const whole = game.isWhole ? "A game" : `The first ${game.steps} steps of a game`;
  const score = game.isOver ? `, return ${short(game.return)} after ${game.length} steps` : "";
  byId("agent-lead").textContent =
    `${whole} by the saved agent${score}: the first one of its seed, not a chosen one. ${content.reason || ""}`;
  byId("stage").hidden = false;
  player = new Player(game, network);
  fillActionCounts(game);
  if (network) check(game, network);
}

/** Ask the page's agent about every step of the game and compare its answers with the saved agent's. */
function check(game, network) {
  let step = 0, agreed = 0, worst = 0;
  const holder = byId("check"), root = document.documentElement;
  const isSame = (groups, saved) => groups.every((group, number) => {
    if (!group.density) {
      group.probabilities.forEach((value, place) => {
        worst = Math.max(worst, Math.abs(value - saved[number].probabilities[place]));
      });
      return bestOf(group.probabilities) === bestOf(saved[number].probabilities);
    }
    const difference = Math.abs(group.share - saved[number].share);
    worst = Math.max(worst, difference);
    return difference < 0.02;
  });
  const work = () => {
    const until = performance.now() + MILLISECONDS_OF_WORK;
    while (step < game.steps && performance.now() < until) {
      const outputs = network.run(game.observationAt(step)).outputs;
      if (isSame(readPolicy(game, outputs), readPolicy(game, game.outputsAt(step)))) agreed++;
      step++;
    }
    if (step < game.steps) {
      holder.textContent = `Checking the agent in this page against the saved one: ${step} of ${game.steps} steps.`;
      setTimeout(work, MILLISECONDS_OF_REST);
      return;
    }
    const what = game.distribution.low ? "mean (as a part of its range)" : "probability";
    holder.textContent = `Checked just now, in this browser: the agent in this page takes the same best action as the saved one in `
      + `${agreed.toLocaleString("en")} of ${game.steps.toLocaleString("en")} steps; the largest difference of a ${what} is ${short(worst)}.`;
    Object.assign(root.dataset, { checked: step, agreed, worst });
  };
  if (game.distribution.kind !== "other") setTimeout(work, 300);
}

drawPage((content, array) => {
  fillSummary(content);
  fillCurves(content);
  fillGame(content, array);
}, () => { if (player) player.showNow(); });
