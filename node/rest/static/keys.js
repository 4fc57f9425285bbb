/** The key browser: search, pages, one value, put and delete. */

import { byId, bytes, counted, element, setText, visible } from "./format.js";
import { laidOut, whyNotJson } from "./jsontext.js";
import { NodeError, put, read, readRange, remove } from "./node.js";

const PAGE_KEYS = 50;
/** A page of large values ends earlier. */
const PAGE_CHARACTERS = 4 * 1024 * 1024;
const SEARCH_PAUSE_MS = 200;

/** What is shown of a value at first, and up to where it is laid out. */
const SHOWN_CHARACTERS = 10_000;
const LAID_OUT_CHARACTERS = 300_000;
const PREVIEW_CHARACTERS = 120;

const sizeOf = (text) => new TextEncoder().encode(text).length;

export class KeyBrowser {
  constructor() {
    this.list = byId("list");
    /** The first keys of the pages up to this one. */
    this.starts = [null];
    this.next = null;
    this.loading = null;
    /** @type {{key: string, value: string, version: string} | null} */
    this.shown = null;
    this.pauseTimer = 0;
    this.listen();
    this.reload();
  }

  listen() {
    byId("search").addEventListener("submit", (event) => {
      event.preventDefault();
      this.restart().then(() => this.list.querySelector("button")?.focus());
    });
    byId("prefix").addEventListener("input", () => {
      clearTimeout(this.pauseTimer);
      this.pauseTimer = setTimeout(() => this.restart(), SEARCH_PAUSE_MS);
    });
    byId("prefix").addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown") {
        event.preventDefault();
        this.list.querySelector("button")?.focus();
      }
    });
    byId("previous").addEventListener("click", () => this.turn(-1));
    byId("next").addEventListener("click", () => this.turn(1));
    this.list.addEventListener("keydown", (event) => this.move(event));
    byId("close").addEventListener("click", () => this.close());
    byId("show-all").addEventListener("click", () => this.showValue(true));
    byId("copy").addEventListener("click", () => this.copy());
    byId("edit").addEventListener("click", () => this.edit());
    byId("delete").addEventListener("click", () => this.askToDelete());
    byId("put").addEventListener("submit", (event) => {
      event.preventDefault();
      this.put();
    });
    byId("confirm-no").addEventListener("click", () => byId("confirm").close());
    byId("confirm-yes").addEventListener("click", () => this.delete());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.shown && !byId("confirm").open && !event.target.closest("#put")) {
        this.close();
      }
    });
  }

  // ---- the list --------------------------------------------------------------------------------------------------

  /** Show the first page of what is searched for. */
  restart() {
    clearTimeout(this.pauseTimer);
    this.starts = [null];
    return this.reload();
  }

  turn(direction) {
    if (direction > 0) {
      this.starts.push(this.next);
    } else {
      this.starts.pop();
    }
    return this.reload().then(() => this.list.querySelector("button")?.focus());
  }

  /** Read the page again. */
  async reload() {
    this.loading?.abort();
    const loading = (this.loading = new AbortController());
    const prefix = byId("prefix").value;
    try {
      const { items, next } = await readRange({
        prefix,
        start: this.starts.at(-1),
        count: PAGE_KEYS,
        maxCharacters: PAGE_CHARACTERS,
        signal: loading.signal,
      });
      this.next = next;
      this.showList(items, prefix);
      hideError("list-error");
    } catch (error) {
      if (error.name !== "AbortError") {
        showError("list-error", error);
      }
    }
  }

  showList(items, prefix) {
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    this.list.replaceChildren(...items.map((item) => this.lineOf(item)));
    this.list.hidden = items.length === 0;
    if (focused !== null) {
      (this.buttonOf(focused) ?? this.list.querySelector("button") ?? byId("prefix")).focus();
    }
    const empty = byId("list-empty");
    empty.hidden = items.length > 0;
    empty.replaceChildren(
      ...(prefix ? ["No key begins with ", element("q", {}, visible(prefix)), "."] : ["This node holds no keys yet. Put one."]),
    );
    byId("previous").disabled = this.starts.length === 1;
    byId("next").disabled = this.next === null;
    const page = this.starts.length > 1 || this.next !== null ? `Page ${this.starts.length}, ` : "";
    setText(byId("page"), items.length > 0 ? `${page}${counted(items.length, "key")}` : "");
  }

  /** @param {string | undefined} key @returns {HTMLElement | undefined} its line on this page */
  buttonOf(key) {
    return [...this.list.querySelectorAll("button")].find((button) => button.dataset.key === key);
  }

  lineOf({ key, value }) {
    const preview = value.length > PREVIEW_CHARACTERS ? `${value.slice(0, PREVIEW_CHARACTERS)}…` : value;
    const button = element(
      "button",
      { type: "button" },
      element("span", { className: "key" }, visible(key)),
      element("span", { className: "preview" }, visible(preview)),
    );
    button.dataset.key = key;
    button.setAttribute("aria-current", String(key === this.shown?.key));
    button.addEventListener("click", () => this.open(key));
    return element("li", {}, button);
  }

  move(event) {
    const buttons = [...this.list.querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (at === -1 || to === undefined) {
      return;
    }
    event.preventDefault();
    (buttons[Math.min(to, buttons.length - 1)] ?? byId("prefix")).focus();
  }

  // ---- one value -------------------------------------------------------------------------------------------------

  async open(key) {
    this.forgetNotes();
    try {
      this.shown = { key, ...(await read(key)) };
    } catch (error) {
      showError("detail-error", error);
      return;
    }
    byId("shown-key").replaceChildren(visible(key));
    setText(byId("shown-version"), this.shown.version || "–");
    setText(byId("shown-size"), bytes(sizeOf(this.shown.value)));
    this.showValue(false);
    byId("viewer").hidden = false;
    this.mark();
    byId("shown-key").focus();
  }

  /** @param {boolean} isWhole  however long it is */
  showValue(isWhole) {
    const { value } = this.shown;
    const text = isWhole ? value : value.slice(0, SHOWN_CHARACTERS);
    const isCut = text.length < value.length;
    byId("shown-value").replaceChildren(text.length > LAID_OUT_CHARACTERS ? text : laidOut(text), isCut ? "…" : "");
    byId("show-all").hidden = !isCut;
    setText(byId("show-all"), `Show all ${bytes(sizeOf(value))}`);
  }

  close() {
    const key = this.shown?.key;
    this.shown = null;
    byId("viewer").hidden = true;
    this.mark();
    (this.buttonOf(key) ?? byId("prefix")).focus();
  }

  mark() {
    for (const button of this.list.querySelectorAll("button")) {
      button.setAttribute("aria-current", String(button.dataset.key === this.shown?.key));
    }
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.shown.value);
      setText(byId("done"), "Copied the value.");
    } catch {
      // Browsers have a clipboard for pages that came by HTTPS, or from this machine.
      getSelection().selectAllChildren(byId("shown-value"));
      setText(byId("done"), "This page may not use the clipboard; the value that is shown is selected.");
    }
  }

  // ---- writes ----------------------------------------------------------------------------------------------------

  edit() {
    byId("put-key").value = this.shown.key;
    byId("put-value").value = this.shown.value;
    byId("put").elements.kind.value = "json";
    byId("put-value").focus();
  }

  async put() {
    this.forgetNotes();
    const key = byId("put-key").value;
    const typed = byId("put-value").value;
    const isText = byId("put").elements.kind.value === "text";
    const why = isText ? null : whyNotJson(typed);
    if (why !== null) {
      const hint = "mend it, or choose to store it as a text";
      showError("detail-error", new NodeError("invalid_json", `the value is not JSON: ${why}`, hint));
      byId("put-value").focus();
      return;
    }
    try {
      const { version } = await put(key, isText ? JSON.stringify(typed) : typed.trim());
      await this.open(key);
      byId("done").replaceChildren("Put ", element("q", {}, visible(key)), ` as ${version}.`);
      await this.reload();
    } catch (error) {
      showError("detail-error", error);
    }
  }

  askToDelete() {
    byId("confirm-key").replaceChildren(visible(this.shown.key));
    byId("confirm").showModal();
  }

  async delete() {
    const { key } = this.shown;
    byId("confirm").close();
    this.forgetNotes();
    try {
      const { deleted, version } = await remove(key);
      this.close();
      byId("done").replaceChildren(
        deleted ? "Deleted " : "There was no key ",
        element("q", {}, visible(key)),
        deleted ? ` by ${version}.` : ".",
      );
      await this.reload();
    } catch (error) {
      showError("detail-error", error);
    }
  }

  forgetNotes() {
    hideError("detail-error");
    setText(byId("done"), "");
  }
}

/** Show what the node says of an error: its code, its message, and what to do. */
function showError(id, error) {
  const told = error instanceof NodeError ? error : new NodeError("page", `this page failed: ${error.message}`);
  byId(id).replaceChildren(
    element("strong", { textContent: told.code }),
    " ",
    element("span", {}, visible(told.message)),
    ...(told.hint ? [element("span", { className: "error-hint" }, "What to do: ", visible(told.hint))] : []),
  );
  byId(id).hidden = false;
}

function hideError(id) {
  byId(id).hidden = true;
}
