"use strict";

/* Compares the page's agent with the saved one, in every step of the game. */

const MILLISECONDS_OF_WORK = 25;
const MILLISECONDS_OF_REST = 15;
/** The mean is the best of continuous actions; it is the same if it differs by less than this part of the range. */
const LARGEST_DIFFERENCE_OF_MEANS = 0.02;

/** Return whether two groups of `readPolicy` have the same best action. */
function hasSameBest(one, other) {
  if (one.density) return Math.abs(one.share - other.share) < LARGEST_DIFFERENCE_OF_MEANS;
  return String(bestOf(one)) === String(bestOf(other));
}

/**
 * Return how far two policies, lists of the groups of `readPolicy`, differ: the largest difference of a probability; of
 * continuous actions, a bound on the difference for any set of actions, over all dimensions together.
 */
function differenceOf(groups, others) {
  if (groups[0].density) return boundOf(groups.reduce((product, one, number) => product * overlapOf(one, others[number]), 1));
  return Math.max(...groups.flatMap(({ probabilities }, number) =>
    probabilities.map((value, place) => Math.abs(value - others[number].probabilities[place]))));
}

/** Return the bound on the total variation distance that a Bhattacharyya coefficient gives. */
const boundOf = (overlap) => Math.sqrt(Math.max(0, 1 - overlap * overlap));

/** Return the Bhattacharyya coefficient of two densities. That of independent dimensions is the product of theirs. */
const overlapOf = (one, other) => one.alpha ? betaOverlap(one, other) : gaussianOverlap(one, other);

function gaussianOverlap(one, other) {
  const variances = one.deviation ** 2 + other.deviation ** 2;
  return Math.sqrt(2 * one.deviation * other.deviation / variances) * Math.exp(-0.25 * (one.share - other.share) ** 2 / variances);
}

function betaOverlap(one, other) {
  const logBeta = ({ alpha, beta }) => logGamma(alpha) + logGamma(beta) - logGamma(alpha + beta);
  const between = { alpha: (one.alpha + other.alpha) / 2, beta: (one.beta + other.beta) / 2 };
  return Math.exp(logBeta(between) - 0.5 * (logBeta(one) + logBeta(other)));
}

/** Return a number of two digits that is at least `value`. */
function roundedUp(value) {
  const unit = 10 ** Math.floor(Math.log10(value) - 1);
  return value && Math.ceil(value / unit) * unit;
}

/** Ask the page's agent about every step of the game and say how far it answers as the saved agent did. */
function check(game, network) {
  let step = 0, agreed = 0, worst = 0;
  const holder = byId("check"), root = document.documentElement;
  const work = () => {
    const until = performance.now() + MILLISECONDS_OF_WORK;
    for (; step < game.steps && performance.now() < until; step++) {
      const saved = readPolicy(game, game.outputsAt(step));
      const own = readPolicy(game, network.run(game.observationAt(step)).outputs);
      if (own.every((group, number) => hasSameBest(group, saved[number]))) agreed++;
      worst = Math.max(worst, differenceOf(own, saved));
    }
    if (step < game.steps) {
      holder.textContent = `Checking the agent in this page against the saved one: ${step} of ${game.steps} steps.`;
      setTimeout(work, MILLISECONDS_OF_REST);
      return;
    }
    const isContinuous = Boolean(game.distribution.low);
    const rule = isContinuous ? ` (a mean within ${100 * LARGEST_DIFFERENCE_OF_MEANS} % of the range)` : "";
    const difference = isContinuous
      ? `no set of actions differs by more than ${short(roundedUp(worst))} in probability`
      : `the largest difference of a probability is ${short(worst)}`;
    holder.textContent = `Checked just now, in this browser: the agent in this page takes the same best action${rule} as the saved one in `
      + `${agreed.toLocaleString("en")} of ${game.steps.toLocaleString("en")} steps; ${difference}.`;
    Object.assign(root.dataset, { checked: step, agreed, worst });
  };
  if (game.distribution.kind !== "other") setTimeout(work, 300);
}
