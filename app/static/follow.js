// Follows one job of the server: asks for what changed, as long as there may be something.
"use strict";
(() => {
  const PAUSE = 350; // milliseconds between two looks at a running search
  const ENDED = new Set(["finished", "stopped", "failed"]);

  // on: {begin(), look(view, samples), images(view, samples) -> whether there are more, lost(message), ended(view)}
  ttsVision.follow = (server, on) => {
    const now = { job: null, samples: new Map(), view: null };
    let since = -1;
    let round = 0; // grows with every job and command, so that late answers to former ones are dropped

    const look = async (from) => {
      const found = await server.look({ job: now.job, since });
      if (from !== round) return;
      if (!found) {
        on.lost("The server does not answer; trying again.");
        setTimeout(() => look(from), 2000);
        return;
      }
      if (found.error && !found.state) {
        now.view = null;
        on.lost(found.error);
        return;
      }
      const before = now.view ? now.view.state : null;
      now.view = found;
      since = found.event;
      for (const sample of found.samples) now.samples.set(sample.uid, sample);
      const steps = [...now.samples.values()].map((sample) => sample.step);
      found.steps = Math.max(found.steps || 0, ...steps);
      on.look(found.samples);
      const more = await on.images(() => from === round);
      if (from !== round) return;
      if (ENDED.has(found.state)) {
        if (before !== found.state) on.ended();
        if (!more) return;
      }
      const slow = document.hidden || found.state === "paused";
      setTimeout(() => look(from), more ? 0 : slow ? 4 * PAUSE : PAUSE);
    };

    const open = (job) => {
      round += 1;
      since = -1;
      Object.assign(now, { job: job || null, samples: new Map(), view: null });
      on.begin();
      if (now.job) look(round);
    };

    // asks the server to do something with the job; a job that comes of it is opened
    const command = async (request) => {
      const found = await server.act({ job: now.job, ...request });
      if (found && !found.error && found.job !== now.job) open(found.job);
      else {
        round += 1;
        await look(round);
        if (!found || found.error) on.lost(found ? found.error : "The server does not answer; try again.");
      }
    };

    // shows new images of samples on tiles; whether there were any
    const images = async (tiles, isCurrent) => {
      const uids = tiles.stale(now.samples).slice(0, 32);
      if (!uids.length) return false;
      const versions = uids.map((uid) => now.samples.get(uid).preview);
      const found = await server.images({ job: now.job, uids });
      if (!isCurrent() || !found || found.error) return false;
      uids.forEach((uid, i) => tiles.show(uid, versions[i], found[uid] || ""));
      return true;
    };
    return { now, open, command, images };
  };

  // what is wrong, announced once
  ttsVision.notes = () => {
    const root = ttsVision.el("ul", { class: "tv-notes", role: "alert" });
    let told = "";
    const draw = (messages) => {
      const some = messages.filter(Boolean);
      if (some.join("\n") === told) return;
      told = some.join("\n");
      root.replaceChildren(...some.map((each) => ttsVision.el("li", {}, each)));
    };
    return { root, draw };
  };

  // where a job stands, in words
  ttsVision.standing = (view) => {
    if (!view) return "Nothing is running";
    const before = view.place > 1 ? ` (${view.place - 1} before it)` : "";
    return (ttsVision.states[view.state] || view.state) + before;
  };
})();
