// Asks the server for pictures over its public HTTP interface, shows them while they are denoised, and keeps
// them in this browser. Addresses are relative, so that the page also works below a path of a proxy.

const find = (selector, within = document) => within.querySelector(selector);
const form = find("#settings");
const { prompt } = form.elements;
const gallery = find("#pictures");
const viewer = find("#viewer");
const toast = find("#toast");

// ---- Theme: the system's, until the other one is chosen.

const systemDark = matchMedia("(prefers-color-scheme: dark)");

function showTheme() {
  const chosen = localStorage.getItem("sdrt.theme");
  document.documentElement.dataset.theme = chosen ?? "system";
  const other = (chosen ? chosen === "dark" : systemDark.matches) ? "light" : "dark";
  const button = find("#theme");
  button.ariaLabel = button.title = `Use the ${other} theme`;
  button.onclick = () => {
    if ((other === "dark") === systemDark.matches) localStorage.removeItem("sdrt.theme");
    else localStorage.setItem("sdrt.theme", other);
    showTheme();
  };
}

// ---- Settings: the fields of the form, under the names that the server gives them.

let model = null; // as in /v1/models
let startPicture = null; // a Blob

const fields = () => [...form.elements].filter(({ name }) => name);

function readSettings() {
  const settings = {};
  for (const { name, type, value } of fields()) {
    const numeric = type === "number" || type === "range";
    if (value !== "") settings[name] = numeric ? Number(value) : value;
  }
  return settings;
}

function fillSettings(settings) {
  for (const field of fields()) {
    if (field.name in settings) field.value = settings[field.name];
    if (field.selectedIndex === -1) field.selectedIndex = 0;
  }
  settingsChanged();
}

function settingsChanged() {
  find("#strength-value").textContent = form.elements.strength.value;
  if (model) localStorage.setItem("sdrt.settings", JSON.stringify({ ...readSettings(), model: model.id }));
}

function defaults() {
  const { default_size = "x", default_steps = "", default_guidance_scale = "" } = model?.sdrt ?? {};
  const [width, height] = default_size.split("x");
  const own = { width, height, num_inference_steps: default_steps, guidance_scale: default_guidance_scale };
  return { ...own, sampler: "", seed: "", strength: 0.8 };
}

async function loadModel() {
  const saved = JSON.parse(localStorage.getItem("sdrt.settings") ?? "{}");
  fillSettings(saved);
  const response = await send("v1/models");
  if (!response.ok) throw await refusal(response);
  [model] = (await response.json()).data;
  find("#model").textContent = model.id;
  const { default_sampler, samplers = [] } = model.sdrt ?? {};
  const { sampler } = form.elements;
  if (default_sampler) sampler.options[0].textContent += ` (${default_sampler})`;
  sampler.append(...samplers.map((name) => new Option(name, name)));
  // Size, steps and sampler are those of the model that they were set for.
  fillSettings(saved.model === model.id ? { sampler: saved.sampler ?? "" } : defaults());
}

function setStartPicture(blob) {
  startPicture = blob;
  find("#start-file").value = "";
  const image = find("#start-picture");
  image.hidden = find("#start-remove").hidden = find("#strength-field").hidden = !blob;
  URL.revokeObjectURL(image.src);
  if (blob) image.src = URL.createObjectURL(blob);
}

// As large as the form says, in the proportions of the picture.
async function startFrom(blob) {
  const bitmap = await createImageBitmap(blob).catch(() => null);
  if (!bitmap) return say("This file is not a picture that the browser can read.");
  const { width, height } = readSettings();
  if (width && height) {
    const scale = Math.sqrt((width * height) / (bitmap.width * bitmap.height));
    const side = (pixels) => Math.max(8, Math.round((pixels * scale) / 8) * 8);
    fillSettings({ width: side(bitmap.width), height: side(bitmap.height) });
  }
  find("#more").open = true;
  setStartPicture(blob);
}

// ---- Server.

async function send(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem("sdrt.key");
    const headers = { ...options.headers, ...(key !== null && { Authorization: `Bearer ${key}` }) };
    const response = await fetch(path, { ...options, headers }).catch(() => {
      throw new Error("The server does not answer. Is it running?");
    });
    if (response.status !== 401) return response;
    await askForKey(key);
  }
}

// Requests that were refused together ask once.
async function askForKey(refused) {
  if (sessionStorage.getItem("sdrt.key") !== refused) return;
  const dialog = find("#key");
  if (!dialog.open) {
    dialog.returnValue = find("input", dialog).value = "";
    dialog.showModal();
  }
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "key") throw new Error("The server asks for an API key.");
  sessionStorage.setItem("sdrt.key", find("input", dialog).value);
}

async function refusal(response) {
  const body = await response.json().catch(() => null);
  return new Error(body?.error?.message ?? `The server answered ${response.status} ${response.statusText}.`);
}

async function* serverEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ; ) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) throw new Error("The connection ended before the picture was done.");
    const blocks = (text + value).split(/\r?\n\r?\n/);
    text = blocks.pop();
    for (const block of blocks) {
      const lines = block.split(/\r?\n/);
      const field = (name) => lines.find((line) => line.startsWith(`${name}:`))?.slice(name.length + 1).trim();
      if (field("data")?.startsWith("{")) yield { type: field("event") ?? "", data: JSON.parse(field("data")) };
    }
  }
}

function pictureRequest({ width, height, ...settings }, picture) {
  const format = { response_format: "b64_json", output_format: "png" };
  const body = { ...settings, ...format, n: 1, stream: true, progress: true };
  if (width && height) body.size = `${width}x${height}`;
  if (!picture) {
    const headers = { "Content-Type": "application/json" };
    return ["v1/images/generations", { method: "POST", headers, body: JSON.stringify(body) }];
  }
  const parts = new FormData();
  Object.entries(body).forEach(([name, value]) => parts.append(name, value));
  parts.append("image", picture, "picture");
  return ["v1/images/edits", { method: "POST", body: parts }];
}

function decodePicture(base64) {
  return new Blob([Uint8Array.from(atob(base64), (byte) => byte.charCodeAt(0))], { type: "image/png" });
}

// ---- Store: the pictures that are done, in IndexedDB.

const database = new Promise((resolve, reject) => {
  const open = indexedDB.open("sdrt", 1);
  open.onupgradeneeded = () => open.result.createObjectStore("pictures", { keyPath: "id" });
  open.onsuccess = () => resolve(open.result);
  open.onerror = () => reject(open.error);
});

async function inStore(mode, ask) {
  const transaction = (await database).transaction("pictures", mode);
  const request = ask(transaction.objectStore("pictures"));
  transaction.commit(); // Now, for a page that is closed in the next moment.
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error);
  });
}

function keep({ id, settings, startPicture, blob }) {
  return inStore("readwrite", (store) => store.put({ id, settings, startPicture, blob })).catch((error) =>
    say(`The browser could not keep this picture (${error.message}). Download it.`));
}

// ---- Gallery: one tile per picture, the newest first, those being painted among them.

const entries = new Map(); // by tile: { id, settings, startPicture, blob, url, tile, state, fraction, abort }
const inOrder = () => [...gallery.children].map((tile) => entries.get(tile));
const finished = () => inOrder().filter(({ state }) => state === "done");
const unfinished = () => inOrder().filter(({ state }) => state === "waiting" || state === "painting");

function addEntry(entry) {
  entry.tile = find("#tile").content.firstElementChild.cloneNode(true);
  insertTile(entry);
  return entry;
}

function insertTile(entry) {
  const older = inOrder().find(({ id }) => id < entry.id);
  entries.set(entry.tile, entry);
  gallery.insertBefore(entry.tile, older?.tile ?? null);
}

function showEntry(entry, state, message = "") {
  entry.state = state;
  const { tile, settings, fraction = 0 } = entry;
  tile.dataset.state = state;
  find(".prompt", tile).textContent = settings.prompt;
  find(".meta", tile).textContent = describe(settings);
  find(".message", tile).textContent = message;
  find(".open", tile).ariaLabel = `Open: ${settings.prompt}`;
  find(".open", tile).disabled = state !== "done";
  find("progress", tile).value = fraction;
  if (state === "done") offerDownload(find("[data-action=download]", tile), entry);
  showStatus();
}

function showPicture(entry, blob) {
  const image = find("img", entry.tile);
  URL.revokeObjectURL(entry.url);
  entry.url = image.src = URL.createObjectURL(blob);
  image.hidden = false;
}

function showDone(entry) {
  showPicture(entry, entry.blob);
  showEntry(entry, "done");
}

function describe({ width, height, num_inference_steps, guidance_scale, sampler, seed, strength }) {
  return [
    width && `${width}×${height}`,
    num_inference_steps && `${num_inference_steps} steps`,
    guidance_scale !== undefined && `guidance ${guidance_scale}`,
    sampler,
    strength && `strength ${strength}`,
    seed !== undefined && `seed ${seed}`,
  ].filter(Boolean).join(" · ");
}

function offerDownload(link, { url, settings }) {
  const words = settings.prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["picture"];
  link.href = url;
  link.download = `${words.join("-").slice(0, 60)}-${settings.seed}.png`;
}

function takeOut({ tile }) {
  const next = entries.get(tile.nextElementSibling ?? tile.previousElementSibling);
  const focused = tile.contains(document.activeElement);
  tile.remove();
  entries.delete(tile);
  if (focused) (next ? find(`.open:enabled, [data-for~=${next.state}] button`, next.tile) : prompt).focus();
  showStatus();
}

// ---- Deleting: undone as long as the toast is there.

let deleted = [];
let toastTimer;

async function remove(entry) {
  deleted.push(entry);
  takeOut(entry);
  (viewer.open ? viewer : document.body).append(toast); // Outside of an open dialog nothing can be clicked.
  toast.hidden = false;
  const { length } = deleted;
  find("span", toast).textContent = length === 1 ? "Picture deleted." : `${length} pictures deleted.`;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(hideToast, 10_000);
  await inStore("readwrite", (store) => store.delete(entry.id)).catch((error) =>
    say(`The browser could not delete this picture: ${error.message}`));
}

function hideToast() {
  toast.hidden = true;
  deleted.forEach(({ url }) => URL.revokeObjectURL(url));
  deleted = [];
}

function undo() {
  const entry = deleted.at(-1);
  for (const restored of deleted.splice(0)) {
    insertTile(restored);
    keep(restored);
  }
  hideToast();
  showStatus();
  if (viewer.open) view(entry);
  else find(".open", entry.tile).focus();
}

// ---- Painting: every picture is a request of its own.

// Over HTTP/1.1 browsers open six connections to a host; one stays free for other requests.
let freeConnections = 5;
const queue = [];

async function connected(work) {
  if (freeConnections === 0) await new Promise((resolve) => queue.push(resolve));
  else freeConnections -= 1;
  try {
    return await work();
  } finally {
    if (queue.length) queue.shift()();
    else freeConnections += 1;
  }
}

function paint() {
  if (!form.reportValidity()) return;
  const { n, seed = -1, strength, ...settings } = readSettings();
  if (startPicture) settings.strength = strength;
  announced = "";
  const newest = Math.max(Date.now(), inOrder()[0]?.id ?? 0) + n;
  for (let i = 0; i < n; i += 1) {
    const own = seed < 0 ? settings : { ...settings, seed: seed + i };
    run(addEntry({ id: newest - i, startPicture, settings: own }));
  }
  gallery.firstElementChild.scrollIntoView({ block: "nearest" });
}

async function run(entry) {
  const { signal } = (entry.abort = new AbortController());
  entry.fraction = 0;
  showEntry(entry, "waiting", "Waiting");
  try {
    const { b64_json, seed, size } = await connected(() => painted(entry, signal));
    const [width, height] = size.split("x").map(Number);
    entry.settings = { ...entry.settings, seed, width, height };
    entry.blob = decodePicture(b64_json);
    announced = `Picture done, seed ${seed}.`;
    showDone(entry);
    await keep(entry);
  } catch (error) {
    if (signal.aborted) return;
    announced = `Not painted: ${error.message}`;
    showEntry(entry, "failed", error.message);
  }
}

async function painted(entry, signal) {
  for (;;) {
    signal.throwIfAborted();
    const [path, options] = pictureRequest(entry.settings, entry.startPicture);
    const response = await send(path, { ...options, signal });
    const wait = response.headers.get("Retry-After");
    if (wait && [429, 503].includes(response.status)) {
      const { message } = await refusal(response);
      announced = `Busy: ${message}.`;
      for (let left = Number(wait) || 5; left > 0 && !signal.aborted; left -= 1) {
        showEntry(entry, "waiting", `Trying again in ${left} s: ${message}`);
        await new Promise((resolve) => setTimeout(resolve, 1000));
      }
      announced = "";
      continue;
    }
    if (!response.ok) throw await refusal(response);
    for await (const { type, data } of serverEvents(response)) {
      if (type === "error") throw new Error(data.error.message);
      if (type.endsWith(".completed")) return data;
      if (type.endsWith(".partial_image")) showPicture(entry, decodePicture(data.b64_json));
      if (type === "sdrt.progress") showProgress(entry, data);
    }
  }
}

function showProgress(entry, { step, steps, queue_position, predicted_seconds }) {
  const left = predicted_seconds >= 1 ? `, about ${Math.round(predicted_seconds)} s left` : "";
  entry.fraction = steps ? step / steps : 0;
  if (queue_position > 0) showEntry(entry, "waiting", `Place ${queue_position} in the queue${left}`);
  else showEntry(entry, "painting", steps ? `Step ${step} of ${steps}${left}` : "Starting");
}

function cancel(entry) {
  entry.abort.abort();
  URL.revokeObjectURL(entry.url);
  takeOut(entry);
}

function cancelAll() {
  if (unfinished().length) announced = "Cancelled.";
  unfinished().forEach(cancel);
}

// ---- Status: one line that screen readers follow, so it changes at quarters and not at every step.

let announced = "";

function say(text) {
  announced = text;
  showStatus();
}

function showStatus() {
  const running = unfinished();
  const waiting = running.filter(({ state }) => state === "waiting").length;
  const done = running.reduce((sum, { fraction }) => sum + fraction, 0) / running.length;
  const percent = `${Math.floor(done * 4) * 25}%`;
  const painting = running.length - waiting;
  const counts = [painting && `${painting} painting`, waiting && `${waiting} waiting`, painting && `${percent} done`];
  const now = counts.filter(Boolean).join(", ");
  const text = [announced, now && `${now}.`].filter(Boolean).join(" ");
  if (find("#status").textContent !== text) find("#status").textContent = text;
  document.title = running.length ? `${percent} · sdrt` : "sdrt";
  find("#cancel-all").hidden = running.length === 0;
  find("#empty").hidden = entries.size > 0;
}

// ---- Large view.

let viewed = null;
const neighbour = (offset) => finished()[finished().indexOf(viewed) + offset];

function view(entry) {
  if (!entry) return;
  viewed = entry;
  const { prompt, negative_prompt } = entry.settings;
  find("img", viewer).src = entry.url;
  find("img", viewer).alt = find(".prompt", viewer).textContent = prompt;
  const not = negative_prompt ? `Not: ${negative_prompt} · ` : "";
  find(".meta", viewer).textContent = not + describe(entry.settings);
  offerDownload(find("[data-action=download]", viewer), entry);
  find("[data-action=newer]", viewer).disabled = !neighbour(-1);
  find("[data-action=older]", viewer).disabled = !neighbour(1);
  if (!viewer.open) viewer.showModal();
}

// ---- What a click and a key do.

const actions = {
  cancel,
  retry: run,
  open: view,
  newer: () => view(neighbour(-1)),
  older: () => view(neighbour(1)),
  close: () => viewer.close(),
  use(entry) {
    fillSettings({ ...defaults(), negative_prompt: "", ...entry.settings });
    setStartPicture(entry.startPicture);
    viewer.close();
    prompt.focus();
  },
  start(entry) {
    startFrom(entry.blob);
    viewer.close();
    prompt.focus();
  },
  remove(entry) {
    const next = viewer.open && (neighbour(1) ?? neighbour(-1));
    remove(entry);
    if (next) view(next);
    else viewer.close();
  },
};

const keys = { ArrowLeft: actions.newer, ArrowRight: actions.older, Delete: () => actions.remove(viewed) };

function act({ target }) {
  const { action } = target.closest("[data-action]")?.dataset ?? {};
  actions[action]?.(entries.get(target.closest(".tile")) ?? viewed);
}

function pressed(event) {
  const { key, ctrlKey, metaKey, target } = event;
  if (event.isComposing) return;
  const command = ctrlKey || metaKey;
  if (command && key === "z" && !toast.hidden && !target.matches("input, textarea")) undo();
  else if (viewer.open && keys[key]) keys[key]();
  else if (find("dialog[open]")) return;
  else if (command && key === "Enter") paint();
  else if (key === "Escape") cancelAll();
  else return;
  event.preventDefault();
}

function dragged(event) {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  const inside = event.type === "dragover" || (event.type === "dragleave" && event.relatedTarget);
  document.body.classList.toggle("dropping", Boolean(inside));
  if (event.type === "drop") startFrom(event.dataTransfer.files[0]);
}

gallery.addEventListener("click", act);
viewer.addEventListener("click", act);
viewer.addEventListener("close", () => {
  document.body.append(toast);
  if (form.contains(document.activeElement)) return;
  (viewed.tile.isConnected ? find(".open", viewed.tile) : prompt).focus();
});
document.addEventListener("keydown", pressed);
for (const type of ["dragover", "dragleave", "drop"]) document.addEventListener(type, dragged);
form.addEventListener("input", settingsChanged);
form.addEventListener("invalid", () => (find("#more").open = true), true);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  paint();
});
find("#cancel-all").onclick = cancelAll;
find("#swap").onclick = () => {
  const { width, height } = readSettings();
  fillSettings({ width: height ?? "", height: width ?? "" });
};
find("#keep-seed").onclick = () => fillSettings({ seed: finished()[0]?.settings.seed ?? "" });
find("#random-seed").onclick = () => fillSettings({ seed: "" });
find("#defaults").onclick = () => fillSettings(defaults());
find("#start-file").onchange = ({ target }) => startFrom(target.files[0]);
find("#start-remove").onclick = () => setStartPicture(null);
find("button", toast).onclick = undo;
systemDark.addEventListener("change", showTheme);

showTheme();
find("#more").open = matchMedia("(min-width: 52rem)").matches;
loadModel().catch((error) => say(error.message));
inStore("readonly", (store) => store.getAll())
  .then((records) => records.forEach((record) => showDone(addEntry(record))))
  .catch((error) => say(`The browser keeps no pictures here: ${error.message}`));
