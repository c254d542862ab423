// Tables, and the numbers in them.

const fixed = (value, digits = 3) => (value === null ? "–" : value.toFixed(digits));

// A table whose columns are [title, class of its cells], and whose rows are [class, cell, cell …].
function table(columns, rows, className = "") {
  const row = (tag, className, cells) => {
    const made = cells.map((content, i) => element(tag, { className: columns[i][1] }, content));
    return element("tr", { className }, ...made);
  };
  const head = row("th", "", columns.map(([title]) => title));
  const body = rows.map(([className, ...cells]) => row("td", className, cells));
  return element("table", { className }, element("thead", {}, head), element("tbody", {}, ...body));
}
