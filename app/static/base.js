// Small helpers of the page: elements, numbers as text, and words for states.
"use strict";
window.ttsVision = window.ttsVision || {};
(() => {
  const SVG = "http://www.w3.org/2000/svg";

  const fill = (node, attributes, children) => {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : String(value));
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  };

  ttsVision.el = (tag, attributes, ...children) =>
    fill(document.createElement(tag), attributes, children);

  ttsVision.svg = (tag, attributes, ...children) =>
    fill(document.createElementNS(SVG, tag), attributes, children);

  ttsVision.button = (text, attributes) =>
    ttsVision.el("button", { type: "button", class: "tv-button", ...attributes }, text);

  ttsVision.text = (node, text) => {
    if (node.textContent !== text) node.textContent = text;
  };

  ttsVision.score = (value) =>
    value === null || value === undefined ? "no score" : Number(value).toPrecision(4);

  ttsVision.amount = (value) =>
    value >= 1e6 ? Number(value).toExponential(2) : Math.round(value).toLocaleString("en");

  ttsVision.seconds = (value) => {
    if (value < 60) return `${value < 10 ? value.toFixed(1) : Math.round(value)} s`;
    const minutes = Math.floor(value / 60);
    return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  };

  // the value of a name in the address of the page; with a value, sets it
  ttsVision.address = (name, ...values) => {
    const address = new URL(window.location);
    if (!values.length) return address.searchParams.get(name);
    if (values[0]) address.searchParams.set(name, values[0]);
    else address.searchParams.delete(name);
    window.history.replaceState(null, "", address);
    return values[0];
  };

  ttsVision.showTab = (id) => document.querySelector(`[role="tab"][data-tab-id="${id}"]`)?.click();

  // children of an element, those that are missing left out
  ttsVision.put = (node, ...children) => node.replaceChildren(...children.filter((child) => child));

  ttsVision.states = {
    queued: "Waiting for its turn",
    running: "Searching",
    paused: "Paused",
    finished: "Finished",
    stopped: "Stopped",
    failed: "Failed",
    cancelled: "Cancelled",
  };
})();
