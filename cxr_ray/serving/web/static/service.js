// The service's routes. A busy service (429, 503) is asked again when it says; all else that fails is a Trouble.

import { sentence } from "./dom.js";

export const MAX_BYTES = 20 * 2 ** 20;
const PATIENCE_MS = 60_000;
const TRIES = 6;

// The page may lie below a path of a proxy; an address with a key in it (https://user:key@…) may not be fetched from.
const root = new URL("..", import.meta.url);
root.username = root.password = "";
export const address = (path) => new URL(path, root).href;

/** Why there is no answer. `status` is 0 where nothing came back; `gate` is there where the input gate refused. */
export class Trouble extends Error {
  constructor(status, { reason, message, gate = null, request_id = null }) {
    super(message);
    Object.assign(this, { status, reason, gate, requestId: request_id });
  }
}

const IN_WORDS = {
  0: ["unreachable", "The service cannot be reached. Is it running, and is this computer connected?"],
  401: ["no-key", "The service does not accept the key. Reload the page and enter it again."],
  413: ["too-large", "The file is larger than the service takes."],
  429: ["busy", "The service is busy. Try again in a while."],
  503: ["busy", "The service is busy or starting. Try again in a while."],
  504: ["deadline", "The service did not answer in time."],
};

function trouble(status, body) {
  if (status !== 401 && body?.reason && body?.message) return new Trouble(status, { ...body, message: sentence(body.message) });
  const [reason, message] = IN_WORDS[status] ?? ["failed", `The service failed (HTTP ${status}).`];
  return new Trouble(status, { reason, message });
}

/** Seconds until the next try: Retry-After where it is a number, at most a minute; else 2, 4, 8 … */
function pause(response, attempt) {
  const said = Number(response.headers.get("retry-after") ?? NaN);
  return Math.min(Number.isFinite(said) && said > 0 ? Math.ceil(said) : 2 ** (attempt + 1), 60);
}

async function ask(path, options, onwait) {
  for (let attempt = 0; ; attempt++) {
    let response;
    try {
      response = await fetch(address(path), { ...options, signal: AbortSignal.timeout(PATIENCE_MS) });
    } catch (error) {
      throw trouble(error.name === "TimeoutError" ? 504 : 0);
    }
    if (response.ok) return response;
    if (![429, 503].includes(response.status) || attempt === TRIES - 1) {
      throw trouble(response.status, await response.json().catch(() => null));
    }
    for (let left = pause(response, attempt); left > 0; left--) {
      onwait?.(left);
      await new Promise((done) => setTimeout(done, 1000));
    }
    onwait?.(0);
  }
}

let model_ = null; // null: the one that the service is named for
const named = () => (model_ === null ? "" : `?${new URLSearchParams({ model: model_ })}`);

/** Which of several models is asked from now on. */
export function use(name) {
  model_ = name;
}

async function send(path, file, query, onwait) {
  if (file.size > MAX_BYTES) throw trouble(413);
  const chosen = Object.entries({ ...query, model: model_ }).filter(([, value]) => value != null);
  const headers = { "Content-Type": "application/octet-stream" }; // the bytes alone: no name leaves this computer
  const response = await ask(`${path}?${new URLSearchParams(chosen)}`, { method: "POST", body: file, headers }, onwait);
  return response.json();
}

/** The answer for one image; `gate` "flag" asks for one even where the input gate would refuse. */
export const predict = (file, gate, onwait) => send("v1/predict", file, { gate }, onwait);

/** The heat map of one label, with the picture that the model saw. */
export const explain = (file, label, gate, method) => send("v1/explain", file, { label, gate, method });

export const model = async () => (await ask(`v1/model${named()}`)).json();
export const models = async () => (await ask("v1/models")).json();
export const sampleNames = async () => (await ask("v1/samples")).json();
export const sample = async (name) => new File([await (await ask(`v1/samples/${name}`)).blob()], name);
