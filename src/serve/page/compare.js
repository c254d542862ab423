// The question's answer, with interventions and without, side by side as they come.

const compareJob = new Job(find("#compare"));
const outputs = { original: find("#original"), steered: find("#steered") };

// What requests have besides: how long texts are, and how tokens are chosen.
function sampling() {
  const value = (id) => Number(find(id).value);
  return { max_tokens: value("#max-tokens"), temperature: value("#temperature"), seed: value("#seed") };
}

// The same on the command line.
function samplingArguments() {
  const { max_tokens: n, temperature, seed } = sampling();
  const words = n === 128 ? [] : ["-n", String(n)];
  return temperature === 0 ? words : [...words, "--temp", String(temperature), "--seed", String(seed)];
}

// What is shown was run with something else.
function outdate() {
  for (const place of Object.values(outputs)) place.classList.add("old");
  if (!find("#follow").checked && outputs.original.textContent !== "") {
    find("#compare-status").textContent = "Something has changed since: press Run.";
  }
}

function clearOutputs() {
  compareJob.stop();
  for (const place of Object.values(outputs)) {
    place.replaceChildren();
    place.nextElementSibling.textContent = "";
  }
  outputs.steered.parentElement.hidden = true;
  find("#compare-status").textContent = "";
}

function finished(output, { stop }, pieces, mark) {
  const place = outputs[output];
  place.replaceChildren(...markedText(pieces, mark));
  const notes = [];
  if (pieces.every(([text]) => text === "")) notes.push("No text.");
  if (stop === "length") notes.push(`Cut off at ${sampling().max_tokens} tokens.`);
  place.nextElementSibling.textContent = notes.join(" ");
}

function compare() {
  const steering = active();
  const isSteered = steering.length > 0;
  const start = performance.now();
  const messages = conversation(find("#question").value);
  outputs.steered.parentElement.hidden = !isSteered;
  outdate(); // until the first token is there
  for (const place of Object.values(outputs)) place.setAttribute("aria-busy", "true");
  find("#compare-status").textContent = "Running …";
  const write = (output, text) => {
    const place = outputs[output];
    if (place.classList.contains("old")) {
      place.classList.remove("old");
      place.replaceChildren();
      place.nextElementSibling.textContent = "";
    }
    place.append(text);
  };
  return compareJob.run(async (signal) => {
    try {
      const summary = isSteered
        ? await compareSteered({ messages, steering, ...sampling() }, write, signal)
        : await askPlainly({ messages, stream: true, ...sampling() }, write, signal);
      find("#compare-status").textContent = [summary.words, speed(summary.timings, start)].filter(Boolean).join(" · ");
    } catch (error) {
      if (!compareJob.isCurrent(signal)) throw error;
      find("#compare-status").textContent = error.name === "AbortError" ? "Stopped." : "";
      throw error;
    } finally {
      if (compareJob.isCurrent(signal)) {
        for (const place of Object.values(outputs)) place.removeAttribute("aria-busy");
      }
    }
  });
}

async function compareSteered(request, write, signal) {
  for await (const event of events("/api/compare", request, signal)) {
    if (event.type === "text") write(event.run, event.text);
    if (event.type !== "done") continue;
    const { original, steered, difference, timings } = event;
    for (const output of ["original", "steered"]) outputs[output].classList.remove("old");
    finished("original", original, difference.original, "del");
    finished("steered", steered, difference.steered, "ins");
    const isSame = original.text === steered.text;
    return { timings, words: isSame ? "The same text: a larger number may change it" : "" };
  }
  throw new ApiError("the server ended the answer before it was whole: run it again");
}

async function askPlainly(request, write, signal) {
  let [text, stop, timings] = ["", "end", null];
  for await (const event of events("/v1/chat/completions", request, signal)) {
    const [choice] = event.choices ?? [];
    if (choice?.delta?.content) {
      text += choice.delta.content;
      write("original", choice.delta.content);
    }
    if (choice?.finish_reason) stop = choice.finish_reason === "length" ? "length" : "end";
    timings = event.timings ?? timings;
  }
  outputs.original.classList.remove("old");
  finished("original", { stop }, [[text, false]], "del");
  return { timings, words: "" };
}

find("#ask").addEventListener("submit", (event) => {
  event.preventDefault();
  compare();
});
// Another question has other tokens, and other features.
find("#question").addEventListener("change", () => {
  look();
  changed();
});
for (const id of ["#max-tokens", "#temperature", "#seed"]) {
  find(id).addEventListener("change", ({ target }) => { if (target.reportValidity()) changed(); });
}
