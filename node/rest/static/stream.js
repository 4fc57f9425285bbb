/** The events of the node, for as long as the page is open: lost connections are noticed, and made again. */

/** No event for so long, and the node counts as unreachable; and for so long, and another connection is tried. */
const SILENT_MS = 5000;
const GIVEN_UP_MS = 10000;
const RETRY_FIRST_MS = 1000;
const RETRY_LAST_MS = 8000;

/**
 * @typedef {object} StreamOwner
 * @property {(status: object) => void} status  what the node says of itself came
 * @property {(entries: object) => void} entries  new entries came
 * @property {(trouble: {since: number | null, reason: string | null}) => void} lost  nothing comes any more;
 *     `since` is when something came last, `reason` why the node refuses
 */

export class Stream {
  /** @param {StreamOwner} owner */
  constructor(owner) {
    this.owner = owner;
    this.heardAt = null;
    this.openedAt = 0;
    this.heardTime = null;
    this.reason = null;
    this.retryMs = RETRY_FIRST_MS;
    this.retry = 0;
    this.open();
    setInterval(() => this.watch(), 1000);
    // A page that was left may be kept for the way back. It must not keep one of the few connections to the node.
    addEventListener("pagehide", () => this.source.close());
    addEventListener("pageshow", (event) => event.persisted && this.open());
  }

  open() {
    clearTimeout(this.retry);
    this.retry = 0;
    this.source?.close();
    this.openedAt = performance.now();
    const source = (this.source = new EventSource("events"));
    source.addEventListener("status", (event) => {
      this.heard();
      this.owner.status(JSON.parse(event.data));
    });
    source.addEventListener("entries", (event) => {
      this.heard();
      this.owner.entries(JSON.parse(event.data));
    });
    source.addEventListener("error", () => this.failed(source));
  }

  heard() {
    this.heardAt = performance.now();
    this.heardTime = Date.now();
    this.reason = null;
    this.retryMs = RETRY_FIRST_MS;
  }

  /** A browser tries again by itself, unless it was answered with an error. */
  async failed(source) {
    if (source !== this.source) {
      return;
    }
    if (source.readyState !== EventSource.CLOSED) {
      this.tell();
      return;
    }
    this.openLater();
    this.reason = await explain();
    this.tell();
  }

  openLater() {
    if (!this.retry) {
      this.retry = setTimeout(() => this.open(), this.retryMs);
      this.retryMs = Math.min(2 * this.retryMs, RETRY_LAST_MS);
    }
  }

  watch() {
    const silentMs = performance.now() - Math.max(this.heardAt ?? 0, this.openedAt);
    if (performance.now() - (this.heardAt ?? this.openedAt) > SILENT_MS) {
      this.tell();
    }
    if (silentMs > GIVEN_UP_MS) {
      this.openLater();
    }
  }

  tell() {
    this.owner.lost({ since: this.heardTime, reason: this.reason });
  }
}

/** Why there are no events, in the node's own words; null if it has none. */
async function explain() {
  const leaving = new AbortController();
  try {
    const answer = await fetch("events", { signal: leaving.signal });
    if (!answer.ok) {
      return (await answer.json()).error.message;
    }
  } catch {
    // It does not answer at all, or not as a node does.
  } finally {
    leaving.abort();
  }
  return null;
}
