// The paste box of the published site. Everything is put into the page as text, never as HTML.
const form = document.querySelector("form.paste");
const box = document.querySelector("#text");
const out = document.querySelector("#answer");
const state = document.querySelector("#state");
const words = JSON.parse(form.dataset.words);
let worker = null;
let next = 0;
const waiting = new Map();

function load() {
  if (worker) return;
  state.textContent = words.loading;
  worker = new Worker(new URL("worker.mjs", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => {
    if (data.ready) state.textContent = words.loaded;
    if (data.failed && data.id === undefined) state.textContent = `${words.trouble} ${data.failed}`;
    if (data.id !== undefined) {
      waiting.get(data.id)?.(data);
      waiting.delete(data.id);
    }
  };
}

function ask(question) {
  load();
  return new Promise((resolve) => {
    const id = next++;
    waiting.set(id, resolve);
    worker.postMessage({ ...question, id });
  });
}

function put(parent, tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (name) made.className = name;
  parent.append(made);
  return made;
}

function link(parent, id) {
  const made = put(parent, "a", id);
  made.href = `${form.dataset.entries}${id}.html`;
  return made;
}

function show(answer) {
  out.replaceChildren();
  const entry = answer.entry;
  if (!entry) put(out, "h2", words.unknown);
  if (entry) {
    link(put(out, "h2"), entry.id);
    put(out, "pre", entry.seen, "seen");
    put(out, "p", [entry.why, entry.ranks.join(", "), entry.your_code].filter(Boolean).join(" · "), "why");
    put(out, "p", entry.root_cause);
    if (entry.causes.length) put(out, "h3", words.causes);
    const causes = put(out, "ul");
    for (const cause of entry.causes) put(causes, "li", `${cause.id}: ${cause.tell_by}`);
    put(out, "h3", words.fixes);
    const fixes = put(out, "ol", undefined, "fixes");
    for (const fix of entry.fixes) {
      const item = put(fixes, "li", undefined, "fix");
      put(item, "h3", fix.action);
      put(item, "p", fix.why, "rate-words");
      if (fix.for_causes.length) put(item, "p", `${words.for_cause} ${fix.for_causes.join(", ")}`);
      if (fix.condition) put(item, "p", `${words.condition} ${fix.condition}`);
      put(item, "pre", fix.how);
      if (fix.trade_off) put(item, "p", `${words.trade_off}: ${fix.trade_off}`);
    }
    if (entry.dead_ends.length) put(out, "h3", words.dead_ends);
    const avoid = put(out, "ul", undefined, "cautions");
    for (const one of entry.dead_ends) {
      const item = put(avoid, "li", undefined, "caution");
      put(item, "h3", `✗ ${one.action}`);
      put(item, "p", one.why);
    }
  }
  for (const other of answer.also) {
    const line = put(out, "p", `${words.also}: `);
    link(line, other.id);
    line.append(` (${other.role}: ${other.why})`);
  }
  if (answer.unknown) {
    put(out, "p", words.understood);
    put(out, "pre", [answer.unknown.seen, answer.unknown.your_code].filter(Boolean).join("\n"), "seen");
  }
  if (!answer.recognised && answer.related.length) {
    const line = put(out, "p", `${words.related}: `);
    for (const id of answer.related) {
      link(line, id);
      line.append(" ");
    }
  }
}

box.addEventListener("input", load, { once: true });
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!box.value.trim()) return;
  const { answer, failed } = await ask({ text: box.value, locale: form.dataset.locale });
  if (failed) state.textContent = `${words.trouble} ${failed}`;
  else show(answer);
});

// For the parity test, and for anybody who wants the whole answer in the console.
window.provenfix = (text) => ask({ text, whole: true });
