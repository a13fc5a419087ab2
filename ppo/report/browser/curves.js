"use strict";

/* The curves of a training: title, column of progress.csv, colour, and what is usual. */

const CURVES = [
  ["Entropy", "update/entropy", "c2",
    "How random the policy is, in nats. It falls as the policy makes up its mind; to zero early on means it stopped exploring."],
  ["Change per update (KL)", "update/approx_kl", "c3",
    "How far an update moves the policy. 0.003 to 0.03 is usual; peaks are steps that were too large."],
  ["Clip fraction", "update/clip_fraction", "c4",
    "The share of samples held back by PPO's clipping. 5 to 20 % is usual."],
  ["Explained variance", "update/explained_variance", "c5",
    "How much of the returns the value predicts: 1 is all, 0 is nothing, below 0 is worse than a constant."],
  ["Value loss", "update/value_loss", "c6",
    "The error of the value. It may rise while the policy improves, since there is more return to predict."],
  ["Learning rate", "update/learning_rate", "c2", "The size of Adam's steps."],
];

function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
