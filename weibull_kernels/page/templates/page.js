"use strict";

const root = document.documentElement;
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const themes = JSON.parse(document.getElementById("themes").textContent);
const narrow = matchMedia("(max-width: 600px)");
const touch = matchMedia("(pointer: coarse)");

function theme() {
  return root.dataset.theme || (prefersDark.matches ? "dark" : "light");
}

// A panel is drawn when it comes near the window: a page may hold many.
const drawn = new Set();
const figures = new WeakMap();

function draw(panel) {
  drawn.add(panel);
  if (!figures.has(panel)) {
    figures.set(panel, JSON.parse(panel.querySelector("script").textContent));
  }
  const plot = panel.querySelector(".plot");
  const chosen = Array.from(panel.querySelectorAll("select"), (select) => select.value).join(",");
  const figure = figures.get(panel)[chosen];
  const layout = {
    ...figure.layout,
    template: themes[theme()],
    dragmode: touch.matches ? false : "zoom", // a finger scrolls the page
  };
  if (narrow.matches) {
    layout.font = { size: 11 };
    if (layout.xaxis.type === "category") layout.xaxis = { ...layout.xaxis, tickangle: -90 };
  }
  plot.style.height = layout.height + "px";
  return Plotly.react(plot, figure.data, layout, {
    responsive: true,
    displaylogo: false,
    displayModeBar: narrow.matches ? false : "hover",
    // Named, not those that come: one of them would send the figure to a server.
    modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
    plotlyServerURL: "",
  });
}

const observer = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        observer.unobserve(entry.target);
        draw(entry.target.closest(".panel"));
      }
    }
  },
  { rootMargin: "600px" },
);

for (const panel of document.querySelectorAll(".panel")) {
  const plot = panel.querySelector(".plot");
  if (plot) observer.observe(plot);
  for (const select of panel.querySelectorAll("select")) {
    select.addEventListener("change", () => draw(panel));
  }
}

const redraw = () => drawn.forEach(draw);
prefersDark.addEventListener("change", redraw);
narrow.addEventListener("change", redraw);
addEventListener("beforeprint", () => {
  document.querySelectorAll(".panel:has(.plot)").forEach(draw);
});

const names = { "": "as the system", light: "light", dark: "dark" };
document.getElementById("theme").addEventListener("click", (event) => {
  const order = Object.keys(names);
  const next = order[(order.indexOf(root.dataset.theme || "") + 1) % order.length];
  if (next) root.dataset.theme = next;
  else delete root.dataset.theme;
  event.currentTarget.textContent = "theme: " + names[next];
  redraw();
});

// Numbers by their value, names as people count: layers.2 before layers.10. What is not known comes last.
const collator = new Intl.Collator("en", { numeric: true });

function sort(heading) {
  const table = heading.closest("table");
  const column = heading.cellIndex;
  const body = table.tBodies[0];
  const first = column === 0 ? "ascending" : "descending";
  const other = column === 0 ? "descending" : "ascending";
  const order = heading.getAttribute("aria-sort") === first ? other : first;
  for (const one of table.tHead.rows[0].cells) one.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const keyed = Array.from(body.rows, (row) => {
    const cell = row.cells[column];
    return { row, text: cell.textContent, value: cell.dataset.v === undefined ? null : Number(cell.dataset.v.replace("inf", "Infinity")) };
  });
  keyed.sort((a, b) => {
    if (a.value !== null && b.value !== null) return sign * (a.value - b.value);
    if (a.value !== null || b.value !== null) return a.value === null ? 1 : -1;
    return sign * collator.compare(a.text, b.text);
  });
  body.append(...keyed.map((one) => one.row));
}

for (const heading of document.querySelectorAll("th")) {
  heading.querySelector("button").addEventListener("click", () => sort(heading));
}

for (const input of document.querySelectorAll("input.filter")) {
  const bar = input.closest(".bar");
  const rows = Array.from(bar.nextElementSibling.querySelectorAll("tbody tr"));
  const filter = () => {
    const wanted = input.value.toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      shown += !row.hidden;
    }
    bar.querySelector(".count").textContent = `${shown} of ${rows.length}`;
  };
  input.addEventListener("input", filter);
  filter();
}
