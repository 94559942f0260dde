// The live view of one search: it asks the server for what changed and draws it in place.
"use strict";
(() => {
  const { el, button, text } = ttsVision;
  const meter = () => {
    const bar = el("progress", { max: 1, value: 0, "aria-label": "Share of the budget that is spent" });
    const words = el("p", { class: "tv-spent" });
    const draw = (spending) => {
      bar.value = spending.share;
      const of = (unit) => (unit in spending.limits ? ` of ${ttsVision.amount(spending.limits[unit])}` : "");
      const limit = spending.limits.seconds ? ` of ${ttsVision.seconds(spending.limits.seconds)}` : "";
      text(words,
        `${ttsVision.amount(spending.nfe)}${of("nfe")} nfe · ` +
        `${ttsVision.amount(spending.verifier_calls)}${of("verifier_calls")} verifier calls · ` +
        `${ttsVision.seconds(spending.seconds)}${limit}`);
    };
    return { root: el("div", { class: "tv-meter" }, bar, words), draw };
  };

  // A question to the person: which of two is better, or how good one is.
  const vote = (answer) => {
    const root = el("div", { class: "tv-vote", role: "group", "aria-label": "Your vote" });
    let asked = null;
    const choice = (image, label, value) =>
      el("button", { type: "button", class: "tv-choice", onclick: () => answer(asked, value) },
        el("img", { src: image, alt: "" }), el("span", {}, label));
    const draw = (question) => {
      const id = question ? question.id : null;
      root.hidden = id === null;
      if (id === asked) return;
      asked = id;
      root.replaceChildren();
      if (!question) return;
      if (question.kind === "pair") {
        root.append(
          el("h3", {}, "Which one is better?"),
          el("div", { class: "tv-choices" },
            choice(question.images[0], "The left one", "first"), choice(question.images[1], "The right one", "second")),
          el("div", { class: "tv-buttons" },
            button("Both alike", { onclick: () => answer(id, "tie") }),
            button("I cannot tell", { onclick: () => answer(id, null) })));
        return;
      }
      const value = el("input", { type: "range", min: 0, max: 1, step: 0.05, value: 0.5, id: "tv-rating" });
      root.append(
        el("h3", {}, "How good is this one?"),
        el("img", { class: "tv-rated", src: question.images[0], alt: "The sample to rate" }),
        el("label", { for: "tv-rating" }, "From poor to perfect"), value,
        el("div", { class: "tv-buttons" },
          button("Rate it", { class: "tv-button tv-primary", onclick: () => answer(id, Number(value.value)) }),
          button("I cannot tell", { onclick: () => answer(id, null) })));
    };
    return { root, draw };
  };

  // keepsAddress: whether the address of the page names the job, so that a reload finds it again
  ttsVision.panel = (element, server, { watch, props, trigger, keepsAddress }) => {
    const root = element.querySelector(".tv-panel");
    let chosen = null;
    let shownBest = "";

    const state = el("p", { class: "tv-state", role: "status", "aria-live": "polite" }, "Nothing is running");
    const asked = el("p", { class: "tv-asked" });
    const act = (what, label) => button(label, { "data-act": what, onclick: () => follow.command({ what }), disabled: true });
    const buttons = { pause: act("pause", "Pause"), resume: act("resume", "Resume"), stop: act("stop", "Stop") };
    const spent = meter();
    const best = el("figure", { class: "tv-bestbox" }, el("div", { class: "tv-view" }), el("figcaption", {}, "Best so far"));
    const curve = el("figure", { class: "tv-curvebox" }, el("div"), el("figcaption", {}, "Score of the best over compute"));
    const say = (id, value) => follow.command({ what: "answer", question: id, answer: value });
    const question = vote(say);
    const choose = (uid) => {
      chosen = uid;
      draw();
      explain();
    };
    const steer = (what) => (uid) => follow.command({ what, uid });
    const tiles = ttsVision.tiles(choose, [
      { what: "pin", label: (s) => (s.pinned ? "Unpin" : "Pin"), enabled: (s, can) => can.steer, run: steer("pin") },
      { what: "ban", label: (s) => (s.banned ? "Unban" : "Ban"), enabled: (s, can) => can.steer, run: steer("ban") },
      { what: "more", label: () => "More like", enabled: (s, can) => can.more && s.preview > 0, run: steer("more") },
    ]);
    const tree = ttsVision.tree(choose);
    const detail = ttsVision.detail(choose);
    const refine = ttsVision.refine((request) => follow.command(request));
    const notes = ttsVision.notes();
    const empty = el("p", { class: "tv-hint" }, root.dataset.hint || "");

    root.append(
      el("div", { class: "tv-bar" }, state, el("div", { class: "tv-buttons" }, ...Object.values(buttons))),
      asked, spent.root, notes.root,
      el("div", { class: "tv-top" }, best, curve, question.root),
      el("h3", {}, "Samples"), el("div", { class: "tv-scroll tv-samples" }, tiles.root, empty),
      el("h3", {}, "Lineage"),
      el("div", { class: "tv-lower" }, el("div", { class: "tv-scroll tv-lineage" }, tree.root), detail.root),
      refine.root,
    );

    const idle = { state: "", steps: 0, best: null, can: {}, spending: null, curve: [], question: null };

    const draw = () => {
      const { job, view, samples } = follow.now;
      const now = view || idle;
      text(state, ttsVision.standing(view));
      text(asked, now.prompt || "");
      asked.title = now.prompt || "";
      root.dataset.state = now.state;
      root.dataset.job = job || "";
      for (const [what, node] of Object.entries(buttons)) node.disabled = !now.can[what];
      spent.draw(now.spending || { share: 0, nfe: 0, verifier_calls: 0, seconds: 0, limits: {} });
      const last = now.curve[now.curve.length - 1];
      curve.dataset.points = now.curve.length;
      ttsVision.curve(curve.firstChild, {
        lines: [{ name: "best", points: now.curve }],
        end: now.spending ? now.spending.limits.nfe || null : null,
        unit: now.unit || "network evaluations (nfe)",
        name: last ? `Best score ${ttsVision.score(last[1])} after ${now.curve.length} scorings` : "No score yet",
      });
      empty.hidden = samples.size > 0;
      tiles.draw(samples, now.best, chosen, now.steps, now.can);
      tree.draw(samples, now.steps, now.best, chosen);
      question.draw(now.question);
      const isThere = chosen !== null && samples.has(chosen);
      refine.choose(isThere ? chosen : null, now.prompt || "", `sample ${chosen}`, Boolean(now.can.more));
    };

    const explain = async () => {
      const { job, view, samples } = follow.now;
      const sample = samples.get(chosen);
      const steps = view ? view.steps : 0;
      const small = chosen === null ? null : tiles.source(chosen);
      detail.draw(sample, steps, small && ttsVision.view("image", small, `Sample ${chosen}`));
      if (!sample || !sample.file) return;
      const found = await server.sample({ job, uid: sample.uid });
      if (sample !== follow.now.samples.get(chosen) || !found || !found.source) return;
      detail.draw(sample, steps, ttsVision.view(found.kind, found.source, `Sample ${chosen}`));
    };

    const showBest = async (isCurrent) => {
      const { job, view, samples } = follow.now;
      const sample = samples.get(view.best);
      if (!sample) return;
      const key = `${sample.uid} ${sample.file} ${sample.file ? "" : sample.preview}`;
      if (key === shownBest) return;
      const found = await server.sample({ job, uid: sample.uid });
      if (!isCurrent() || !found || !found.source) return;
      shownBest = key;
      best.replaceChildren(
        ttsVision.view(found.kind, found.source, `Best so far: sample ${sample.uid}`),
        el("figcaption", {}, `Best so far: sample ${sample.uid}, ${ttsVision.score(sample.score)}`),
      );
    };

    const follow = ttsVision.follow(server, {
      begin: () => {
        [chosen, shownBest] = [null, ""];
        tiles.clear();
        notes.draw([]);
        detail.draw(null);
        best.replaceChildren(el("div", { class: "tv-view" }), el("figcaption", {}, "Best so far"));
        if (keepsAddress) ttsVision.address("job", follow.now.job);
        draw();
      },
      look: (changed) => {
        const { view } = follow.now;
        notes.draw([view.error, ...view.warnings]);
        draw();
        if (changed.some((sample) => sample.uid === chosen)) explain();
      },
      images: async (isCurrent) => {
        const more = await follow.images(tiles, isCurrent);
        if (isCurrent()) await showBest(isCurrent);
        return more;
      },
      lost: (message) => {
        draw();
        notes.draw([message]);
      },
      ended: () => trigger("ended"),
    });

    watch("value", () => {
      follow.open(props.value);
      if (window.innerWidth < 700) root.scrollIntoView({ behavior: "smooth" });
    });
    new ResizeObserver(draw).observe(root);
    follow.open(props.value || (keepsAddress ? ttsVision.address("job") : null));
  };
})();
