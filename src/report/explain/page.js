// The page, made once. Text of the data goes through `textContent` and `append` only.

// Numbers fit into patches of grids that are no wider.
const N_COLUMNS_WITH_NUMBERS = 10;

const nats = (value) => signed(value.toFixed(3));
const place = (patch) => patch.patch?.join(",") ?? patch.position;
const named = (cause) => [`Feature ${cause.feature} `, labelElement(cause.label)];

// What a view shows of a feature, with the patches where it was ablated alone.
function figure(cause, view) {
  const [nRows, nColumns] = view.grid;
  const active = new Map(cause.active);
  const tried = new Map(cause.patches.map((patch) => [patch.position, patch]));
  const cells = Array.from({ length: nRows * nColumns }, (_, i) => {
    const position = view.first + Math.floor(i / nColumns) * view.stride + (i % nColumns);
    const share = (active.get(position) ?? 0) / cause.max;
    const patch = tried.get(position);
    const cell = element("span");
    if (share > 0) {
      const rgb = colour(share);
      cell.style.background = `rgb(${rgb.join(" ")} / ${0.85 * Math.min(1, share / FADING)})`;
      cell.style.color = isLight(rgb) ? "#000" : "#fff";
    }
    if (patch) {
      cell.className = "tried";
      cell.title = `patch ${place(patch)}: ${nats(patch.effect)} nats`;
      if (nColumns <= N_COLUMNS_WITH_NUMBERS) cell.textContent = signed(patch.effect.toFixed(2));
    }
    return cell;
  });
  const patches = element("div", { className: "patches" }, ...cells);
  patches.style.gridTemplate = `repeat(${nRows}, 1fr) / repeat(${nColumns}, minmax(0, 1fr))`;
  const image = element("img", { src: view.image, alt: "What the patches show" });
  const effects = cause.patches.map((patch) => `${place(patch)}: ${nats(patch.effect)}`);
  return element("figure", {},
    element("div", { className: "stage" }, image, patches),
    element("figcaption", {}, ...named(cause), ` · ${nats(cause.effect)} nats at ${cause.at}, ${nats(cause.patches_effect)} at the framed patches together; at each alone, by row and column: ${effects.join(", ")}`));
}

const isIn = (view) => ([position]) => {
  const row = Math.floor((position - view.first) / view.stride);
  return row >= 0 && row < view.grid[0];
};

document.title = `Why “${data.word}”`;
find("#title").textContent = document.title;
const probability = (100 * Math.exp(data.log_prob)).toPrecision(3);
find("#about").textContent = `Log-probability ${nats(data.log_prob)} nats (${probability} %), behind the prompt and the answer’s words before it`;
const [before, word, behind] = data.pieces;
find("#answer").append(before, element("mark", { textContent: word }), behind);
find("#causes-note").textContent = `Effects are what ablating the feature there takes from the word’s log-probability, in nats, of ${data.n_candidates} candidates among ${data.n_active} active features and positions.`;
find("#causes").append(table(
  [["rank", "number"], ["feature", "number"], ["at", ""], ["effect", "number"], ["direct", "number"], ["max", "number"], ["tokens", "number"], ["label", "text"]],
  data.causes.map((cause) => {
    const at = cause.token === null ? cause.at : `${cause.at} “${cause.token}”`;
    return ["", cause.rank, cause.feature, at, nats(cause.effect), signed(fixed(cause.direct_effect)), fixed(cause.max), cause.n_tokens, labelElement(cause.label)];
  }), "captions"));
const figures = data.causes.filter((cause) => cause.patches.length > 0)
  .flatMap((cause) => data.views.filter((view) => cause.active.some(isIn(view))).map((view) => figure(cause, view)));
find("#where").hidden = figures.length === 0;
find("#figures").append(...figures);
for (const [name, value] of [
  ["Model", data.model],
  ["SAE", data.sae],
  ["Prompt", data.prompt],
  ["Pictures", data.images.join("\n") || "none"],
  ["Answer", data.answer.stop === null ? "given" : "the model’s own"],
  ["Effect", "How much lower the word’s log-probability is with the feature ablated at these positions alone. Effects need not sum: two features may do the same, or only together."],
  ["Direct", "What the feature does to the logit of the word’s first token in the row that predicts it, straight through the unembedding, before the final norm’s division; at other positions there is none."],
  ["Label", "What the feature stands for in texts, as whoever labelled the SAE describes it: a guess, which need not hold for pictures."],
]) {
  find("#run").append(element("dt", { textContent: name }), element("dd", { textContent: value }));
}
