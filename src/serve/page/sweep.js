// One feature at several strengths: the texts as they come, then curves and what differs (`charts.js`).

const sweepJob = new Job(find("#sweep"));
let sweepOf = null; // the feature that the form's numbers are for

// Strengths about the feature's largest activation, while nobody has set others.
function drawSweepForm() {
  const entry = state.feature;
  find("#sweep-form [type=submit]").disabled = entry === null;
  if (entry === null) {
    find("#sweep-feature").textContent = "Choose a feature in the list.";
    return;
  }
  find("#sweep-feature").replaceChildren("Steer ", element("b", {}, ...titleOf(entry.feature)), " by strengths");
  if (sweepOf === entry.feature) return;
  sweepOf = entry.feature;
  const reach = twoDigits(entry.max || UNKNOWN_REACH / 2);
  find("#sweep-from").value = -reach;
  find("#sweep-to").value = reach / 2; // so that 0 is among the seven
  find("#sweep-word").value = label(entry.feature)?.split(/[\s,]+/)[0] ?? "";
  find("#sweep-form .places").value = asked.picture ? "image" : "all";
}

// `count` strengths from one to another, of few digits.
function strengthsOf() {
  const value = (id) => Number(find(id).value);
  const [from, to, count] = [value("#sweep-from"), value("#sweep-to"), value("#sweep-count")];
  const strengths = Array.from({ length: count }, (_, i) => Number((from + ((to - from) * i) / (count - 1)).toPrecision(4)));
  return [...new Set(strengths)];
}

function sweep() {
  const start = performance.now();
  const strengths = strengthsOf();
  const { feature } = state.feature;
  const word = find("#sweep-word").value.trim();
  const request = {
    messages: conversation(find("#question").value),
    feature: named(feature),
    strengths,
    kind: "steer",
    units: "raw",
    at: find("#sweep-form .places").value.trim() || "all",
    ...(word ? { word } : {}),
    ...sampling(),
  };
  find("#curves").replaceChildren();
  find("#marks").textContent = "";
  const shown = [null, ...strengths].map((strength) => {
    const text = element("bdi");
    return { text, row: ["", strength === null ? "original" : signed(strength), text] };
  });
  const columns = [["strength", "number"], ["text", "text"]];
  find("#texts").replaceChildren(table(columns, shown.map(({ row }) => row), "captions"));
  const status = find("#sweep-status");
  status.textContent = "Running …";
  return sweepJob.run(async (signal) => {
    try {
      for await (const event of events("/api/sweep", request, signal)) {
        if (event.type === "text") shown[event.run].text.append(event.text);
        if (event.type !== "done") continue;
        find("#curves").replaceChildren(...sweepCharts(event));
        find("#marks").textContent = describedMarks(event);
        find("#texts").replaceChildren(sweepTexts(event));
        addUses(feature, event);
        const steps = `${strengths.length + 1} texts`;
        status.textContent = `${steps} · ${speed(event.timings, start)}`;
        return;
      }
      throw new ApiError("the server ended the sweep before it was whole: run it again");
    } catch (error) {
      if (sweepJob.isCurrent(signal)) status.textContent = error.name === "AbortError" ? "Stopped." : "";
      throw error;
    }
  });
}

// A button on each strength, which makes it the intervention's.
function addUses(feature, { steered }) {
  find("#texts").querySelectorAll("tbody tr[id]").forEach((row, i) => {
    const { strength } = steered[i];
    const use = element("button", { type: "button", className: "plain use", textContent: signed(strength), title: "Use this strength" });
    use.setAttribute("aria-label", `use strength ${signed(strength)}`);
    use.addEventListener("click", () => {
      openTab("compare");
      addIntervention(feature, "steer", strength);
    });
    row.firstElementChild.replaceChildren(use);
  });
}

find("#sweep-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sweep();
});
