// One sample in words: its image, score, parents, and what happened to it.
"use strict";
(() => {
  const { el } = ttsVision;

  const fate = (sample, steps) => ({
    "going on": `It goes on: ${sample.step} of ${steps} steps are done.`,
    dropped: `It was left behind after ${sample.step} of ${steps} steps.`,
    finished: "It is finished.",
    invalid: "The model gave a broken image, which counts for nothing.",
  })[sample.fate];

  const origin = (sample, choose) => {
    if (!sample.parents.length) return ["Drawn from fresh noise."];
    const how = {
      select: "A copy that went its own way from",
      renoise: "Sent back towards noise from",
      recondition: "Given other words, from",
      adopt: "The image that you brought, by way of",
    }[sample.origin] || "Changed a little from";
    const links = sample.parents.flatMap((uid, i) => [
      i ? " and " : " ",
      ttsVision.button(`sample ${uid}`, { class: "tv-linkish", onclick: () => choose(uid) }),
    ]);
    return [how, ...links, ` at step ${sample.born}.`];
  };

  ttsVision.detail = (choose) => {
    const root = el("div", { class: "tv-detail", "aria-live": "polite" });

    const draw = (sample, steps, view) => {
      if (!sample) {
        root.replaceChildren(el("p", { class: "tv-hint" }, "Choose a sample to see where it came from."));
        return;
      }
      const rows = Object.entries(sample.parts).map(([name, value]) =>
        el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, ttsVision.score(value))));
      ttsVision.put(
        root,
        view || el("div", { class: "tv-view" }),
        el("div", { class: "tv-facts" },
          el("h4", {}, `Sample ${sample.uid}`),
          el("p", {}, "Score ", el("strong", {}, ttsVision.score(sample.score))),
          sample.reason ? el("p", {}, sample.reason) : null,
          el("p", {}, ...origin(sample, choose)),
          el("p", {}, fate(sample, steps)),
          sample.original ? el("p", {}, "It is the original: the others are refined from it.") : null,
          sample.pinned ? el("p", {}, "You pinned it.") : null,
          sample.banned ? el("p", {}, "You banned it.") : null,
          rows.length ? el("table", {}, ...rows) : null),
      );
    };
    return { root, draw };
  };

  // an image, or a clip that plays
  ttsVision.view = (kind, source, name) =>
    kind === "video"
      ? el("video", {
        class: "tv-view", src: source, "aria-label": name, controls: true, loop: true, autoplay: true,
        muted: true, playsinline: true,
      })
      : el("img", { class: "tv-view", src: source, alt: name });
})();
