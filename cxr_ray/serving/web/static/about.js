// What is being served: name, version, how well it did, its model card.

import { card } from "./card.js";
import { find, make } from "./dom.js";

const FIGURES = { accuracy: "Accuracy", macro_f1: "Macro F1", macro_auroc: "Macro AUROC", ece: "Calibration error" };

/** Shows `GET /v1/model`. */
export function about(info) {
  find("#model").replaceChildren(make("strong", {}, info.name), ` ${info.version}`);
  find("#unsound").hidden = !info.unsound;
  find("#unsound").textContent = info.unsound ? `This model must not be used: ${info.unsound}` : "";
  const parts = [
    facts(info),
    info.metrics && figures(info.metrics),
    info.card && make("details", { class: "card" }, make("summary", {}, "Model card"), make("div", {}, card(info.card))),
  ];
  find("#about div").replaceChildren(...parts.filter(Boolean));
  find("#about").hidden = false;
}

function facts(info) {
  const said = {
    Task: info.task === "multilabel" ? "multilabel: any number of labels" : "multiclass: exactly one label",
    Labels: info.labels.join(", "),
    "Sees images of": `${info.image_width} × ${info.image_height} pixels`,
    Preprocessing: info.preprocessing_fingerprint,
    "Trained on": info.dataset_fingerprint,
  };
  return make("dl", {}, Object.entries(said).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

function figures(metrics) {
  const rows = Object.entries(FIGURES)
    .filter(([key]) => typeof metrics[key]?.value === "number")
    .map(([key, name]) => {
      const { value, ci95 } = metrics[key];
      const interval = ci95 ? ` (${ci95.map((end) => end.toFixed(3)).join(" to ")})` : "";
      return make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value.toFixed(3) + interval));
    });
  if (!rows.length) return null;
  const caption = `On ${metrics.n} images of ${metrics.patients} patients, with 95 % intervals`;
  return make("table", {}, make("caption", {}, caption), make("tbody", {}, rows));
}
