// A class's page. Text of the data goes through `textContent` only, so that nothing of it can become markup.

const counted = (n) => n.toLocaleString("en");
const percent = (share) => `${Math.round(100 * share)} %`;

document.title = `Class ${data.class}`;
find("#name").textContent = data.class;
const withRow = data.counts_known ? "" : " with a row";
const others = data.n_outside === 0 ? "there are no others to compare with" : `${counted(data.n_outside)} others`;
find("#about").textContent = `${data.table} · ${counted(data.n_inside)} image${data.n_inside === 1 ? "" : "s"}${withRow}; ${others}`;

const columns = [["Feature", ""], ["Label", "text"], ["More", "number"], ["Mean inside", "number"], ["Outside", "number"], ["Share inside", "number"], ["Outside", "number"]];
const rows = data.features.map(({ name, label, page, difference, means, shares }) => {
  const link = (content) => (page === null ? content : element("a", { href: `../features/${page}` }, content));
  return ["", link(String(name)), link(labelElement(label)), fixed(difference), ...means.map((mean) => fixed(mean)), ...shares.map(percent)];
});
find("#features").append(rows.length > 0 ? table(columns, rows, "captions") : element("p", { className: "note", textContent: "There is none." }));
