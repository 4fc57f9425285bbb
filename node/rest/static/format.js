/** How numbers, times and texts that come from anywhere are shown. */

const GROUPED = new Intl.NumberFormat("en");
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

/** @param {number} count @returns {string} such as 1,234,567 */
export const grouped = (count) => GROUPED.format(count);

/** @param {number} value @returns {string} such as 0.3, 12, 4.56k or 1.2M */
export function compact(value) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size * 0.9995) {
      return `${short(value / size)}${unit}`;
    }
  }
  return short(value);
}

/** @param {number} count @returns {string} such as 512 B or 1.25 MiB */
export function bytes(count) {
  for (const [power, unit] of [[4, "TiB"], [3, "GiB"], [2, "MiB"], [1, "KiB"]]) {
    if (count >= 1024 ** power) {
      return `${short(count / 1024 ** power)} ${unit}`;
    }
  }
  return `${count} B`;
}

/** @param {number} value @returns {string} with at most three digits that count */
function short(value) {
  const digits = value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return String(Number(value.toFixed(digits)));
}

/** @param {number} ms since 1970 @returns {string} such as 12:03:20 */
export const clock = (ms) => CLOCK.format(ms);

/** @param {number} seconds @returns {string} such as 4 d 3 h, 12 min, 8 s */
export function duration(seconds) {
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = units.findIndex(([size]) => seconds >= size);
  if (first === -1) {
    return "0 s";
  }
  let left = Math.floor(seconds);
  return units
    .slice(first, first + 2)
    .map(([size, unit]) => {
      const count = Math.floor(left / size);
      left -= count * size;
      return count > 0 ? `${count} ${unit}` : "";
    })
    .filter(Boolean)
    .join(" ");
}

/** @param {number} count @param {string} one @param {string} many @returns {string} such as 1 key, 2 keys */
export const counted = (count, one, many = `${one}s`) => `${grouped(count)} ${count === 1 ? one : many}`;

// Control characters, and those that are not seen or that turn the direction of others round.
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
const SHORT_ESCAPES = { "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r" };

/**
 * A text with its hidden characters as escapes that stand out.
 * @param {string} text
 * @returns {DocumentFragment}
 */
export function visible(text) {
  const shown = document.createDocumentFragment();
  let start = 0;
  for (const found of text.matchAll(HIDDEN)) {
    shown.append(text.slice(start, found.index));
    const [character] = found;
    const escape = SHORT_ESCAPES[character] ?? `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
    shown.append(element("span", { className: "escape", textContent: escape }));
    start = found.index + 1;
  }
  shown.append(text.slice(start));
  return shown;
}

/**
 * @param {string} tag
 * @param {object} properties
 * @param {...(Node | string)} children
 * @returns {HTMLElement}
 */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** @param {string} id @returns {HTMLElement} */
export const byId = (id) => document.getElementById(id);

/** Set a text where it differs, so that what somebody has selected stays selected. */
export function setText(target, text) {
  if (target.textContent !== text) {
    target.textContent = text;
  }
}
