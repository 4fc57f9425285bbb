/** The live tail of the log. */

import { byId, bytes, clock, counted, element, grouped, setText, visible } from "./format.js";

const KEPT_LINES = 300;

export class LogTail {
  constructor() {
    this.list = byId("tail");
    this.empty = byId("tail-empty");
    this.button = byId("tail-pause");
    this.isPaused = false;
    this.isLive = false;
    /** What came while paused. */
    this.waiting = [];
    this.waitingCount = 0;
    /** Whether the last line is in view, and is to stay so. */
    this.follows = true;
    this.lastSeq = 0;
    this.lastEpoch = "";
    this.list.addEventListener("scroll", () => {
      this.follows = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 30;
    });
    this.button.addEventListener("click", () => this.pause(!this.isPaused));
    byId("tail-clear").addEventListener("click", () => this.clear());
    this.tell();
  }

  /** @param {{entries: object[], left_out: number}} event */
  add({ entries, left_out: leftOut }) {
    // Who comes back without the node knowing from where is told some of it again.
    const isNew = (entry) => entry.seq > this.lastSeq || termOf(entry.epoch) > termOf(this.lastEpoch);
    const fresh = entries.filter(isNew);
    if (fresh.length > 0) {
      ({ seq: this.lastSeq, epoch: this.lastEpoch } = fresh.at(-1));
    }
    const lines = fresh.flatMap(linesOf);
    if (leftOut > 0) {
      lines.unshift(element("li", { className: "gap", textContent: `${counted(leftOut, "entry", "entries")} not shown` }));
    }
    if (this.isPaused) {
      this.waitingCount += fresh.length + leftOut;
      this.waiting = [...this.waiting, ...lines].slice(-KEPT_LINES);
    } else {
      this.append(lines);
    }
    this.tell();
  }

  /** @param {boolean} isLive  whether new entries would come */
  setLive(isLive) {
    this.isLive = isLive;
    this.tell();
  }

  append(lines) {
    if (lines.length === 0) {
      return;
    }
    const { follows } = this;
    this.list.hidden = false;
    this.list.append(...lines);
    while (this.list.childElementCount > KEPT_LINES) {
      this.list.firstElementChild.remove();
    }
    if (follows) {
      this.list.scrollTop = this.list.scrollHeight;
    }
  }

  pause(isPaused) {
    this.isPaused = isPaused;
    if (!isPaused) {
      this.follows = true;
      this.append(this.waiting);
      this.waiting = [];
      this.waitingCount = 0;
    }
    this.tell();
  }

  clear() {
    this.list.replaceChildren();
    this.waiting = [];
    this.waitingCount = 0;
    this.tell();
  }

  tell() {
    const isEmpty = this.list.childElementCount === 0;
    this.list.hidden = isEmpty;
    this.empty.hidden = !isEmpty;
    setText(this.button, this.isPaused ? "Resume" : "Pause");
    this.button.setAttribute("aria-pressed", String(this.isPaused));
    const paused = `paused, ${counted(this.waitingCount, "new entry", "new entries")}`;
    setText(byId("tail-state"), this.isPaused ? paused : this.isLive ? "live" : "nothing comes");
  }
}

const termOf = (epoch) => Number(epoch.split(".")[0]);

/** A line for each operation that was told; the first one has the seq. */
function linesOf({ seq, time, ops, ops_left_out: opsLeftOut }) {
  const lines = ops.map((op, at) => {
    const isPut = op.op === "put";
    return element(
      "li",
      {},
      element("span", { className: "tail-seq", textContent: at === 0 ? grouped(seq) : "" }),
      element("span", { className: "tail-time", textContent: at === 0 ? clock(time) : "" }),
      element("span", { className: `tail-op ${op.op}`, textContent: op.op }),
      part("tail-key", op.key, op.key_bytes),
      ...(isPut ? [part("tail-value", op.value, op.value_bytes)] : []),
    );
  });
  if (opsLeftOut > 0) {
    lines.push(element("li", { className: "gap", textContent: `and ${counted(opsLeftOut, "more change")} by the same entry` }));
  }
  return lines;
}

/** A text; and its whole size, where only its beginning was told. */
function part(className, text, size) {
  const shown = element("span", { className }, element("span", {}, visible(text)));
  if (size !== undefined) {
    shown.append(element("span", { className: "cut", textContent: ` of ${bytes(size)}` }));
  }
  return shown;
}
