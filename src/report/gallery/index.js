// The index: features searched and sorted, and the classes. Text of the data goes through `textContent` only, so that
// nothing of it can become markup.

const PAGE = 200; // rows that are shown at first, and more at a time

const counted = (n) => n.toLocaleString("en");
const short = (value) => String(Number(value.toPrecision(4)));

const byText = (a, b) => a.localeCompare(b, "en", { numeric: true });
// Each column: its title, the class of its cells, and what it is sorted by; numbers begin with the largest.
const columns = [
  { title: "", className: "" },
  { title: "Feature", className: "", compare: (a, b) => byText(String(a.name), String(b.name)) },
  { title: "Label", className: "text", compare: (a, b) => (a.label === null) - (b.label === null) || byText(a.label ?? "", b.label ?? "") },
  { title: "Images", className: "number", compare: (a, b) => b.n_firing - a.n_firing },
  { title: "Largest", className: "number", compare: (a, b) => b.largest - a.largest },
  { title: "Class", className: "", compare: (a, b) => (a.class === null) - (b.class === null) || byText(a.class ?? "", b.class ?? "") },
];

const state = { query: "", sortedBy: 1, isReversed: false, nShown: PAGE };

function row({ name, label, page, n_firing: n, largest, class: strongest, picture }) {
  const image = picture === null ? "" : element("img", { src: `pictures/${picture}`, alt: "", loading: "lazy" });
  const link = (content) => element("a", { href: `features/${page}` }, content);
  const share = data.n_images > 0 ? ` (${Math.round((100 * n) / data.n_images)} %)` : "";
  return ["", image, link(String(name)), link(labelElement(label)), counted(n) + share, short(largest), element("bdi", { textContent: strongest ?? "" })];
}

function draw() {
  const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  const isFound = ({ name, label }) => {
    const text = `${name} ${label ?? ""}`.toLowerCase();
    return words.every((word) => text.includes(word));
  };
  const { compare } = columns[state.sortedBy];
  const sign = state.isReversed ? -1 : 1;
  const found = data.features.filter(isFound).sort((a, b) => sign * compare(a, b));
  const made = table(columns.map(({ title, className }) => [title, className]), found.slice(0, state.nShown).map(row), "features");
  [...made.querySelectorAll("th")].forEach((head, i) => {
    const { title, compare: canSort } = columns[i];
    if (!canSort) return;
    const isSorted = i === state.sortedBy;
    head.setAttribute("aria-sort", isSorted ? (state.isReversed ? "descending" : "ascending") : "none");
    const arrow = isSorted ? (state.isReversed ? " ▴" : " ▾") : "";
    const button = element("button", { textContent: title + arrow });
    button.dataset.column = i;
    head.replaceChildren(button);
  });
  find("#features").replaceChildren(made);
  find("#n-found").textContent = `${counted(found.length)} of ${counted(data.features.length)}`;
  find("#more").hidden = found.length <= state.nShown;
}

find("#search").addEventListener("input", ({ target }) => {
  Object.assign(state, { query: target.value, nShown: PAGE });
  draw();
});
find("#features").addEventListener("click", ({ target }) => {
  const column = target.closest("th button")?.dataset.column;
  if (column === undefined) return;
  const sortedBy = Number(column);
  Object.assign(state, { sortedBy, isReversed: sortedBy === state.sortedBy && !state.isReversed, nShown: PAGE });
  draw();
  find(`[data-column="${column}"]`).focus();
});
find("#more").addEventListener("click", () => {
  state.nShown += PAGE;
  draw();
});

const images = data.settings === null ? "images with a row; how many were scanned is not known" : "images";
find("#about").textContent = `${data.table} · ${counted(data.n_images)} ${images}. A feature’s activation on an image is the largest one on the image’s rows; “Images” is how many activate it, and “Class” the class with the largest mean.`;
find("#classes-section").hidden = data.classes.length === 0;
find("#classes").append(...data.classes.map(({ class: name, page, n_images: n }) => {
  const link = element("a", { href: `classes/${page}` }, element("bdi", { textContent: name }));
  return element("li", {}, link, ` ${counted(n)}`);
}));
const settings = { Table: data.table, ...data.settings };
for (const [name, text] of Object.entries(settings)) {
  find("#scan").append(element("dt", { textContent: name }), element("dd", { textContent: text }));
}
draw();
