// Grey pictures as numbers: decoding, window and level, the colours of a heat map.

const LONGEST_SIDE = 1024; // more than a screen shows here; a 60-megapixel film is read down to it

/** A grey picture: `values` holds width x height bytes, row by row. */
export class Grey {
  constructor(width, height, values) {
    Object.assign(this, { width, height, values });
  }
}

/** Decodes what the browser can (PNG, JPEG); rejects for anything else. Colours become luma (ITU-R BT.601). */
export async function decode(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const values = new Uint8ClampedArray(width * height);
  for (let i = 0; i < values.length; i++) values[i] = 0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2];
  return new Grey(width, height, values);
}

/** The same, from the base64 of a PNG. */
export const decodeBase64 = (text) => decode(new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))]));

/** Grey values -> what is seen through a window of `width` around `level`, both in grey values. */
export function windowed(grey, { level, width, inverted }) {
  const low = level - width / 2;
  const table = Uint8ClampedArray.from({ length: 256 }, (_, value) => (255 * (value - low)) / width);
  return painted(grey, (value) => {
    const shown = inverted ? 255 - table[value] : table[value];
    return [shown, shown, shown, 255];
  });
}

/** Heat 0..255 -> colours, the more opaque the hotter, so that what is cold stays a plain X-ray. */
export const coloured = (heat) => painted(heat, (value) => [...heatColour(value / 255), value]);

const STOPS = [[66, 20, 120], [190, 40, 110], [250, 125, 40], [255, 240, 130]]; // even in lightness, also without red or green

/** The colour of heat 0..1, as [red, green, blue]. */
export function heatColour(part) {
  const place = part * (STOPS.length - 1);
  const below = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[below].map((from, channel) => Math.round(from + (place - below) * (STOPS[below + 1][channel] - from)));
}

function painted({ width, height, values }, colour) {
  const table = new Uint32Array(new Uint8Array(Array.from({ length: 256 }, (_, value) => colour(value)).flat()).buffer);
  const canvas = new OffscreenCanvas(width, height);
  const data = new Uint8ClampedArray(Uint32Array.from(values, (value) => table[value]).buffer);
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
  return canvas;
}
