"use strict";

// ---- Tables: a click on a heading sorts by that column, a second one the other way round.

const order = new Intl.Collator("en", { numeric: true });

function compare(a, b) {
  if (a === b) return 0;
  // What is missing comes last, whichever way the table is sorted.
  if (a === "" || a === "nan") return Infinity;
  if (b === "" || b === "nan") return -Infinity;
  const difference = Number(a) - Number(b);
  return Number.isNaN(difference) ? order.compare(a, b) : difference;
}

function sort(heading) {
  const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const body = heading.closest("table").tBodies[0];
  const value = (row) => row.cells[heading.cellIndex].dataset.value;
  const rows = [...body.rows].sort((a, b) => {
    const result = compare(value(a), value(b));
    return Number.isFinite(result) ? direction * result : Math.sign(result);
  });
  body.append(...rows);
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
}

for (const heading of document.querySelectorAll("thead th")) {
  heading.firstElementChild.addEventListener("click", () => sort(heading));
}

// ---- Plots: drawn when they come near the screen, in the colors of the page.

const coarse = matchMedia("(pointer: coarse)").matches;

function themed(layout) {
  const style = getComputedStyle(document.body);
  // light-dark() is resolved for real properties only, not for variables.
  const [ink, line, card] = ["ink", "line", "card"].map((name) => {
    document.body.style.outlineColor = `var(--${name})`;
    return style.outlineColor;
  });
  document.body.style.outlineColor = "";
  const colors = {
    "font.color": ink,
    "hoverlabel.bgcolor": card,
    "hoverlabel.bordercolor": line,
    "hoverlabel.font.color": ink,
  };
  for (const axis of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
    colors[`${axis}.gridcolor`] = colors[`${axis}.linecolor`] = line;
  }
  return colors;
}

async function draw(plot) {
  const { data, layout } = JSON.parse(plot.nextElementSibling.textContent);
  // A finger on a plot scrolls the page; a mouse zooms.
  if (coarse) layout.dragmode = false;
  const config = { responsive: true, displayModeBar: false };
  await Plotly.newPlot(plot, data, layout, config);
  await Plotly.relayout(plot, themed(layout));
  plot.dataset.drawn = "true";
}

const observer = new IntersectionObserver(
  (entries) => {
    for (const entry of entries.filter((entry) => entry.isIntersecting)) {
      observer.unobserve(entry.target);
      draw(entry.target);
    }
  },
  { rootMargin: "600px" },
);
const plots = document.querySelectorAll(".plot");
for (const plot of plots) observer.observe(plot);

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const plot of plots) if (plot.dataset.drawn) Plotly.relayout(plot, themed(plot.layout));
});

// Paper shows what the screen has not reached yet.
addEventListener("beforeprint", () => {
  for (const plot of plots) if (!plot.dataset.drawn) draw(plot);
});
