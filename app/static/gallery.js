// Past runs as cards; one of them in full, with what can be done with it.
"use strict";
(() => {
  const { el, button, text } = ttsVision;

  const save = (source, name) => {
    const link = el("a", { href: source, download: name });
    document.body.append(link);
    link.click();
    link.remove();
  };

  const code = (title, content) => {
    const copy = button("Copy", {
      "aria-label": `Copy: ${title}`,
      onclick: async () => {
        if (navigator.clipboard) {
          await navigator.clipboard.writeText(content);
          text(copy, "Copied");
        } else {  // browsers give no clipboard to pages that are neither local nor encrypted
          window.getSelection().selectAllChildren(copy.closest(".tv-code").querySelector("code"));
          text(copy, "Selected: press Ctrl+C");
        }
      },
    });
    return el("section", { class: "tv-code" },
      el("div", { class: "tv-bar" }, el("h4", {}, title), copy),
      el("pre", { tabindex: 0, "aria-label": title }, el("code", {}, content)));
  };

  ttsVision.gallery = (element, server, { watch, trigger }) => {
    const root = element.querySelector(".tv-panel");
    let found = { runs: [], total: 0, models: [], algorithms: [] };
    let chosen = null;
    let round = 0;

    const words = el("input", { type: "search", id: "tv-find", placeholder: "words of the prompt" });
    const choice = (id) => el("select", { id });
    const models = choice("tv-find-model");
    const algorithms = choice("tv-find-algorithm");
    const field = (label, control, more = "") => el("label", { class: `tv-field ${more}`, for: control.id }, label, control);
    const notes = ttsVision.notes();
    const cards = el("ul", { class: "tv-grid tv-cards", "aria-label": "Runs" });
    const more = button("Show more", { onclick: () => load(true) });
    const refresh = button("Refresh", { onclick: () => load(false) });
    const count = el("p", { class: "tv-state", role: "status" });
    const side = el("div", { class: "tv-run" });
    const refine = ttsVision.refine(async (request) => {
      const made = await server.refine_run({ job: chosen, ...request });
      if (!made || made.error) {
        notes.draw([made ? made.error : "The server does not answer; try again."]);
        return;
      }
      trigger("open", { job: made.job });
      ttsVision.showTab("search");
    });
    root.append(
      el("div", { class: "tv-bar" }, count, el("div", { class: "tv-buttons" }, refresh)),
      el("div", { class: "tv-fields" }, field("Find", words, "tv-wide"), field("Model", models), field("Algorithm", algorithms)),
      notes.root,
      el("div", { class: "tv-halves" }, el("div", { class: "tv-scroll tv-shelf" }, cards, more), side),
    );

    const options = (select, names) => {
      const value = select.value;
      select.replaceChildren(el("option", { value: "" }, "all"), ...names.map((name) => el("option", { value: name }, name)));
      select.value = names.includes(value) ? value : "";
    };

    const draw = () => {
      text(count, found.total === 1 ? "1 run" : `${found.total} runs`);
      options(models, found.models);
      options(algorithms, found.algorithms);
      more.hidden = found.runs.length >= found.total;
      cards.replaceChildren(...found.runs.map((run) =>
        el("li", { class: `tv-tile${run.id === chosen ? " tv-selected" : ""}`, "data-job": run.id },
          el("button", {
            type: "button", class: "tv-open tv-loaded", onclick: () => show(run.id),
            "aria-label": `${run.prompt}, ${run.algorithm}, ${run.state}`,
          }, run.image ? el("img", { src: run.image, alt: "" }) : ""),
          el("p", { class: "tv-title", title: run.prompt }, run.prompt),
          el("p", { class: "tv-caption" },
            el("span", { class: "tv-score" }, run.score === null ? "" : ttsVision.score(run.score)),
            el("span", { class: "tv-note" }, run.state === "finished" ? run.algorithm : run.state)))));
      if (!found.runs.length) cards.replaceChildren(el("li", { class: "tv-hint" }, root.dataset.hint));
    };

    const load = async (further) => {
      round += 1;
      const from = round;
      const first = further ? found.runs.length : 0;
      const next = await server.list_runs({
        text: words.value, model: models.value, algorithm: algorithms.value, first,
      });
      if (from !== round) return;
      if (!next || next.error) {
        notes.draw([next ? next.error : "The server does not answer; try again."]);
        return;
      }
      notes.draw([]);
      found = further ? { ...next, runs: [...found.runs, ...next.runs] } : next;
      draw();
    };

    // the page opens what comes of it in the tab of its kind
    const go = (what, run) => {
      trigger(what, { job: run.id });
      ttsVision.showTab(run.algorithm === "draft" ? "draft" : "search");
    };

    const ask = async (call, id) => {
      const answer = await call({ job: id });
      if (answer && !answer.error) return answer;
      notes.draw([answer ? answer.error : "The server does not answer; try again."]);
      return null;
    };

    const replay = async (id, told) => {
      text(told, "Making it again …");
      for (;;) {
        const answer = await ask(server.replay_run, id);
        if (!answer || id !== chosen) return;
        if (answer.state === "finished") {
          const same = answer.difference === 0;
          told.replaceChildren(
            el("img", { src: answer.image, alt: "The sample, made again" }),
            same ? "Made again from its record: every pixel is the same."
              : `Made again from its record: pixels differ by at most ${answer.difference} of 255.`);
          told.dataset.difference = answer.difference;
          return;
        }
        await new Promise((resolve) => setTimeout(resolve, 700));
      }
    };

    const show = async (id) => {
      chosen = id;
      for (const card of cards.children) card.classList.toggle("tv-selected", card.dataset.job === id);
      const about = await ask(server.recipe, id);
      if (!about || id !== chosen) return;
      const { run } = about;
      const shown = ["best.mp4", "best.png"].find((name) => about.files.some((file) => file.name === name));
      refine.choose(about.best, run.prompt, "the best", about.best !== null);
      const view = el("div", { class: "tv-view" });
      const told = el("p", { class: "tv-replayed", role: "status" });
      const fact = (name, value) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, String(value)));
      ttsVision.put(
        side, view,
        el("h3", {}, run.prompt),
        el("div", { class: "tv-buttons" },
          button("Open", { class: "tv-button tv-primary", onclick: () => go("open", run) }),
          run.state === "finished" ? null : button("Resume", { onclick: () => go("resume", run) }),
          button("Run again", { onclick: () => go("again", run) }),
          run.state === "unfinished" ? null : button("Replay", { onclick: () => replay(id, told) })),
        told,
        about.note ? el("p", { class: "tv-noted" }, about.note) : null,
        about.best === null ? null : refine.root,
        el("table", {}, fact("Score", run.score === null ? "none" : ttsVision.score(run.score)), fact("Model", run.model),
          fact("Algorithm", run.algorithm), fact("Verifier", run.verifier), fact("Budget", run.budget), fact("Seed", run.seed)),
        el("h4", {}, "Take it home"),
        el("ul", { class: "tv-files" }, ...about.files.map((file) => el("li", {}, button(file.label, {
          class: "tv-linkish", "data-file": file.name,
          onclick: async () => {
            const answer = await server.file({ job: id, name: file.name });
            if (answer && answer.source) save(answer.source, file.name);
            else notes.draw([answer ? answer.error : "The server does not answer; try again."]);
          },
        })))),
        code("On the command line", about.command),
        code("In Python", about.snippet),
      );
      if (shown) {
        const answer = await server.file({ job: id, name: shown });
        if (answer && answer.source && id === chosen) {
          view.replaceWith(ttsVision.view(answer.kind, answer.source, run.prompt));
        }
      }
      if (window.innerWidth < 700) side.scrollIntoView({ behavior: "smooth" });
    };

    let typing = 0;
    words.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => load(false), 250);
    });
    models.addEventListener("change", () => load(false));
    algorithms.addEventListener("change", () => load(false));
    watch("value", () => load(false));
    side.replaceChildren(el("p", { class: "tv-hint" }, "Choose a run to see all about it."));
    draw();
    load(false);
  };
})();
