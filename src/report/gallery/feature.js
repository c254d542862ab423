// A feature's page. Text of the data goes through `textContent` only, so that nothing of it can become markup.

const note = (text) => element("p", { className: "note", textContent: text });

function featureCells({ name, label, page }) {
  const link = (content) => (page === null ? content : element("a", { href: page }, content));
  return [link(String(name)), link(labelElement(label))];
}

function histogram({ histogram: counts, largest }) {
  const most = Math.max(...counts);
  const [width, height] = [FRAME.right - FRAME.left, FRAME.bottom - FRAME.top];
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": "Images by activation" });
  for (const value of ticks(0, most).filter(Number.isInteger)) {
    const at = FRAME.bottom - (height * value) / most;
    svg.append(
      drawn("line", { x1: FRAME.left, x2: FRAME.right, y1: at, y2: at, class: "grid" }),
      drawn("text", { x: FRAME.left - 6, y: at + 4, class: "end" }, counted(value)),
    );
  }
  counts.forEach((count, i) => {
    // A bar of few images is seen too.
    const length = count === 0 ? 0 : Math.max(1.5, (height * count) / most);
    const [from, to] = [i, i + 1].map((step) => short((step * largest) / counts.length));
    const bar = { x: FRAME.left + (i * width) / counts.length, y: FRAME.bottom - length, width: width / counts.length - 1, height: length, class: "bar" };
    svg.append(drawn("rect", bar, drawn("title", {}, `${from} to ${to}: ${counted(count)}`)));
  });
  for (const value of ticks(0, largest)) {
    const at = FRAME.left + (width * value) / largest;
    svg.append(drawn("text", { x: at, y: FRAME.bottom + 16, class: "middle" }, String(value)));
  }
  svg.append(drawn("text", { x: (FRAME.left + FRAME.right) / 2, y: HEIGHT - 2, class: "middle" }, "activation"));
  return svg;
}

function tenth({ n_images: n, items }, i) {
  const [from, to] = [i, i + 1].map((step) => short((step * data.largest) / data.tenths.length));
  const title = element("h3", { textContent: `${from} to ${to}: ${counted(n)} image${n === 1 ? "" : "s"}` });
  return element("div", { className: "tenth" }, title, element("div", { className: "items" }, ...items.map(itemElement)));
}

function classTable() {
  const columns = [["Class", "text"], ["Images", "number"], ["Share active", "number"], ["Mean", "number"]];
  const rows = data.classes.map(({ class: name, page, n_images: n, n_firing: nFiring, mean }) => {
    const shown = element("bdi", { textContent: name ?? "none", className: name === null ? "no-label" : "" });
    const cell = page === null ? shown : element("a", { href: `../classes/${page}` }, shown);
    return ["", cell, counted(n), percent(nFiring / n), short(mean)];
  });
  return table(columns, rows);
}

const { name, label } = data;
document.title = label === null ? `Feature ${name}` : `${name} ${label}`;
find("#name").textContent = `Feature ${name}`;
find("#label").append(labelElement(label));
if (data.neuronpedia !== null) {
  find("#elsewhere").append("· ", element("a", { href: data.neuronpedia, rel: "noreferrer", textContent: "On Neuronpedia" }));
}
const among = data.counts_known ? `${counted(data.n_images)} images` : `${counted(data.n_images)} images with a row`;
const share = data.n_images > 0 ? ` (${percent(data.n_firing / data.n_images)})` : "";
find("#about").textContent = `${data.table} · active on ${counted(data.n_firing)} of ${among}${share} · largest activation ${short(data.largest)}`;

if (data.n_firing > 0) {
  find("#histogram").append(histogram(data));
  find("#top").append(...data.top.map(itemElement));
  find("#tenths").append(...data.tenths.map(tenth).filter((_, i) => data.tenths[i].n_images > 0).reverse());
  const left = data.n_classes - data.classes.length;
  find("#classes-note").textContent = `The share of a class’s images that activate it, and the mean of their activations, 0 where one does not.${left > 0 ? ` ${counted(left)} classes with smaller means are left out.` : ""}`;
  find("#classes").append(classTable());
} else {
  for (const part of ["#histogram", "#top", "#tenths", "#classes"]) find(part).append(note("No image activates it."));
}
if (data.together.length > 0) {
  const columns = [["Feature", ""], ["Label", "text"], ["Correlation", "number"], ["Both", "number"]];
  const rows = data.together.map((other) => ["", ...featureCells(other), fixed(other.correlation, 2), counted(other.n_common)]);
  find("#together").append(table(columns, rows));
} else {
  find("#together").append(note("There is none."));
}

find("#maps").hidden = !find(".mapped");
find("#maps input").addEventListener("change", ({ target }) => find("main").classList.toggle("plain", !target.checked));
