// The lineage of a search: one line per sample from the step it was born at to the step it reached.
"use strict";
(() => {
  const { svg } = ttsVision;
  const ROW = 18;
  const LEFT = 30;
  const RIGHT = 62;

  // Families one below the other, children below their parents, older ones first.
  const ordered = (samples) => {
    const children = new Map();
    const roots = [];
    for (const sample of samples.values()) {
      const parent = sample.parents.find((uid) => samples.has(uid));
      if (parent === undefined) roots.push(sample.uid);
      else children.set(parent, [...(children.get(parent) || []), sample.uid]);
    }
    const order = [];
    const waiting = roots.reverse();
    while (waiting.length) {
      const uid = waiting.pop();
      order.push(uid);
      waiting.push(...(children.get(uid) || []).slice().reverse());
    }
    return order;
  };

  const mark = (sample, x, y, isBest) => {
    if (sample.fate === "dropped" || sample.fate === "invalid" || sample.banned) {
      return svg("path", { d: `M${x - 4},${y - 4}l8,8m0,-8l-8,8`, class: "tv-end tv-end-dropped" });
    }
    const kind = isBest ? "best" : sample.fate === "finished" ? "finished" : "going";
    return svg("circle", { cx: x, cy: y, r: isBest ? 6 : 4.5, class: `tv-end tv-end-${kind}` });
  };

  ttsVision.tree = (choose) => {
    const root = svg("svg", {
      class: "tv-tree", role: "listbox", "aria-label": "Lineage: choose a sample", tabindex: 0,
    });
    let order = [];
    let chosen = null;

    root.addEventListener("keydown", (event) => {
      const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!by || !order.length) return;
      event.preventDefault();
      const at = order.indexOf(chosen);
      choose(order[Math.min(order.length - 1, Math.max(0, at + by))]);
    });

    const draw = (samples, steps, best, selected) => {
      order = ordered(samples);
      chosen = selected;
      const rows = new Map(order.map((uid, i) => [uid, i * ROW + 12]));
      const WIDTH = Math.max(root.parentNode.clientWidth, 280);
      const x = (step) => LEFT + (step / Math.max(steps, 1)) * (WIDTH - LEFT - RIGHT);
      const height = Math.max(order.length * ROW + 6, ROW);
      root.setAttribute("width", WIDTH);
      root.setAttribute("height", height);
      const parts = [];
      for (const uid of order) {
        const sample = samples.get(uid);
        const y = rows.get(uid);
        const born = x(sample.born);
        const end = Math.max(x(sample.step), born);
        const row = svg("g", {
          class: `tv-row tv-${sample.fate.replace(" ", "-")}`, role: "option", id: `tv-row-${uid}`,
          "aria-selected": uid === selected ? "true" : "false", "data-uid": uid,
          "aria-label": `Sample ${uid}, ${sample.fate}, ${ttsVision.score(sample.score)}`,
        });
        row.append(svg("rect", { x: 0, y: y - ROW / 2, width: WIDTH, height: ROW, class: "tv-hit" }));
        for (const parent of sample.parents.filter((p) => rows.has(p))) {
          const from = rows.get(parent);
          const bend = Math.max(born - 12, 4);
          row.append(svg("path", { d: `M${bend},${from}C${bend},${y} ${bend},${y} ${born},${y}`, class: "tv-link" }));
        }
        row.append(
          svg("text", { x: 2, y: y + 4, class: "tv-name" }, String(uid)),
          svg("line", { x1: born, x2: end, y1: y, y2: y, class: "tv-life" }),
          mark(sample, end, y, uid === best),
          svg("text", { x: end + 10, y: y + 4 }, sample.score === null ? "" : ttsVision.score(sample.score)),
        );
        row.addEventListener("click", () => choose(uid));
        parts.push(row);
      }
      root.replaceChildren(...parts);
      root.setAttribute("aria-activedescendant", selected === null ? "" : `tv-row-${selected}`);
    };
    return { root, draw };
  };
})();
