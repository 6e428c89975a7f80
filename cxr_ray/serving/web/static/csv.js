// The answers as a table for other programs; its first columns are those of `cxr-ray predict`.

/** RFC 4180, every label a column `p_…`; a text that a spreadsheet would run as a formula gets an apostrophe. */
export function toCsv(studies) {
  const names = [...new Set(studies.flatMap(({ answer }) => Object.keys(answer?.probabilities ?? {})))];
  const head = ["file", "labels", "error", ...names.map((name) => `p_${name}`), "gate", "model", "model_version", "image_sha256", "request_id"];
  const rows = studies.map(({ name, answer, trouble }) => [
    name,
    answer?.labels.join("|"),
    trouble?.reason,
    ...names.map((label) => answer?.probabilities[label]),
    (answer ?? trouble)?.gate?.verdict,
    answer?.model,
    answer?.model_version,
    answer?.image_sha256,
    answer?.request_id ?? trouble?.requestId,
  ]);
  return [head, ...rows].map((row) => row.map(cell).join(",") + "\r\n").join("");
}

function cell(value) {
  if (typeof value === "number") return String(value);
  const text = String(value ?? "").replace(/^(?=[=+\-@\t\r])/, "'");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
