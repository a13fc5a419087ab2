"use strict";

/** Follow the system's theme until the button is used; call `redraw` when colours have changed. */
function setUpTheme(redraw) {
  const root = document.documentElement, button = byId("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const show = (isDark) => {
    root.dataset.theme = isDark ? "dark" : "light";
    button.textContent = isDark ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to the ${isDark ? "light" : "dark"} theme`);
    redrawAll();
    redraw();
  };
  system.addEventListener("change", () => show(system.matches));
  button.addEventListener("click", () => show(root.dataset.theme !== "dark"));
  show(system.matches);
}

/** Draw a page by `fill(content, array)`, or say why it cannot be drawn. */
async function drawPage(fill, redraw) {
  const root = document.documentElement;
  try {
    setUpTheme(redraw);
    const { content, array } = await unpack(byId("data").textContent.trim());
    fill(content, array);
    root.dataset.ready = "yes";
  } catch (error) {
    byId("trouble").hidden = false;
    byId("trouble").textContent = `This page could not be drawn: ${error.message}. It needs a browser of 2023 or later.`;
    root.dataset.ready = "failed";
  }
}
