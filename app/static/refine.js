// The form that refines a chosen sample: what to change, how far, and how many candidates are made.
"use strict";
(() => {
  const { el, button, text } = ttsVision;
  let forms = 0;

  // ask(request) starts the refinement. Nothing is chosen until choose(uid, prompt, name) says what.
  ttsVision.refine = (ask) => {
    forms += 1;
    const id = (name) => `tv-refine-${name}-${forms}`;
    let chosen = null;
    let written = ""; // the prompt of the search, which is no change

    const prompt = el("textarea", { id: id("prompt"), rows: 2 });
    const strength = el("input", {
      id: id("strength"), type: "range", min: 0.1, max: 1, step: 0.05, value: 0.5, "aria-describedby": id("far"),
      oninput: () => tell(),
    });
    const far = el("output", { id: id("far"), for: id("strength"), class: "tv-far" });
    const count = el("input", { id: id("count"), type: "number", min: 1, max: 64, value: 8, class: "tv-count" });
    const hand = el("input", { id: id("hand"), type: "checkbox" });
    const go = button("Refine", {
      class: "tv-button tv-primary", "data-act": "refine", onclick: () => ask({
        what: "refine", uid: chosen, prompt: prompt.value.trim() === written ? "" : prompt.value,
        strength: Number(strength.value), n: Math.round(Number(count.value)) || 0, by_hand: hand.checked,
      }),
    });
    const field = (label, control, ...more) =>
      el("div", { class: "tv-field" }, el("label", { for: control.id }, label), control, ...more);
    const root = el("section", { class: "tv-refine", "aria-label": "Refine" },
      el("h3", {}, "Refine"),
      el("p", { class: "tv-noted" }, "Makes new versions of the sample that you chose. The best is kept, which may be the original."),
      el("div", { class: "tv-fields" },
        el("div", { class: "tv-field tv-wide" }, el("label", { for: prompt.id }, "What it should show"), prompt),
        field("How far from it", strength, far),
        field("How many", count),
        el("div", { class: "tv-field" },
          el("label", { class: "tv-inline", for: hand.id }, hand, "I judge them myself"), go)));

    const tell = () => {
      const value = Number(strength.value);
      const words = value < 0.35 ? "touches it up" : value < 0.65 ? "keeps its composition" : value < 0.95 ? "keeps little" : "starts anew";
      text(far, `${value.toFixed(2)}: ${words}`);
    };

    const choose = (uid, asked, name, isAble = true) => {
      if (asked !== written || uid !== chosen) {
        prompt.value = asked;
        written = asked;
      }
      chosen = uid;
      enable(isAble);
      text(go, uid === null ? "Refine" : `Refine ${name}`);
    };
    const enable = (isAble) => {
      for (const control of [prompt, strength, count, hand, go]) control.disabled = chosen === null || !isAble;
    };
    tell();
    choose(null, "", "");
    return { root, choose };
  };
})();
