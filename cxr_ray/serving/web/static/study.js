// One image and what the service says of it.

import { decode, decodeBase64 } from "./pixels.js";
import * as service from "./service.js";

/**
 * States: waiting, asking, answered, refused (the input gate, or no image), failed (no answer for another reason).
 * `onchange` is called whenever anything that is shown has changed.
 */
export class Study {
  state = "waiting";
  answer = null;
  trouble = null;
  busySeconds = 0; // until a busy service is asked again
  gate = null; // "flag": the user wants an answer though the gate refused
  original = undefined; // Grey; null: the browser cannot read it; undefined: not tried yet
  label = null; // whose heat map is shown
  method = "gradcam"; // how it was found
  explanations = new Map(); // method and label -> {image, heat} of Grey; null: under way; or an Error

  constructor(file, { synthetic, onchange }) {
    Object.assign(this, { file, name: file.name, synthetic, onchange });
  }

  /** The called label that is likeliest, or else the likeliest. */
  get top() {
    const { labels, probabilities } = this.answer;
    const among = labels.length ? labels : Object.keys(probabilities);
    return among.reduce((best, label) => (probabilities[label] > probabilities[best] ? label : best));
  }

  /** What stands behind the bars: [{label, probability, threshold or null, called}], in the model's order. */
  get decisions() {
    const { decision, labels, probabilities } = this.answer;
    return Object.entries(probabilities).map(([label, probability]) => ({
      label,
      probability,
      threshold: decision?.[label]?.threshold ?? null,
      called: decision?.[label]?.called ?? labels.includes(label),
    }));
  }

  /** Of the label and method that are shown: {image, heat}, null while it is under way, or an Error. */
  get explanation() {
    return this.explanations.get(`${this.method} ${this.label}`) ?? null;
  }

  async predict() {
    Object.assign(this, { state: "asking", answer: null, trouble: null, label: null });
    this.explanations.clear();
    this.onchange(this);
    try {
      this.answer = await service.predict(this.file, this.gate, (seconds) => this.#wait(seconds));
      this.state = "answered";
    } catch (error) {
      this.trouble = error;
      this.state = error.gate || [413, 415, 422].includes(error.status) ? "refused" : "failed";
    }
    this.onchange(this);
  }

  async readOriginal() {
    if (this.original !== undefined) return;
    this.original = await decode(this.file).catch(() => null);
    this.onchange(this);
  }

  /** Fetches the heat map of `label` unless it is there; a heat map that fails costs only itself. */
  async explain(label, method) {
    const key = `${method} ${label}`;
    const known = this.explanations.get(key);
    const again = known === undefined || known instanceof Error;
    if (again) this.explanations.set(key, null);
    Object.assign(this, { label, method });
    this.onchange(this);
    if (!again) return;
    try {
      const found = await service.explain(this.file, label, this.gate, method);
      const [image, heat] = await Promise.all([decodeBase64(found.image), decodeBase64(found.heat_map.png)]);
      this.explanations.set(key, { image, heat });
    } catch (error) {
      this.explanations.set(key, error);
    }
    this.onchange(this);
  }

  #wait(seconds) {
    this.busySeconds = seconds;
    this.onchange(this);
  }
}
