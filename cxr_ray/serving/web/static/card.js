// The model card. Of Markdown, what cards are written in: headings, paragraphs, lists, tables, bold, code. Anything else stays as it is.

import { make } from "./dom.js";

/** Markdown -> elements. */
export function card(text) {
  return text.split(/\n{2,}/).map((block) => block.trim()).filter(Boolean).map(element);
}

function element(block) {
  const lines = block.split("\n");
  const heading = /^(#{1,4}) (.+)$/.exec(block);
  if (heading) return make(`h${heading[1].length + 1}`, {}, words(heading[2]));
  if (lines.every((line) => line.startsWith("- "))) return make("ul", {}, lines.map((line) => make("li", {}, words(line.slice(2)))));
  if (lines.length > 1 && /^\|[-:| ]+\|$/.test(lines[1])) return table(lines);
  return make("p", {}, words(lines.join(" ")));
}

/** A table; where its head is empty the first cell of each row is the row's name. */
function table([head, , ...rows]) {
  const names = cells(head);
  const named = names.some(Boolean);
  return make(
    "table", {},
    named && make("thead", {}, make("tr", {}, names.map((name) => make("th", { scope: "col" }, words(name))))) || null,
    make("tbody", {}, rows.map((row) => make("tr", {}, cells(row).map((cell, index) =>
      make(index || named ? "td" : "th", index || named ? {} : { scope: "row" }, words(cell)))))),
  );
}

const cells = (line) => line.slice(1, -1).split(/(?<!\\)\|/).map((cell) => cell.replaceAll("\\|", "|").trim());

function words(text) {
  return text.split(/(\*\*[^*]+\*\*|`[^`]+`)/).filter(Boolean).map((part) => {
    if (part.startsWith("**") && part.length > 4) return make("strong", {}, part.slice(2, -2));
    return /^`.+`$/.test(part) ? make("code", {}, part.slice(1, -1)) : part;
  });
}
