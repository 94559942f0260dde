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
    const rows = new Map(); // by sample
    let order = [];
    let chosen = null;

    root.addEventListener("keydown", (event) => {
      const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!by || !order.length) return;
      event.preventDefault();
      const at = order.indexOf(chosen);
      choose(order[Math.min(order.length - 1, Math.max(0, at + by))]);
    });

    // the group and its area stay the same element, so that a redraw between press and release loses no click
    const make = (uid) => {
      const area = svg("rect", { x: 0, height: ROW, class: "tv-hit" });
      const row = svg("g", { role: "option", id: `tv-row-${uid}`, "data-uid": uid }, area);
      row.addEventListener("click", () => choose(uid));
      return { row, area };
    };

    const draw = (samples, steps, best, selected) => {
      order = ordered(samples);
      chosen = selected;
      const places = new Map(order.map((uid, i) => [uid, i * ROW + 12]));
      const WIDTH = Math.max(root.parentNode.clientWidth, 280);
      const x = (step) => LEFT + (step / Math.max(steps, 1)) * (WIDTH - LEFT - RIGHT);
      root.setAttribute("width", WIDTH);
      root.setAttribute("height", Math.max(order.length * ROW + 6, ROW));
      for (const [uid, { row }] of rows) {
        if (places.has(uid)) continue;
        row.remove();
        rows.delete(uid);
      }
      order.forEach((uid, i) => {
        if (!rows.has(uid)) rows.set(uid, make(uid));
        const { row, area } = rows.get(uid);
        if (root.children[i] !== row) root.insertBefore(row, root.children[i] || null);
        const sample = samples.get(uid);
        const y = places.get(uid);
        const born = x(sample.born);
        const end = Math.max(x(sample.step), born);
        row.setAttribute("class", `tv-row tv-${sample.fate.replace(" ", "-")}`);
        row.setAttribute("aria-selected", String(uid === selected));
        row.setAttribute("aria-label", `Sample ${uid}, ${sample.fate}, ${ttsVision.score(sample.score)}`);
        area.setAttribute("y", y - ROW / 2);
        area.setAttribute("width", WIDTH);
        const links = sample.parents.filter((parent) => places.has(parent)).map((parent) => {
          const [from, bend] = [places.get(parent), Math.max(born - 12, 4)];
          const d = `M${bend},${from}C${bend},${y} ${bend},${y} ${born},${y}`;
          return svg("path", { d, class: "tv-link" });
        });
        while (row.lastChild !== area) row.lastChild.remove();
        row.append(
          ...links,
          svg("text", { x: 2, y: y + 4, class: "tv-name" }, String(uid)),
          svg("line", { x1: born, x2: end, y1: y, y2: y, class: "tv-life" }),
          mark(sample, end, y, uid === best),
          svg("text", { x: end + 10, y: y + 4 }, sample.score === null ? "" : ttsVision.score(sample.score)),
        );
      });
      root.setAttribute("aria-activedescendant", selected === null ? "" : `tv-row-${selected}`);
    };
    return { root, draw };
  };
})();
