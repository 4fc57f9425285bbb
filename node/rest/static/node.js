/** Requests to the node, and its errors. */

import { valueOf } from "./jsontext.js";

/** An answer that is an error, or none. */
export class NodeError extends Error {
  /** @param {string} code @param {string} message @param {string | null} hint */
  constructor(code, message, hint = null) {
    super(message);
    this.code = code;
    this.hint = hint;
  }
}

/** How long a read waits for what was just written through this page. */
const WAIT_S = 5;

/** What a read must see: what this page wrote last. */
let seen = "";

/** @returns {Promise<Response>} an answer with status 200 */
async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") {
      throw error;
    }
    throw new NodeError("unreachable", "the node does not answer", "see whether it is running, then try again");
  }
  if (answer.ok) {
    return answer;
  }
  let told;
  try {
    told = (await answer.json()).error;
  } catch {
    throw new NodeError(`http_${answer.status}`, "something else than the node has answered", "is there a proxy in between?");
  }
  throw new NodeError(told.code, told.message, told.hint);
}

/** @returns {Promise<object>} what the node answered to a write */
async function write(path, body) {
  const answer = await ask(path, { method: "POST", body });
  const { headers } = answer;
  const written = await answer.json();
  seen = `min_seq=${headers.get("Kv-Seq")}&epoch=${headers.get("Kv-Epoch")}&wait=${WAIT_S}`;
  return { ...written, version: `${headers.get("Kv-Epoch")}-${headers.get("Kv-Seq")}` };
}

/**
 * @param {string} key
 * @param {string} json  the value's text; it has to be one whole JSON value
 */
export const put = (key, json) => write("put", `{"key":${JSON.stringify(key)},"value":${json}}`);

/** @param {string} key */
export const remove = (key) => write("delete", JSON.stringify({ key }));

/**
 * @param {string} key
 * @returns {Promise<{value: string, version: string}>} the value's text as it is stored
 */
export async function read(key) {
  if (key === "." || key === "..") {
    // A browser takes these for steps in the path, however they are escaped.
    const wanted = { prefix: "", start: key, count: 1, maxCharacters: Infinity, signal: null };
    const [item] = (await readRange(wanted)).items;
    if (item?.key !== key) {
      throw new NodeError("key_not_found", "no such key");
    }
    return { value: item.value, version: "" };
  }
  const answer = await afterOwnWrites((query) => ask(`read/${encodeURIComponent(key)}${query}`));
  return { value: valueOf(await answer.text()).value, version: answer.headers.get("ETag").replaceAll('"', "") };
}

/**
 * Keys in order, as many as are wanted, or fewer whose values are not too much together.
 * @param {{prefix: string, start: string | null, count: number, maxCharacters: number, signal: AbortSignal}} wanted
 * @returns {Promise<{items: {key: string, value: string}[], next: string | null}>} `next` is the first key left out
 */
export async function readRange({ prefix, start, count, maxCharacters, signal }) {
  const parameters = new URLSearchParams({ limit: String(count + 1) });
  if (prefix) {
    parameters.set("prefix", prefix);
  }
  if (start !== null) {
    parameters.set("start_key", start);
  }
  const answer = await afterOwnWrites((query) =>
    ask(`readrange?${parameters}${query.replace("?", "&")}`, {
      headers: { Accept: "application/x-ndjson" },
      signal,
    }));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  const items = [];
  let rest = "";
  let characters = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) {
      return { items, next: null };
    }
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const item = valueOf(line);
      if (items.length === count || (items.length > 0 && characters > maxCharacters)) {
        await reader.cancel();
        return { items, next: item.key };
      }
      characters += line.length;
      items.push(item);
    }
  }
}

/** Ask for a state that shows what this page wrote; of another history, if that one is lost. */
async function afterOwnWrites(askWith) {
  try {
    return await askWith(seen && `?${seen}`);
  } catch (error) {
    if (error.code !== "history_lost") {
      throw error;
    }
    seen = "";
    return askWith("");
  }
}
