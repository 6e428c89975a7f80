// The images of this visit as a table, asked for a few at a time, and as a CSV file.

import { download, find, make, percent } from "./dom.js";
import { toCsv } from "./csv.js";

const AT_ONCE = 4; // the service gathers what comes together into one batch
const STATE = { waiting: "waiting", asking: "asking …", refused: "refused", failed: "no answer" };

export class Worklist {
  studies = [];
  #rows = new Map(); // study -> its <tr>
  #queue = [];
  #running = 0;

  /** `select` is called with the study of a row. */
  constructor({ select, clear }) {
    this.select = select;
    this.section = find("#worklist");
    this.body = this.section.querySelector("tbody");
    find("#csv").addEventListener("click", () => download("cxr_ray.csv", toCsv(this.studies), "text/csv"));
    find("#clear").addEventListener("click", () => {
      this.#queue = [];
      this.studies = [];
      this.#rows.clear();
      this.body.replaceChildren();
      clear();
    });
  }

  add(studies) {
    for (const study of studies) {
      this.studies.push(study);
      this.#rows.set(study, this.body.appendChild(make("tr")));
      this.update(study);
      this.ask(study);
    }
    this.section.hidden = this.studies.length < 2;
  }

  /** Puts a study at the end of the queue. */
  ask(study) {
    this.#queue.push(study);
    this.#next();
  }

  async #next() {
    if (this.#running === AT_ONCE || !this.#queue.length) return;
    this.#running++;
    await this.#queue.shift().predict();
    this.#running--;
    this.#next();
  }

  update(study, selected = null) {
    const row = this.#rows.get(study);
    if (!row) return; // cleared while it was being asked
    const had = row.contains(document.activeElement);
    row.className = study.state;
    row.replaceChildren(
      make("th", { scope: "row" }, make("button", { type: "button", class: "link", onclick: () => this.select(study) }, study.name)),
      ...(study.answer ? answered(study) : [make("td", { colspan: 4 }, unanswered(study))]),
    );
    if (had) row.querySelector("button").focus();
    if (selected) this.mark(selected);
    this.#tally();
  }

  mark(selected) {
    for (const [study, row] of this.#rows) {
      if (study === selected) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
  }

  #tally() {
    const count = (state) => this.studies.filter((study) => study.state === state).length;
    const parts = [["answered", "answered"], ["refused", "refused"], ["failed", "without answer"]].map(([state, word]) => [count(state), word]);
    const open = count("waiting") + count("asking");
    const said = parts.filter(([number]) => number).map(([number, word]) => `${number} ${word}`);
    find("#tally").textContent = [...said, ...(open ? [`${open} to go`] : [])].join(", ");
    find("#csv").disabled = open > 0;
  }
}

function answered({ answer, top }) {
  return [
    make("td", {}, answer.labels.join(", ") || "nothing"),
    make("td", { class: "number" }, percent(answer.probabilities[top])),
    make("td", {}, answer.gate ? make("span", { class: `verdict ${answer.gate.verdict}` }, { ok: "passed" }[answer.gate.verdict] ?? "flagged") : "–"),
    make("td", { class: "number" }, `${answer.milliseconds.toFixed(0)} ms`),
  ];
}

function unanswered({ state, trouble, busySeconds }) {
  if (busySeconds) return `busy; again in ${busySeconds} s`;
  return trouble ? `${STATE[state]}: ${trouble.message}` : STATE[state];
}
