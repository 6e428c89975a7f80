// How images come in: dropped anywhere on the page, chosen, pasted, or one of the service's samples.

import { find, make } from "./dom.js";
import { address, sample, sampleNames } from "./service.js";

export class Intake {
  #depth = 0; // of dragenter over nested elements

  /** `add` is called with an array of files and whether they are samples, `fail` with what went wrong. */
  constructor({ add, fail }) {
    this.add = add;
    this.fail = fail;
    const input = find("#files");
    input.addEventListener("change", () => {
      this.#take(input.files);
      input.value = ""; // the same file may be chosen again
    });
    addEventListener("paste", (event) => this.#take(event.clipboardData.files));
    this.#listenToDrops();
  }

  #take(files) {
    if (files.length) this.add([...files]);
  }

  #listenToDrops() {
    const mark = (change) => {
      this.#depth = Math.max(0, this.#depth + change);
      find("#drop").classList.toggle("over", this.#depth > 0);
    };
    addEventListener("dragenter", () => mark(1));
    addEventListener("dragleave", () => mark(-1));
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      mark(-Infinity);
      this.#take(event.dataTransfer.files);
    });
  }

  async offerSamples() {
    const names = await sampleNames();
    find("#samples ul").replaceChildren(...names.map((name) => make("li", {}, this.#button(name))));
    find("#samples").hidden = !names.length;
  }

  #button(name) {
    const [stem, ending] = name.split(".");
    const about = stem.replace("phantom-", "");
    const picture =
      ending === "dcm" ? make("span", { class: "film" }, "DICOM") : make("img", { src: address(`v1/samples/${name}`), alt: "", width: 72, height: 72 });
    return make("button", { type: "button", class: "sample", onclick: () => this.#fetch(name) }, picture, make("span", {}, about));
  }

  async #fetch(name) {
    try {
      this.add([await sample(name)], true);
    } catch (error) {
      this.fail(error);
    }
  }
}
