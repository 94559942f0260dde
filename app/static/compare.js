// A comparison: a table that fills while its searches run, and the curves at its end.
"use strict";
(() => {
  const { el, button, text } = ttsVision;
  const PAUSE = 700;

  const interval = (value, low, high) => {
    if (value === null) return "–";
    return low === null ? value.toFixed(4) : `${value.toFixed(4)} [${low.toFixed(4)}, ${high.toFixed(4)}]`;
  };

  const table = (view) => {
    const several = new Set(view.rows.map((row) => row.verifier)).size > 1;
    const macs = view.rows.some((row) => row.macs > 0);
    const head = ["Algorithm", ...(several ? ["Verifier"] : []), "Best score", "Gain", ...(view.evaluator ? [view.evaluator] : []),
      macs ? "GMAC" : "nfe", "Seconds"];
    const top = Math.max(...view.rows.map((row) => row.score ?? -Infinity));
    const line = (row) => el("tr", { class: row.score === top ? "tv-top-row" : null },
      el("th", { scope: "row" }, row.algorithm),
      ...(several ? [el("td", {}, row.verifier)] : []),
      ...[
        interval(row.score, row.score_low, row.score_high),
        row.gain === null ? "–" : (row.gain >= 0 ? "+" : "") + row.gain.toFixed(4),
        ...(view.evaluator ? [interval(row.evaluation, row.evaluation_low, row.evaluation_high)] : []),
        macs ? (row.macs / 1e9).toPrecision(4) : ttsVision.amount(row.nfe),
        row.seconds.toFixed(1),
      ].map((cell) => el("td", { class: "tv-number" }, cell)));
    return el("table", { class: "tv-table" },
      el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...view.rows.map(line)));
  };

  ttsVision.compare = (element, server, { watch, props }) => {
    const root = element.querySelector(".tv-panel");
    let id = null;
    let round = 0;
    let view = null;
    const state = el("p", { class: "tv-state", role: "status", "aria-live": "polite" });
    const stop = button("Stop", { disabled: true, onclick: () => server.stop_comparison({ id }) });
    const bar = el("progress", { max: 1, value: 0, "aria-label": "Share of the searches that have ended" });
    const notes = ttsVision.notes();
    const rows = el("div", { class: "tv-scroll tv-rows" });
    const curves = el("div", { class: "tv-charts" });
    root.append(
      el("div", { class: "tv-bar" }, state, el("div", { class: "tv-buttons" }, stop)),
      el("div", { class: "tv-meter" }, bar), notes.root, rows, curves,
    );

    const drawCurves = () => {
      const charts = view ? view.curves : [];
      curves.replaceChildren(...charts.map((chart) => {
        const box = el("div");
        return el("figure", {}, box, ttsVision.legend(chart.lines), el("figcaption", {}, `Mean best score by ${chart.verifier}`));
      }));
      charts.forEach((chart, i) => ttsVision.curve(curves.children[i].firstChild, {
        lines: chart.lines, end: null, unit: view.unit, name: `Mean best score by ${chart.verifier} over compute`,
      }));
    };

    const draw = () => {
      const words = view ? ttsVision.standing({ place: 0, ...view }).replace("Searching", "Comparing") : "Nothing is running";
      text(state, view && view.total ? `${words}: ${view.done} of ${view.total} searches` : words);
      root.dataset.state = view ? view.state : "";
      bar.value = view && view.total ? view.done / view.total : 0;
      stop.disabled = !view || !["queued", "running"].includes(view.state);
      rows.replaceChildren(view && view.rows.length ? table(view) : el("p", { class: "tv-hint" }, root.dataset.hint));
    };

    const look = async (from) => {
      const found = await server.look_at_comparison({ id });
      if (from !== round) return;
      if (!found) {
        notes.draw(["The server does not answer; trying again."]);
        setTimeout(() => look(from), 2000);
        return;
      }
      const before = view ? view.state : null;
      view = found.state ? found : null;
      notes.draw([found.error]);
      draw();
      if (!view) return;
      if (view.state !== before) drawCurves();
      if (["queued", "running"].includes(view.state)) setTimeout(() => look(from), PAUSE);
    };

    const open = (value) => {
      round += 1;
      [id, view] = [value || null, null];
      ttsVision.address("comparison", id);
      notes.draw([]);
      draw();
      drawCurves();
      if (id) look(round);
    };
    watch("value", () => open(props.value));
    new ResizeObserver(drawCurves).observe(root);
    open(props.value || ttsVision.address("comparison"));
  };
})();
