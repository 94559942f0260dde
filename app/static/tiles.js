// The samples of a search as a grid of images that sharpen, with their scores and what can be done to them.
"use strict";
(() => {
  const { el, button, text } = ttsVision;

  // choose(uid) opens a sample. acts: what can be done to one, each {what, label(sample), enabled(sample, can),
  // pressed(sample)?, run(uid)}. Tiles stay where they are while their images change.
  ttsVision.tiles = (choose, acts, words = { dropped: "dropped" }) => {
    const root = el("ul", { class: "tv-grid", "aria-label": "Samples" });
    const tiles = new Map();

    const make = (uid) => {
      const image = el("img", { alt: "", draggable: "false" });
      const open = el(
        "button", { type: "button", class: "tv-open", onclick: () => choose(uid) }, image,
        el("span", { class: "tv-label", "aria-hidden": "true" }, String(uid)),
      );
      const value = el("span", { class: "tv-score" });
      const note = el("span", { class: "tv-note" });
      const nodes = acts.map((act) =>
        button("", { class: "tv-act", "data-act": act.what, onclick: () => act.run(uid) }));
      const tile = el(
        "li", { class: "tv-tile", "data-uid": uid }, open,
        el("p", { class: "tv-caption" }, value, note), el("p", { class: "tv-acts" }, ...nodes),
      );
      root.append(tile);
      return { tile, open, image, value, note, nodes, shown: 0 };
    };

    const describe = (sample, isBest) => {
      if (isBest) return sample.original ? "best, original" : "best";
      if (sample.original) return "original";
      if (sample.banned) return "banned";
      if (sample.pinned) return "pinned";
      return { "going on": "", dropped: words.dropped, finished: "done", invalid: "broken" }[sample.fate];
    };

    const draw = (samples, best, selected, steps, can) => {
      const parents = new Set([...samples.values()].flatMap((sample) => sample.parents));
      for (const [uid, sample] of samples) {
        if (!tiles.has(uid)) tiles.set(uid, make(uid));
        const { tile, open, value, note, nodes } = tiles.get(uid);
        const isBest = uid === best;
        // a stage on the way to others, which was never looked at
        tile.hidden = parents.has(uid) && !sample.preview && !sample.file && sample.score === null;
        tile.className = `tv-tile tv-${sample.fate.replace(" ", "-")}${isBest ? " tv-best" : ""}` +
          `${sample.pinned ? " tv-pinned" : ""}${sample.banned ? " tv-banned" : ""}` +
          `${uid === selected ? " tv-selected" : ""}`;
        const done = `${Math.min(sample.step, steps || sample.step)} of ${steps || sample.step} steps`;
        open.setAttribute("aria-label", `Sample ${uid}, ${ttsVision.score(sample.score)}, ${done}`);
        open.title = `Sample ${uid}: ${done}`;
        text(value, sample.score === null ? "…" : ttsVision.score(sample.score));
        text(note, describe(sample, isBest));
        acts.forEach((act, i) => {
          text(nodes[i], act.label(sample));
          nodes[i].disabled = !act.enabled(sample, can);
          nodes[i].setAttribute("aria-label", `${act.label(sample)} sample ${uid}`);
          if (act.pressed) nodes[i].setAttribute("aria-pressed", String(act.pressed(sample)));
        });
      }
    };

    // the samples whose image is older than its newest version
    const stale = (samples) =>
      [...tiles].filter(([uid, t]) => samples.has(uid) && t.shown < samples.get(uid).preview).map(([uid]) => uid);

    const show = (uid, version, source) => {
      const tile = tiles.get(uid);
      if (!tile) return;
      tile.shown = version;
      tile.image.src = source;
      tile.open.classList.add("tv-loaded");
    };

    const source = (uid) => (tiles.has(uid) ? tiles.get(uid).image.getAttribute("src") : null);

    const clear = () => {
      tiles.clear();
      root.replaceChildren();
    };
    return { root, draw, stale, show, source, clear };
  };
})();
