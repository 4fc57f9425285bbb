/** JSON as text: taken apart and laid out without being read, so that every number stays as it is stored. */

import { element, visible } from "./format.js";

/** A token, or a run of white space; anything else is one character. */
const TOKEN = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.eE+-]*|true|false|null|[{}[\],:]|\s+|[^]/g;

/**
 * The key and the value's text of `{"key":"...","value":...}` as the node writes it.
 * @param {string} text
 * @returns {{key: string, value: string}}
 */
export function valueOf(text) {
  const [whole, key] = /^\{"key":("[^"\\]*(?:\\.[^"\\]*)*"),"value":/.exec(text);
  return { key: JSON.parse(key), value: text.slice(whole.length, text.lastIndexOf("}")) };
}

/** @param {string} text @returns {string | null} why it is not one JSON value; null if it is one */
export function whyNotJson(text) {
  try {
    JSON.parse(text);
    return null;
  } catch (error) {
    return error.message;
  }
}

/**
 * A JSON text on lines of its own, coloured.
 * @param {string} text  may be cut off
 * @returns {DocumentFragment}
 */
export function laidOut(text) {
  const shown = document.createDocumentFragment();
  const tokens = (text.match(TOKEN) ?? []).filter((token) => token.trim() !== "");
  let depth = 0;
  let plain = "";
  const newLine = () => `\n${"  ".repeat(depth)}`;
  tokens.forEach((token, index) => {
    const next = tokens[index + 1];
    const kind = kindOf(token, next);
    if (kind !== "") {
      shown.append(plain, element("span", { className: kind }, visible(token)));
      plain = "";
      return;
    }
    if (token === "{" || token === "[") {
      depth += 1;
      plain += next === "}" || next === "]" ? token : token + newLine();
    } else if (token === "}" || token === "]") {
      depth = Math.max(0, depth - 1);
      const before = tokens[index - 1];
      plain += before === "{" || before === "[" ? token : newLine() + token;
    } else if (token === ",") {
      plain += token + newLine();
    } else {
      plain += token === ":" ? ": " : token;
    }
  });
  shown.append(plain);
  return shown;
}

/** The class of a token; empty for those without a colour. */
function kindOf(token, next) {
  if (token.length > 1 && token.startsWith('"')) {
    return next === ":" ? "json-name" : "json-string";
  }
  if (/^-?\d/.test(token)) {
    return "json-number";
  }
  return token === "true" || token === "false" || token === "null" ? "json-word" : "";
}
