/** The nodes of the cluster as a table, and aloud what changes. */

import { byId, compact, counted, element, grouped, setText } from "./format.js";

/** Which colour a state has; those that are not here have none. */
const TONES = {
  reigning: "good",
  streaming: "good",
  following: "good",
  catching_up: "busy",
  full_sync: "busy",
  asking: "busy",
  connecting: "busy",
  disconnected: "bad",
  superseded: "bad",
  no_answer: "bad",
};

/** A lag of less is shown in entries only. */
const SHOWN_LAG_S = 0.1;

/** States in words, where an underscore would stand in them. */
const inWords = (state) => state.replaceAll("_", " ");

/** The primary comes first, and the others by their names. */
const inOrder = (one, other) =>
  (other.role === "primary") - (one.role === "primary") || one.name.localeCompare(other.name, "en", { numeric: true });

export class ClusterTable {
  /** @param {(text: string) => void} announce  says something aloud */
  constructor(announce) {
    this.announce = announce;
    this.body = byId("nodes");
    this.source = byId("cluster-source");
    /** @type {Map<string, Row>} */
    this.rows = new Map();
  }

  /** @param {object} cluster  the member `cluster` of a status event */
  show(cluster) {
    const isAsking = cluster.source === "asking";
    const rows = new Map();
    for (const node of [...cluster.nodes].sort(inOrder)) {
      const row = this.rows.get(node.name) ?? new Row();
      // While the primary is asked, nobody knows of a change: what is said of a node then is compared with nothing.
      if (!isAsking) {
        if (row.known !== null && row.known !== node.state) {
          this.announce(`${node.name} is ${inWords(node.state)}`);
        }
        row.known = node.state;
      }
      row.show(node);
      rows.set(node.name, row);
    }
    this.rows = rows;
    const wanted = [...rows.values()].map((row) => row.line);
    if (wanted.length !== this.body.children.length || wanted.some((line, at) => line !== this.body.children[at])) {
      this.body.replaceChildren(...wanted);
    }
    setText(this.source, cluster.reason ?? (cluster.source === "primary" ? "as the primary sees it" : "as this node, the primary, sees it"));
    this.source.classList.toggle("warned", Boolean(cluster.reason) && !isAsking);
  }
}

class Row {
  constructor() {
    /** The last state that is not of a moment at which the primary was only asked; null = there was none. */
    this.known = null;
    this.cells = {};
    this.line = element("tr");
    this.line.setAttribute("role", "row");
    for (const [name, label] of [
      ["name", ""], ["role", "Role"], ["state", "State"], ["applied", "Applied"], ["lag", "Lag"],
      ["retention", "Retention"], ["address", "Peer address"],
    ]) {
      const cell = element(name === "name" ? "th" : "td", { className: `cell-${name}` });
      cell.setAttribute("role", name === "name" ? "rowheader" : "cell");
      if (label) {
        cell.dataset.label = label;
      }
      this.cells[name] = element("span");
      cell.append(this.cells[name]);
      this.line.append(cell);
    }
    this.line.firstElementChild.scope = "row";
    this.self = element("span", { className: "badge", textContent: "this node" });
    this.line.firstElementChild.append(this.self);
  }

  /** @param {object} node */
  show(node) {
    this.line.dataset.name = node.name;
    this.line.dataset.state = node.state;
    const { cells } = this;
    setText(cells.name, node.name);
    this.self.hidden = !node.is_self;
    setText(cells.role, node.role);
    setText(cells.state, inWords(node.state) + (node.synced_keys ? `, ${counted(node.synced_keys, "key")} sent` : ""));
    cells.state.className = `state ${TONES[node.state] ?? ""}`;
    setText(cells.applied, node.applied_seq === undefined ? "–" : grouped(node.applied_seq));
    setText(cells.lag, lagOf(node));
    setText(cells.retention, node.retention ?? "–");
    cells.retention.className = node.retention === "lost" ? "state bad" : "";
    setText(cells.address, node.address || "not known");
  }
}

/** @returns {string} such as 0, 1,234 entries, 0.4 s */
function lagOf(node) {
  if (node.lag_entries === undefined) {
    return "–";
  }
  const entries = node.lag_entries === 0 ? "none" : counted(node.lag_entries, "entry", "entries");
  return node.lag_s >= SHOWN_LAG_S ? `${entries}, ${compact(node.lag_s)} s` : entries;
}
