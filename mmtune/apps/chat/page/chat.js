// The chat page. What models say and what files are called is text: it goes into the page by textContent alone.

const $ = (id) => document.getElementById(id);
const about = await (await fetch("/about")).json();
const names = about.models.map((model) => model.name);
const options = [...document.querySelectorAll(".options input")];
let conversation = null; // the server's key of it
let photo = null; // the file that goes with the next message
let stopping = null; // the AbortController of the answers under way

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// File names can hide what they are too: show what has no glyph or turns the writing direction as its number.
function legible(name) {
  return name.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu, (c) => `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function choose(file) {
  notice("");
  if (file && file.size > about.limits.photo_bytes) {
    notice(`A photo has at most ${about.limits.photo_bytes / 1e6} MB; this one has ${(file.size / 1e6).toFixed(1)}.`);
    return;
  }
  photo = file;
  if ($("preview").src) URL.revokeObjectURL($("preview").src);
  $("preview").removeAttribute("src");
  if (file) {
    $("preview").src = URL.createObjectURL(file);
    $("filename").textContent = legible(file.name);
  }
  $("chosen").hidden = !file;
  $("file").value = "";
}

async function base64(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let start = 0; start < bytes.length; start += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(start, start + 0x8000));
  }
  return btoa(text);
}

async function post(path, body, signal) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw new Error((await response.json()).error);
  return response;
}

// The lines of JSON that a response is made of, as they come.
async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

function atBottom() {
  return window.innerHeight + window.scrollY > document.documentElement.scrollHeight - 80;
}

function changing(change) {
  const follow = atBottom();
  change();
  if (follow) window.scrollTo(0, document.documentElement.scrollHeight);
}

function showSaid(text, file) {
  const said = element("div", "said");
  if (file) {
    const image = element("img", "");
    image.alt = legible(file.name);
    image.addEventListener("load", () => window.scrollTo(0, document.documentElement.scrollHeight));
    image.src = URL.createObjectURL(file);
    said.append(image, element("div", "text soft file", legible(file.name)));
  }
  if (text) said.append(element("div", "text", text));
  $("log").append(said);
}

function showAnswer(place, name) {
  const answer = element("section", "answer");
  answer.setAttribute("aria-busy", "true");
  if (names.length > 1) answer.append(element("h2", "", name));
  const text = element("p", "text", "");
  const note = element("p", "note", "");
  answer.append(text, note);
  place.append(answer);
  return { answer, text, note };
}

// Let one model answer. Returns whether it began to.
async function hear(model, message, shown, signal) {
  let taken = false;
  try {
    const response = await post(`/conversations/${conversation}/${model}`, message, signal);
    let over = false;
    for await (const event of lines(response)) {
      changing(() => {
        if (event.waiting) shown.note.textContent = `waiting: ${event.waiting} before you`;
        if (event.text) {
          shown.text.textContent += event.text;
          shown.note.textContent = "";
        }
        if (event.done) {
          if (!shown.text.textContent) shown.text.append(element("span", "soft", "(no answer)"));
          shown.note.textContent = `${event.done.tokens} tokens, ${event.done.seconds} s`
            + (event.done.window ? `; cut off: the model reads ${event.done.window} tokens` : "")
            + (event.done.forgotten ? `; questions forgotten: ${event.done.forgotten}` : "");
        }
        if (event.error) throw new Error(event.error);
      });
      over ||= Boolean(event.done);
      taken ||= Boolean(event.text || event.done);
    }
    if (!over) throw new Error("The answer broke off; is the server still running?");
  } catch (error) {
    const stopped = error.name === "AbortError";
    shown.note.textContent = stopped ? "stopped" : error.message;
    shown.note.classList.toggle("bad", !stopped);
  } finally {
    shown.answer.setAttribute("aria-busy", "false");
  }
  return taken;
}

function busy(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
  $("anew").disabled = on;
}

async function say() {
  const text = $("text").value.trim();
  if (stopping || (!text && !photo)) return;
  stopping = new AbortController();
  busy(true);
  notice("");
  try {
    const file = photo;
    const sampling = {};
    for (const input of options) if (input.value !== "") sampling[input.name] = Number(input.value);
    if (!("seed" in sampling)) sampling.seed = null;
    const message = { text, photo: file ? await base64(file) : null, sampling };
    conversation ??= (await (await post("/conversations", {})).json()).conversation;
    showSaid(text, file);
    const place = element("div", "answers");
    $("log").append(place);
    const shown = names.map((name) => showAnswer(place, name));
    $("text").value = "";
    grow();
    choose(null);
    window.scrollTo(0, document.documentElement.scrollHeight);
    const taken = await Promise.all(shown.map((one, model) => hear(model, message, one, stopping.signal)));
    if (!taken.some(Boolean) && !stopping.signal.aborted) {
      $("text").value ||= text; // to be sent again, or mended
      if (!photo) choose(file);
      grow();
    }
  } catch (error) {
    notice(error.message);
  } finally {
    stopping = null;
    busy(false);
    $("text").focus();
  }
}

function grow() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight + 2}px`;
}

function begin() {
  conversation = null;
  for (const image of $("log").querySelectorAll("img")) URL.revokeObjectURL(image.src);
  $("log").replaceChildren();
  notice("");
  choose(null);
  $("text").focus();
}

$("models").textContent = names.join("  and  ");
document.title = `${names.join(" and ")}: mmtune chat`;
$("text").maxLength = about.limits.text;
for (const input of options) {
  input.value = about.sampling[input.name] ?? "";
  if (input.name === "max_tokens") input.max = about.limits.tokens;
}
const sees = about.models.some((model) => model.sees);
$("attach").hidden = !sees;
document.body.toggleAttribute("data-sees", sees);

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  say();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
});
$("text").addEventListener("input", grow);
window.addEventListener("resize", grow);
$("text").addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (sees && file) choose(file);
});
$("stop").addEventListener("click", () => stopping?.abort());
$("anew").addEventListener("click", begin);
$("attach").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => choose($("file").files[0] ?? null));
$("remove").addEventListener("click", () => choose(null));
window.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").hidden = !sees;
});
window.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").hidden = true;
});
window.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").hidden = true;
  const [file] = event.dataTransfer.files;
  if (sees && file) choose(file);
});
document.body.dataset.ready = "yes";
$("text").focus();
