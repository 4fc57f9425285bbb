/** The dashboard of a node: the parts of the page, and what tells them what happens. */

import { Charts } from "./charts.js";
import { ClusterTable } from "./cluster.js";
import { byId, clock, duration, element, grouped, setText } from "./format.js";
import { KeyBrowser } from "./keys.js";
import { Stream } from "./stream.js";
import { LogTail } from "./tail.js";

class Dashboard {
  constructor() {
    this.name = "this node";
    this.link = "connecting";
    this.isDraining = false;
    this.isReady = true;
    this.cluster = new ClusterTable((text) => this.announce(text));
    this.charts = new Charts();
    this.tail = new LogTail();
    this.keys = new KeyBrowser();
    this.stream = new Stream({
      status: (status) => this.show(status),
      entries: (entries) => this.tail.add(entries),
      lost: (trouble) => this.lose(trouble),
    });
    document.addEventListener("keydown", (event) => {
      const isTyping = event.target.closest("input, textarea, dialog");
      if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        byId("prefix").focus();
        byId("prefix").select();
      }
    });
  }

  /** @param {object} status  a status event */
  show(status) {
    const wasAway = this.link === "unreachable";
    const wasReady = this.isReady;
    this.isReady = status.not_ready === null;
    this.name = status.name;
    this.isDraining = status.not_ready?.code === "draining";
    setText(byId("node-name"), status.name);
    setText(byId("node-role"), status.role);
    byId("node-role").hidden = false;
    setText(byId("cluster-id"), status.cluster_id.slice(0, 8));
    setText(byId("epoch"), status.epoch);
    setText(byId("uptime"), duration(status.uptime_s));
    setText(byId("version"), status.version);
    this.setLink(this.isDraining ? "draining" : "live", this.isDraining ? "stopping" : "live");
    setBanner(this.isDraining ? `${status.name} is stopping (draining): it takes no more requests.` : "");
    document.title = `${status.name} · kvnode`;
    showNotices(noticesOf(status));
    this.cluster.show(status.cluster);
    this.charts.add(status);
    if (wasAway) {
      this.announce(`${status.name} answers again`);
    }
    if (wasAway || (this.isReady && !wasReady)) {
      this.keys.reload();
    }
  }

  lose({ since, reason }) {
    let what = since === null ? "does not answer" : `does not answer since ${clock(since)}`;
    if (reason !== null) {
      what = `cannot be watched: ${reason}`;
    } else if (this.isDraining) {
      what = `stopped at ${clock(since)}`;
    }
    this.setLink("unreachable", "unreachable");
    setBanner(`${this.name} ${what}; trying again.`);
    document.title = `(unreachable) ${this.name} · kvnode`;
  }

  setLink(state, text) {
    this.link = state;
    document.body.dataset.link = state;
    setText(byId("link-text"), text);
    this.tail.setLive(state === "live");
  }

  announce(text) {
    setText(byId("announcer"), text);
  }
}

/** What an operator should know now, as a list of (code, text). */
function noticesOf(status) {
  const notices = [];
  if (status.fenced) {
    notices.push(["fenced", status.fenced]);
  }
  if (status.diverged) {
    const kept = `What only it had is kept in its data directory, below diverged/: ${status.diverged.join(", ")}.`;
    notices.push(["diverged", `This node's log had gone another way than its primary's. ${kept}`]);
  }
  if (status.sync) {
    const keys = status.sync.keys ? `, ${grouped(status.sync.keys)} keys so far` : "";
    notices.push([`full sync, ${status.sync.state}`, `This node takes all data over from its primary${keys}.`]);
  }
  const error = status.primary?.error;
  // That there is no connection is said beside the cluster.
  if (error && !(error.code === "disconnected" && status.cluster.reason)) {
    notices.push([error.code, error.message]);
  }
  if (status.not_ready && status.not_ready.code !== "draining") {
    notices.push([`not ready: ${status.not_ready.code}`, status.not_ready.message]);
  }
  return notices;
}

function showNotices(notices) {
  const list = byId("notices");
  const text = JSON.stringify(notices);
  if (list.dataset.shown !== text) {
    list.dataset.shown = text;
    list.replaceChildren(
      ...notices.map(([code, told]) => element("li", {}, element("strong", { textContent: code }), ` ${told}`)),
    );
    list.hidden = notices.length === 0;
  }
}

function setBanner(text) {
  const banner = byId("banner");
  setText(banner, text);
  banner.hidden = text === "";
}

new Dashboard();
