// The best score so far against the compute spent, as a line that grows.
"use strict";
(() => {
  const { svg } = ttsVision;
  const LEFT = 52;
  const RIGHT = 12;
  const TOP = 12;
  const BOTTOM = 34;
  const COLOURS = ["var(--tv-1)", "var(--tv-2)", "var(--tv-3)", "var(--tv-4)", "var(--tv-5)", "var(--tv-6)"];

  const ticks = (low, high, count) => {
    const raw = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
    const found = [];
    for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(at);
    return found;
  };

  const label = (value) => {
    const size = Math.abs(value);
    if (size >= 1e6) return value.toExponential(1);
    return String(Number(value.toPrecision(4)));
  };

  // box: the element that it is drawn in; lines: [{name, points: [[compute, best], ...]}]
  // end: compute at the right edge, or null; name: for screen readers
  ttsVision.curve = (box, { lines, end, unit, name }) => {
    const WIDTH = Math.max(box.clientWidth, 260);
    const HEIGHT = Math.round(Math.min(330, Math.max(180, WIDTH * 0.58)));
    const drawn = lines.filter((line) => line.points.length);
    const root = svg("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT, class: "tv-curve", role: "img", "aria-label": name,
    });
    const all = drawn.flatMap((line) => line.points);
    const right = Math.max(end || 0, ...all.map((point) => point[0])) || 1;
    let low = Math.min(...all.map((point) => point[1]));
    let high = Math.max(...all.map((point) => point[1]));
    if (!all.length) [low, high] = [0, 1];
    const room = (high - low) * 0.1 || Math.abs(high) * 0.1 || 0.1;
    low -= room;
    high += room;
    const x = (value) => LEFT + (value / right) * (WIDTH - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    for (const at of ticks(low, high, 4)) {
      root.append(
        svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(at), y2: y(at), class: "tv-rule" }),
        svg("text", { x: LEFT - 6, y: y(at) + 4, "text-anchor": "end" }, all.length ? label(at) : ""),
      );
    }
    for (const at of ticks(0, right, 4)) {
      root.append(svg("text", { x: x(at), y: HEIGHT - BOTTOM + 15, "text-anchor": "middle" }, label(at)));
    }
    root.append(
      svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 3, "text-anchor": "middle" }, unit),
    );
    drawn.forEach((line, i) => {
      const [first, ...rest] = line.points;
      let path = `M${x(first[0])},${y(first[1])}`;
      for (const [compute, best] of rest) path += `H${x(compute)}V${y(best)}`;
      const colour = COLOURS[i % COLOURS.length];
      const last = line.points[line.points.length - 1];
      root.append(
        svg("path", { d: path, class: "tv-line", style: `stroke:${colour}` }),
        svg("circle", { cx: x(last[0]), cy: y(last[1]), r: 3.5, style: `fill:${colour}` }),
      );
    });
    box.replaceChildren(root);
  };

  ttsVision.legend = (lines) => {
    const list = ttsVision.el("ul", { class: "tv-legend" });
    lines.filter((line) => line.points.length).forEach((line, i) => {
      const colour = COLOURS[i % COLOURS.length];
      list.append(
        ttsVision.el("li", {}, ttsVision.el("i", { style: `background:${colour}` }), line.name),
      );
    });
    return list;
  };
})();
