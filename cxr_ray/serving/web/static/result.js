// What the service says of the selected image: the answer with its bars, or why there is none.

import { find, make, percent, sentence } from "./dom.js";

const REFUSED = {
  "not-upright": "Not upright",
  inverted: "Inverted",
  "not-a-radiograph": "Not a radiograph",
  "not-like-training-data": "Unlike the training data",
  "too-large": "Too large",
  "not-an-image": "Not an image",
};
const GATE = { ok: "passed", flagged: "flagged", refused: "refused" };

export class Result {
  #shown = "";

  /** `ask` is called with a label whose heat map is wanted, `again` with "flag" or null to repeat the question. */
  constructor({ ask, again }) {
    this.panel = find("#result");
    this.ask = ask;
    this.again = again;
  }

  /** Draws anew only when something here has changed: a bar that has the keyboard's focus keeps it. */
  show(study, number, task) {
    const key = [number, study.state, study.busySeconds, study.answer?.request_id, task].join();
    if (key === this.#shown) return;
    this.#shown = key;
    const parts = { waiting: busy, asking: busy, answered: this.#answer, refused: this.#refusal, failed: this.#failure };
    const name = make("p", { class: "file" }, study.name, study.synthetic ? make("span", { class: "tag" }, "synthetic") : null);
    this.panel.replaceChildren(name, ...parts[study.state].call(this, study, task).filter(Boolean));
    this.panel.setAttribute("aria-busy", String(study.state === "asking"));
  }

  #answer(study, task) {
    const { answer } = study;
    const called = answer.labels.length ? answer.labels.join(", ") : "Nothing called";
    return [
      make("h2", { class: "call" }, make("span", { class: "muted" }, "Called"), make("strong", {}, called)),
      flag(answer.gate),
      make(
        "fieldset",
        { class: "labels" },
        make("legend", {}, "Probability of each label"),
        study.decisions.map((decision) => this.#bar(study, decision)),
      ),
      make("p", { class: "muted small" }, ...rule(task, answer.calibrated)),
      answer.gate && make("details", { class: "checks" }, make("summary", {}, `Input check: ${GATE[answer.gate.verdict]}`), checks(answer.gate)),
      make("details", {}, make("summary", {}, "Record"), record(answer)),
    ];
  }

  #bar(study, { label, probability, threshold, called }) {
    const fill = make("span", { class: "fill" });
    fill.style.inlineSize = `${100 * probability}%`;
    const tick = threshold === null ? null : make("span", { class: "tick" });
    if (tick) tick.style.insetInlineStart = `${100 * threshold}%`;
    return make(
      "label",
      { class: called ? "bar called" : "bar" },
      make("input", { type: "radio", name: "label", value: label, checked: label === study.label, onchange: () => this.ask(label) }),
      make("span", { class: "name" }, label, called ? make("span", { class: "tag" }, "called") : null),
      threshold === null ? null : make("span", { class: "muted small" }, `called from ${percent(threshold)}`),
      make("span", { class: "value" }, percent(probability)),
      make("span", { class: "track", "aria-hidden": "true" }, fill, tick),
    );
  }

  #refusal(study) {
    const { reason, message, gate, requestId } = study.trouble;
    return [
      make(
        "div",
        { class: "notice bad" },
        make("h2", {}, `Refused: ${(REFUSED[reason] ?? "not usable").toLowerCase()}`),
        make("p", {}, message),
        gate && make("button", { type: "button", class: "quiet", onclick: () => this.again(study, "flag") }, "Answer all the same"),
      ),
      gate && make("p", { class: "muted small" }, "An answer for such an image means little: the model has not learned from images like it."),
      gate && make("details", { class: "checks", open: true }, make("summary", {}, "Input check: refused"), checks(gate)),
      request(requestId),
    ];
  }

  #failure(study) {
    const { message, requestId } = study.trouble;
    const retry = make("button", { type: "button", onclick: () => this.again(study, study.gate) }, "Try again");
    return [make("div", { class: "notice" }, make("h2", {}, "No answer"), make("p", {}, message), retry), request(requestId)];
  }
}

function busy({ state, busySeconds }) {
  const text = { waiting: "Waiting for its turn …", asking: "Asking the model …" }[state];
  return [
    make("p", { class: "muted" }, busySeconds ? `The service is busy; asking again in ${busySeconds} s.` : text),
    make("div", { class: "ghost", "aria-hidden": "true" }, make("span"), make("span"), make("span")),
  ];
}

function flag(gate) {
  if (gate?.verdict !== "flagged" && gate?.verdict !== "refused") return null;
  const why = gate.checks.filter((check) => check.verdict !== "ok").map((check) => make("p", {}, sentence(check.message)));
  return make("div", { class: "notice" }, make("h3", {}, "Read with care: the input check flagged this image"), why);
}

function rule(task, calibrated) {
  return [
    task === "multilabel" ? "A label is called at or above its own threshold, the tick. " : "The likeliest label is called. ",
    calibrated === true ? "Calibrated: of images given 80 %, about 80 % are what is said. " : null,
    calibrated === false ? "Not calibrated: higher is likelier, but the numbers are no frequencies. " : null,
    "Choose a label to see its heat map.",
  ];
}

const figure = (value) => (typeof value === "number" ? String(Number(value.toPrecision(3))) : (value ?? "–"));

function checks(gate) {
  const rows = gate.checks.map(({ name, verdict, value, threshold, message }) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, name, message ? make("span", { class: "muted small" }, sentence(message)) : null),
      make("td", { class: `verdict ${verdict}` }, GATE[verdict] ?? verdict),
      make("td", { class: "number" }, figure(value)),
      make("td", { class: "number" }, figure(threshold)),
    ),
  );
  const head = ["Check", "Verdict", "Value", "Limit"].map((name, place) => make("th", { scope: "col", class: place > 1 && "number" }, name));
  return make("table", {}, make("thead", {}, make("tr", {}, head)), make("tbody", {}, rows));
}

function record(answer) {
  const facts = {
    Model: `${answer.model} ${answer.model_version}`,
    Time: `${answer.milliseconds.toFixed(0)} ms in the service`,
    "Image SHA-256": answer.image_sha256,
    Request: answer.request_id,
  };
  return make("dl", {}, Object.entries(facts).map(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]).flat());
}

const request = (id) => id && make("p", { class: "muted small" }, `Request ${id}`);
