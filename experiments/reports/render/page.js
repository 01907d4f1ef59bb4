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

// Plotly comes compressed. It is unpacked at once, because paper does not wait for it.
async function unpack(text) {
  const packed = new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))]);
  const stream = packed.stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

const library = document.getElementById("plotly");
const unpacked = library && unpack(library.textContent);

async function draw(plot) {
  if (!window.Plotly) await unpacked;
  const { data, layout } = JSON.parse(plot.nextElementSibling.textContent);
  // A finger on a plot scrolls the page; a mouse zooms.
  if (coarse) layout.dragmode = false;
  const config = { responsive: true, displayModeBar: false };
  await Plotly.newPlot(plot, data, layout, config);
  await Plotly.relayout(plot, themed(layout));
  plot.dataset.drawn = "true";
  if (plot.closest("section").querySelector(".controls")) choose(plot);
}

// ---- Choice: the table of a section is the legend of its plots.

function average(values, window) {
  if (window === 1) return values;
  const reach = (window - 1) / 2;
  return values.map((_, place) => {
    const near = values.slice(Math.max(0, place - reach), place + reach + 1);
    return near.reduce((sum, value) => sum + value, 0) / near.length;
  });
}

function choose(plot) {
  const section = plot.closest("section");
  const window = Number(section.querySelector(".controls select")?.value ?? 1);
  const hidden = new Set(
    [...section.querySelectorAll("[data-group]")]
      .filter((box) => !box.checked || box.closest("tr").hidden)
      .map((box) => box.dataset.group),
  );
  plot.measured ??= plot.data.map((trace) => trace.y);
  // What is left fills the plot; with all rows the limits are those that the page came with.
  plot.limits ??= ["xaxis", "yaxis"]
    .map((axis) => [axis, plot.layout[axis]])
    .filter(([, { range, tickvals }]) => !(range && tickvals)) // names have their places
    .map(([axis, { range }]) => [axis, range && [...range]]);
  const limits = plot.limits.map(([axis, range]) =>
    hidden.size || !range ? [`${axis}.autorange`, true] : [`${axis}.range`, [...range]],
  );
  Plotly.relayout(plot, Object.fromEntries(limits));
  const line = (trace) => !trace.fill && (trace.mode ?? "").includes("lines");
  Plotly.restyle(plot, {
    visible: plot.data.map((t) => !hidden.has(t.legendgroup) && (window === 1 || !t.fill)),
    y: plot.data.map((t, place) =>
      line(t) ? average(plot.measured[place], window) : plot.measured[place],
    ),
  });
}

function chooseAgain(section) {
  for (const plot of section.querySelectorAll(".plot")) if (plot.dataset.drawn) choose(plot);
}

for (const controls of document.querySelectorAll(".controls")) {
  const section = controls.closest("section");
  controls.hidden = false;
  section.addEventListener("change", () => chooseAgain(section));
  controls.querySelector("input")?.addEventListener("input", ({ target }) => {
    const words = target.value.toLowerCase().split(/\s+/);
    for (const row of controls.closest(".card").querySelectorAll("tbody tr")) {
      const label = row.cells[0].textContent.toLowerCase();
      row.hidden = !words.every((word) => label.includes(word));
    }
    chooseAgain(section);
  });
}

// ---- Sections: a link to one that is folded opens it, and so does paper.

function reveal(hash) {
  const details = document.getElementById(hash.slice(1))?.querySelector("details");
  if (details) details.open = true;
}
// A link that was followed before changes nothing in the address, but opens its section again.
addEventListener("click", ({ target }) => {
  const link = target.closest("a[href^='#']");
  if (link) reveal(link.hash);
});
addEventListener("hashchange", () => reveal(location.hash));
reveal(location.hash);

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
  for (const details of document.querySelectorAll("section > details")) details.open = true;
  for (const plot of plots) if (!plot.dataset.drawn) draw(plot);
});
