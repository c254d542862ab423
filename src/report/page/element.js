"use strict";
// A page's data, and how elements are made of it.
const data = JSON.parse(document.getElementById("data").textContent);

const find = (selector) => document.querySelector(selector);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
