// Drafts: many previews by number, of which the chosen ones are finished where they stand.
"use strict";
(() => {
  const { el, button, text } = ttsVision;

  ttsVision.drafts = (element, server, { watch, props, trigger }) => {
    const root = element.querySelector(".tv-panel");
    const chosen = new Set();

    const state = el("p", { class: "tv-state", role: "status", "aria-live": "polite" });
    const count = el("input", { type: "number", min: 1, max: 64, value: 4, id: "tv-count", class: "tv-count" });
    const asked = el("p", { class: "tv-asked" });
    const notes = ttsVision.notes();
    const empty = el("p", { class: "tv-hint" }, root.dataset.hint);
    const big = el("div", { class: "tv-detail" });

    const open = () => follow.now.view !== null && follow.now.view.drafts;
    const isDraft = (sample) => sample.fate !== "finished" && sample.fate !== "invalid";

    const toggle = (uid) => {
      if (chosen.has(uid)) chosen.delete(uid);
      else chosen.add(uid);
      draw();
    };
    const pickBest = () => {
      const scored = [...follow.now.samples.values()].filter((s) => isDraft(s) && s.score !== null);
      scored.sort((a, b) => b.score - a.score || a.uid - b.uid);
      chosen.clear();
      scored.slice(0, Math.max(1, Number(count.value) || 1)).forEach((sample) => chosen.add(sample.uid));
      draw();
    };
    const clear = () => {
      chosen.clear();
      draw();
    };
    const finish = () => {
      const uids = [...chosen].sort((a, b) => a - b);
      chosen.clear();
      follow.command({ what: "pick", uids });
    };
    // a refinement is a search of its own: the page opens it in the Search tab
    const refine = ttsVision.refine(async (request) => {
      const found = await server.act({ job: follow.now.job, ...request });
      notes.draw([found ? found.error : "The server does not answer; try again."]);
      if (!found || found.error) return;
      trigger("open", { job: found.job });
      ttsVision.showTab("search");
    });
    const show = async (uid) => {
      const { job, samples, view } = follow.now;
      refine.choose(uid, view.prompt, `draft ${uid}`, view.can.more);
      const found = await server.sample({ job, uid });
      if (!found || !found.source) return;
      big.replaceChildren(
        ttsVision.view(found.kind, found.source, `Draft ${uid}`),
        el("p", {}, `Draft ${uid}, ${ttsVision.score(samples.get(uid).score)}`),
        ...(samples.get(uid).reason ? [el("p", {}, samples.get(uid).reason)] : []),
      );
    };

    const best = button("Choose the best", { onclick: pickBest });
    const none = button("Choose none", { onclick: clear });
    const go = button("Finish the chosen", { class: "tv-button tv-primary", onclick: finish });
    const stop = button("Stop", { onclick: () => follow.command({ what: "stop" }) });
    const tiles = ttsVision.tiles(show, [{
      what: "choose",
      label: (sample) => (isDraft(sample) ? (chosen.has(sample.uid) ? "Chosen" : "Choose") : "Finished"),
      enabled: (sample) => open() && isDraft(sample),
      pressed: (sample) => chosen.has(sample.uid),
      run: toggle,
    }], { dropped: "" });

    root.append(
      el("div", { class: "tv-bar" }, state, el("div", { class: "tv-buttons" }, stop)),
      asked, notes.root,
      el("div", { class: "tv-bar" },
        el("div", { class: "tv-buttons" }, best, el("label", { for: "tv-count", class: "tv-inline" }, "how many", count), none),
        go),
      el("div", { class: "tv-split" }, el("div", { class: "tv-scroll tv-drafts" }, tiles.root, empty), big),
      refine.root,
    );

    const draw = () => {
      const { view, samples, job } = follow.now;
      const waits = view && view.drafts;
      text(state, waits ? "Choose drafts to finish" : ttsVision.standing(view));
      text(asked, view ? view.prompt : "");
      root.dataset.state = view ? view.state : "";
      root.dataset.job = job || "";
      root.dataset.drafts = waits ? "yes" : "";
      stop.disabled = !(view && view.can.stop);
      best.disabled = none.disabled = !waits;
      go.disabled = !waits || !chosen.size;
      text(go, chosen.size ? `Finish the chosen ${chosen.size}` : "Finish the chosen");
      empty.hidden = samples.size > 0;
      tiles.draw(samples, view ? view.best : null, null, view ? view.steps : 0, view ? view.can : {});
    };

    const follow = ttsVision.follow(server, {
      begin: () => {
        chosen.clear();
        tiles.clear();
        notes.draw([]);
        big.replaceChildren(el("p", { class: "tv-hint" }, "Press a draft to see it large."));
        refine.choose(null, "", "");
        ttsVision.address("drafts", follow.now.job);
        draw();
      },
      look: () => {
        notes.draw([follow.now.view.error, ...follow.now.view.warnings]);
        draw();
      },
      images: (isCurrent) => follow.images(tiles, isCurrent),
      lost: (message) => {
        draw();
        notes.draw([message]);
      },
      ended: () => {},
    });
    watch("value", () => follow.open(props.value));
    follow.open(props.value || ttsVision.address("drafts"));
  };
})();
