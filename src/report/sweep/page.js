// The page, made once.

document.title = `Sweep of feature ${data.feature}`;
find("#title").append(`Feature ${data.feature}`, labelElement(data.label));
find("#about").textContent = `Steered at: ${data.at.replaceAll(",", ", ")} · strengths in ${data.units === "usual" ? "multiples of its usual activation" : `${data.units} directions`}`;
find("#marks").textContent = describedMarks(data);
find("#curves").append(...sweepCharts(data));
find("#texts").append(sweepTexts(data));
for (const [name, value] of [
  ["Model", data.model],
  ["SAE", data.sae],
  ["Prompt", data.prompt],
  ["Pictures", data.images.join("\n") || "none"],
  ["KL", "How far what the model would say next is from the original, along the original’s text: the mean over its tokens of KL(original ‖ steered)."],
  ["logprob", "The mean log-probability that the model without interventions gives the tokens of the steered text; it falls as a text breaks."],
  ["Label", "What the feature stands for in texts, as whoever labelled the SAE describes it: a guess, which need not hold for pictures."],
]) {
  find("#run").append(element("dt", { textContent: name }), element("dd", { textContent: value }));
}
