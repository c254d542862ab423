// The page, made once. Text of the data goes through `textContent` only, so that nothing of it can become
// markup.

const { protocol } = data;
const marks = { holds: "✓", fails: "✗", "not tested": "–" };

function verdict(verdict, words = verdict) {
  return element("span", { className: `verdict ${verdict}`, textContent: `${marks[verdict]} ${words}` });
}
// Of a part of a claim, which passes or does not.
const part = (held) => verdict(held, { holds: "passes" }[held] ?? held);
const paragraph = (text, className = "") => element("p", { textContent: text, className });
const plural = (n, thing) => `${n} ${thing}${n === 1 ? "" : "s"}`;

function details(title, ...content) {
  return element("details", {}, element("summary", { textContent: title }), ...content);
}

// What each prompt shows of one thing, side by side.
function sideBySide(title, show) {
  const columns = data.prompts.map((prompt) => {
    const [badge, ...content] = show(prompt);
    const name = element("span", { className: "prompt-name", textContent: prompt.name + (prompt.is_judged ? " (judged)" : "") });
    return element("div", {}, badge, name, ...content);
  });
  const heading = element("h3", { textContent: title });
  return element("div", { className: "item" }, heading, element("div", { className: "prompts" }, ...columns));
}

function claim(kind, i) {
  const item = sideBySide(kind.claim, (prompt) => {
    const { verdict: found, found: words } = prompt.claims[i];
    return [verdict(found), paragraph(words)];
  });
  item.querySelector("h3").after(paragraph(kind.says, "note"));
  return item;
}

function readClass({ class: name, n_pictures: nPictures, unreadable }, i) {
  const item = sideBySide(name, (prompt) => {
    const { verdict: found, published, top } = prompt.reading[i];
    const isIn = ({ rank }) => rank !== null && rank <= protocol.reading.top;
    const features = table(
      [["feature", "number"], ["label", "text"], ["rank", "number"], ["AUROC", "number"]],
      published.map((one) => [
        isIn(one) ? "published" : "", one.feature, labelElement(one.label), one.rank ?? "–", fixed(one.auroc),
      ]),
    );
    const first = table(
      [["feature", "number"], ["label", "text"], ["score", "number"]],
      top.map((one) => [
        one.is_published ? "published" : "", one.feature, labelElement(one.label), one.score.toPrecision(4),
      ]),
    );
    return [part(found), features, ...(top.length > 0 ? [details(`Top ${protocol.reading.top}`, first)] : [])];
  });
  const skipped = unreadable.length > 0 ? `; not readable: ${unreadable.join(", ")}` : "";
  item.querySelector("h3").after(paragraph(plural(nPictures, "picture") + skipped, "note"));
  return item;
}

const word = (caption) => (caption.has_word ? "yes" : "no");
const text = (caption) => element("bdi", { textContent: caption.text });

function describePicture({ picture }, i) {
  return sideBySide(picture, (prompt) => {
    const { passes, original, steered, controls } = prompt.steering[i];
    const row = (className, strength, caption, loss) => [className, strength, word(caption), loss, text(caption)];
    const captions = table(
      [["strength", "number"], ["word", ""], ["loss", "number"], ["caption", "text"]],
      [
        row("", 0, original, "–"),
        ...steered.map((one) => row(one.is_judged ? "judged" : "", one.strength, one, fixed(one.log_prob_loss, 2))),
      ],
      "captions",
    );
    const lost = controls.filter((one) => !one.has_word).length;
    const random = table(
      [["feature", "number"], ["as", "number"], ["word", ""], ["caption", "text"]],
      controls.map((one) => ["", one.feature, one.as_strength, word(one), text(one)]),
      "captions",
    );
    const title = `Control: ${plural(controls.length, "caption")} with random features, ${lost} without the word`;
    return [part(passes ? "holds" : "fails"), captions, details(title, random)];
  });
}

function list(target, entries) {
  for (const [name, text] of entries) {
    target.append(element("dt", { textContent: name }), element("dd", { textContent: text }));
  }
}

const judged = data.prompts.find((prompt) => prompt.is_judged);
document.title = `Reproduction: ${protocol.name}`;
find("#title").append(protocol.name, verdict(data.verdict));
find("#about").textContent = `${protocol.model} · ${protocol.sae.name} · ${protocol.source}`;

find("#judged").textContent = `Judged with the prompt “${judged.name}”; what would become of them with the others stands beside.`;
find("#claims").append(...judged.claims.map(claim));

const { reading, steering } = protocol;
const read = data.prompts
  .filter((prompt) => prompt.read_tokens.length > 0)
  .map((prompt) => `with ${prompt.name}, ${prompt.read_tokens.map(({ position, text }) => `${position} is ${JSON.stringify(text)}`).join(", ")}`);
find("#reading-note").textContent = [
  `Positions read: ${reading.positions}${read.length > 0 ? ` (${read.join("; ")})` : ""}.`,
  `A picture's number is the ${reading.pool} of a feature's activations there, a class's score the mean over its pictures, and AUROC compares its pictures with those of the other classes.`,
  "A label is what the feature stands for in texts, as whoever labelled the SAE describes it.",
].join(" ");
find("#reading").append(...data.pictures.map(readClass));

find("#steering-note").textContent = [
  `Feature ${steering.feature} is added at the positions: ${steering.at}. Shaded strengths count.`,
  "Loss: how far the caption's mean log-probability, by the model without interventions, is below that of the caption at 0, in nats.",
  "“as” is the strength of that feature whose addition is as long.",
].join(" ");
find("#steering").append(...judged.steering.map(describePicture));
if (judged.steering.length === 0) find("#steering").append(paragraph(`There was no picture of the class ${steering.class}.`));

find("#notes").append(...protocol.notes.map((text) => element("li", { textContent: text })));
list(find("#protocol"), [
  ...protocol.prompts.map(({ name, text }) => [`Prompt, ${name}`, text]),
  ["Hidden features", reading.hidden.join(", ")],
  ["Words", steering.words.join(", ")],
  ["Control’s seed", protocol.control.seed],
]);

const { machine, settings } = data;
const preparations = {
  "llama.cpp": "as llama.cpp prepares them",
  resize: "scaled to sides near their own",
};
list(find("#run"), [
  ["Program", data.program],
  ["llama.cpp", `as ${data.llama_cpp} carries it`],
  ...data.files.map(({ role, name, contents }) => [role, `${name}\n${contents}`]),
  ["Processor", `${machine.processor}, ${plural(machine.threads, "thread")}, ${machine.system}`],
  ["Computed by", machine.device],
  ["Pictures", preparations[settings.image_prep] ?? `${settings.image_prep} to a square`],
  ["KV cache", `${settings.kv_type}, flash attention ${settings.flash_attention}`],
  ["Layers on a device", settings.gpu_layers < 0 ? "all, where there is one" : settings.gpu_layers],
  ["Weights", settings.repack ? "repacked for the processor" : "as in the file"],
]);
