"use strict";

/* Puts the page together. */

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

drawPage((content, array) => {
  fillSummary(content);
  fillCurves(content);
  fillGame(content, array);
}, () => { if (player) player.showNow(); });
