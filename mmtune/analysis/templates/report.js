"use strict";
// Everything shown is put in as text, never as markup: answers are what models and data sets say.
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("filter"), list = document.getElementById("list"), more = document.getElementById("more");
const PAGE = 30;
let found = [], shown = 0;
const texts = new Array(data.rows.length); // made when first searched

function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

function choices(select, names) {
  names.forEach((name, i) => { const option = element("option", name); option.value = i; select.append(option); });
}

function textOf(i) {
  if (texts[i] === undefined) {
    const [task, id, prompt, target, , answers] = data.rows[i];
    const said = answers.flatMap(answer => answer ? [answer[0] ?? "unparsed", answer[1]] : []);
    texts[i] = [data.tasks[task][0], id, prompt, target, ...said].join("\n").toLowerCase();
  }
  return texts[i];
}

function outcome(first, second) {
  if (!first || !second) return "";
  if (second[2] > first[2]) return "up";
  if (second[2] < first[2]) return "down";
  return first[2] >= 0.5 ? "right" : "wrong";
}

function answer(name, given) {
  const term = element("dt", name + " "), value = element("dd");
  if (!given) { value.append(element("span", "was asked something else", "soft")); return [term, value]; }
  const [prediction, raw, score] = given;
  term.append(element("span", score === 1 ? "✓" : score === 0 ? "✗" : score.toFixed(2), score ? "good" : "bad"));
  value.append(element("strong", prediction ?? "unparsed", "text"));
  if (raw) value.append(" ", element("code", raw, "text soft"));
  return [term, value];
}

function card(i) {
  const [task, id, prompt, target, photo, answers] = data.rows[i];
  const box = element("article", undefined, "sample"), head = element("header"), question = element("div", undefined, "question");
  head.append(element("strong", data.tasks[task][0]), element("span", "id " + id, "soft"));
  const [a, b] = [+form.a.value, +form.b.value];
  const way = a === b ? "" : outcome(answers[a], answers[b]);
  if (way === "up" || way === "down") head.append(element("span", way === "up" ? "better" : "worse", way === "up" ? "good" : "bad"));
  if (photo >= 0) {
    const image = element("img");
    image.alt = "photo";
    image.src = "data:image/jpeg;base64," + data.images[photo];
    question.append(image);
  }
  const scroll = element("div", undefined, "prompt");
  scroll.tabIndex = 0;
  scroll.append(element("div", prompt, "text"));
  question.append(scroll);
  const answered = element("dl");
  answered.append(element("dt", "right answer"), element("dd", target, "text"));
  for (const variant of new Set([a, b])) answered.append(...answer(data.variants[variant], answers[variant]));
  box.append(head, question, answered);
  return box;
}

function extend() {
  const next = Math.min(found.length, shown + PAGE);
  list.append(...found.slice(shown, next).map(card));
  shown = next;
  more.hidden = shown === found.length;
  form.querySelector("output").value = `${found.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")} samples, ${shown} shown`;
}

function filter() {
  const words = form.search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const [task, show, a, b] = [form.task.value, form.show.value, +form.a.value, +form.b.value];
  found = [];
  data.rows.forEach((row, i) => {
    if (task !== "" && row[0] !== +task) return;
    if (show && outcome(row[5][a], row[5][b]) !== show) return;
    if (words.length) { const text = textOf(i); if (!words.every(word => text.includes(word))) return; }
    found.push(i);
  });
  list.replaceChildren();
  shown = 0;
  extend();
}

// what is chosen stands in the address, so that it can be sent to somebody
function fromAddress() {
  const said = new URLSearchParams(location.hash.slice(1));
  for (const name of ["search", "task", "a", "b", "show"]) {
    if (!said.has(name)) continue;
    const value = said.get(name), task = data.tasks.findIndex(one => one[0] === value), variant = data.variants.indexOf(value);
    form[name].value = name === "task" && task >= 0 ? task : "ab".includes(name) && variant >= 0 ? variant : value;
  }
  for (const select of form.querySelectorAll("select")) if (select.selectedIndex < 0) select.selectedIndex = 0;
}

function toAddress() {
  const said = new URLSearchParams();
  if (form.search.value) said.set("search", form.search.value);
  if (form.task.value) said.set("task", data.tasks[+form.task.value][0]);
  if (data.variants.length > 1) for (const name of ["a", "b"]) said.set(name, data.variants[+form[name].value]);
  if (form.show.value) said.set("show", form.show.value);
  history.replaceState(null, "", "#" + said);
}

let waiting;
choices(form.task, data.tasks.map(task => task[0]));
for (const select of [form.a, form.b]) { choices(select, data.variants); select.hidden = data.variants.length < 2; }
form.b.value = data.variants.length - 1;
form.show.hidden = data.variants.length < 2;
fromAddress();
form.hidden = false;
form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => { filter(); toAddress(); }, 120); });
form.addEventListener("submit", event => event.preventDefault());
more.addEventListener("click", extend);
addEventListener("hashchange", () => { fromAddress(); filter(); });
filter();
