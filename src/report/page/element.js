"use strict";
// A page's data, and how elements are made of it.
const data = JSON.parse(document.getElementById("data").textContent);

const find = (selector) => document.querySelector(selector);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const signed = (number) => String(number).replace("-", "−");

// A label of its own writing direction, so that it does not turn its neighbours round.
function labelElement(label) {
  const isMissing = label === undefined || label === null;
  return element("bdi", { textContent: isMissing ? "no label" : label, className: isMissing ? "no-label" : "" });
}

// A text's pieces, of which some are marked: each is [text, whether it is].
const markedText = (pieces, mark) => pieces.map(([text, isMarked]) => (isMarked ? element(mark, { textContent: text }) : text));
