// The page: which image is selected, and which part shows what of it.

import { about } from "./about.js";
import { find, make } from "./dom.js";
import { Intake } from "./intake.js";
import { Result } from "./result.js";
import { model, models, use } from "./service.js";
import { Study } from "./study.js";
import { Viewer } from "./viewer.js";
import { Worklist } from "./worklist.js";

let selected = null;
let task = null;

const viewer = new Viewer();
const result = new Result({ ask: (label) => selected.explain(label, method.value), again });
const method = find("#method");
const worklist = new Worklist({ select, clear: () => select(null) });
const intake = new Intake({ add, fail: (error) => say(error.message) });

function add(files, synthetic = false) {
  const studies = files.map((file) => new Study(file, { synthetic, onchange: changed }));
  worklist.add(studies);
  select(studies[0]);
}

function select(study) {
  selected = study;
  find("#study").hidden = !study;
  find("#worklist").hidden = worklist.studies.length < 2;
  document.body.classList.toggle("working", Boolean(study));
  if (!study) return find("#files").focus();
  worklist.mark(study);
  study.readOriginal();
  changed(study);
}

function again(study, gate) {
  study.gate = gate;
  worklist.ask(study);
}

function changed(study) {
  worklist.update(study, selected);
  if (study !== selected) return;
  if (study.state === "answered" && (study.label === null || study.method !== method.value)) {
    return study.explain(study.label ?? study.top, method.value); // comes back here
  }
  result.show(study, worklist.studies.indexOf(study), task);
  viewer.show(study);
  say(summary(study));
}

function summary({ name, state, answer, trouble }) {
  if (state === "answered") return `${name}: ${answer.labels.join(", ") || "nothing"} called.`;
  return trouble ? `${name}: no answer. ${trouble.message}` : `${name}: asking the model.`;
}

/** For screen readers; what is said already is not said again. */
function say(text) {
  if (find("#status").textContent !== text) find("#status").textContent = text;
}

method.addEventListener("change", () => selected && changed(selected));

async function describe() {
  const info = await model();
  task = info.task;
  about(info);
}

/** Where the service has several models: which one is asked, also about the images that are there. */
async function offerModels() {
  const all = (await models()).models;
  if (all.length < 2) return;
  const select = find("#models select");
  select.replaceChildren(...all.map(({ name, version }) => make("option", { value: name }, `${name} ${version}`)));
  select.addEventListener("change", async () => {
    use(select.value);
    await describe().catch((error) => say(error.message));
    for (const study of worklist.studies) again(study, null);
  });
  find("#models").hidden = false;
}

async function begin() {
  try {
    await describe();
    await offerModels();
    await intake.offerSamples();
  } catch (error) {
    find("#model").textContent = error.message;
    find("#model").classList.add("trouble");
  }
}

begin();
