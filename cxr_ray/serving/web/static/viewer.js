// The picture: window and level, and the heat map over it. Two fingers and the page's scrolling stay the browser's.

import { find } from "./dom.js";
import { coloured, heatColour, windowed } from "./pixels.js";

const NEUTRAL = { level: 128, width: 256 };
const STEP = 8; // grey values an arrow key moves

export class Viewer {
  #study = null;
  #source = "model"; // what the user would rather see
  #inverted = false;
  #shownOpacity = 60; // to come back to after hiding
  #frame = 0;

  constructor() {
    this.stage = find("#stage");
    this.canvas = find("#canvas");
    this.sliders = { opacity: find("#opacity"), level: find("#level"), width: find("#width") };
    for (const slider of Object.values(this.sliders)) slider.addEventListener("input", () => this.#schedule());
    for (const radio of document.getElementsByName("source")) {
      radio.addEventListener("change", () => {
        this.#source = radio.value;
        this.#schedule();
      });
    }
    find("#reset").addEventListener("click", () => this.#reset());
    find("#invert").addEventListener("click", () => this.#invert());
    this.stage.addEventListener("keydown", (event) => this.#key(event));
    this.stage.addEventListener("dblclick", () => this.#reset());
    this.#listenToDrags();
    paintRamp(find("#ramp"));
  }

  show(study) {
    const another = study !== this.#study;
    this.#study = study;
    if (another) this.#reset();
    else this.#schedule();
  }

  /** What can be shown, and what of it is. */
  #chosen() {
    const { original, explanation } = this.#study;
    const pictures = { model: explanation?.image ?? this.#anyModelImage(), original: original ?? null };
    const other = this.#source === "model" ? "original" : "model";
    const source = pictures[other] && !pictures[this.#source] ? other : this.#source;
    return { pictures, source, picture: pictures[source], heat: source === "model" ? (explanation?.heat ?? null) : null };
  }

  /** While another label's heat map is on its way the picture stays. */
  #anyModelImage() {
    return [...this.#study.explanations.values()].find((found) => found?.image)?.image ?? null;
  }

  #schedule() {
    cancelAnimationFrame(this.#frame);
    this.#frame = requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    if (!this.#study) return;
    const { pictures, source, picture, heat } = this.#chosen();
    const level = Number(this.sliders.level.value);
    const width = Number(this.sliders.width.value);
    const opacity = Number(this.sliders.opacity.value) / 100;
    this.#label({ pictures, source, picture, heat, opacity });
    const context = this.canvas.getContext("2d");
    if (!picture) {
      context.clearRect(0, 0, this.canvas.width, this.canvas.height);
      return;
    }
    const scale = 1024 / Math.max(picture.width, picture.height);
    this.canvas.width = Math.round(picture.width * scale);
    this.canvas.height = Math.round(picture.height * scale);
    context.imageSmoothingQuality = "high";
    context.drawImage(windowed(picture, { level, width, inverted: this.#inverted }), 0, 0, this.canvas.width, this.canvas.height);
    if (!heat || !opacity) return;
    context.globalAlpha = opacity;
    context.drawImage(coloured(heat), 0, 0, this.canvas.width, this.canvas.height);
    context.globalAlpha = 1;
  }

  #label({ pictures, source, picture, heat, opacity }) {
    const { name, label } = this.#study;
    for (const radio of document.getElementsByName("source")) {
      radio.disabled = !pictures[radio.value];
      radio.checked = radio.value === source;
    }
    this.sliders.opacity.disabled = !heat;
    for (const slider of Object.values(this.sliders)) slider.nextElementSibling.value = slider.value + (slider.id === "opacity" ? "\u00a0%" : "");
    find("#heat-note span").textContent = heatNote(this.#study);
    find("#scale").hidden = !heat;
    find("#stage-note").textContent = picture ? "" : pictureNote(this.#study);
    find("#stage-note").hidden = Boolean(picture);
    this.canvas.setAttribute("aria-label", picture ? `X-ray ${name}${heat && opacity ? `, with the heat map for ${label}` : ""}` : "No picture yet");
  }

  #reset() {
    this.sliders.level.value = NEUTRAL.level;
    this.sliders.width.value = NEUTRAL.width;
    if (this.#inverted) this.#invert();
    this.#schedule();
  }

  #invert() {
    this.#inverted = !this.#inverted;
    find("#invert").setAttribute("aria-pressed", String(this.#inverted));
    this.#schedule();
  }

  #toggleHeat() {
    const slider = this.sliders.opacity;
    const now = Number(slider.value);
    if (now) this.#shownOpacity = now;
    slider.value = now ? 0 : this.#shownOpacity;
    this.#schedule();
  }

  #move(level, width) {
    this.sliders.level.value = Number(this.sliders.level.value) + level;
    this.sliders.width.value = Number(this.sliders.width.value) + width;
    this.#schedule();
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const actions = {
      ArrowUp: () => this.#move(STEP, 0),
      ArrowDown: () => this.#move(-STEP, 0),
      ArrowRight: () => this.#move(0, STEP),
      ArrowLeft: () => this.#move(0, -STEP),
      h: () => this.#toggleHeat(),
      i: () => this.#invert(),
      r: () => this.#reset(),
    };
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  #listenToDrags() {
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "touch" || event.button !== 0) return;
      this.canvas.setPointerCapture(event.pointerId);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (this.canvas.hasPointerCapture(event.pointerId)) this.#move(-event.movementY, event.movementX);
    });
  }
}

function heatNote({ label, state, explanation }) {
  if (state !== "answered" || label === null) return "";
  if (explanation instanceof Error) return `No heat map for ${label}: ${explanation.message}`;
  return explanation ? `for ${label}:` : `Asking for ${label} …`;
}

function pictureNote({ state, original, explanation }) {
  if (original === undefined || state === "waiting" || state === "asking") return "Reading …";
  if (state === "answered" && !(explanation instanceof Error)) return "Reading …";
  return "This browser cannot show the file.";
}

function paintRamp(canvas) {
  const context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    context.fillStyle = `rgb(${heatColour(x / (canvas.width - 1)).join(" ")} / ${x / (canvas.width - 1)})`;
    context.fillRect(x, 0, 1, 1);
  }
}
