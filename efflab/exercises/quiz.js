"use strict";
// The site's quizzes. Runs inside a function with `nacl` (TweetNaCl), `QUANTITIES` (efflab/units.js) and `TABLES`.
// No eval, no request, no inline handler: it works from a file and under `script-src 'self'`.

const KEY = "efflab-progress";
const SCHEMA = "efflab-progress/1";
const LONGEST_ANSWER = 200;
const LARGEST_FILE = 4e6;
const QUESTION_ID = /^[a-z][a-z_]*-(?:code-|own-)?[1-9][0-9]?$/;

const { quoted } = QUANTITIES;

/** {value} in base units, or {problem}: a sentence that says why the text is no finite quantity of this unit. */
function parse(text, symbol, example) {
  const { value, problem } = QUANTITIES.parse(text, symbol, example);
  if (problem) return { problem: problem[0].toUpperCase() + problem.slice(1) };
  return Number.isFinite(value) ? { value } : { problem: `${quoted(text)} is not a finite number.` };
}

// Opening what efflab/exercises/sealing.py sealed.

const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

function fromBase64(text) {
  const clean = text.replace(/=+$/, "");
  const bytes = new Uint8Array(Math.floor((clean.length * 3) / 4));
  for (let i = 0, bits = 0, held = 0, at = 0; i < clean.length; i++) {
    bits = ((bits << 6) | ALPHABET.indexOf(clean[i])) & 0xffffff;
    held += 6;
    if (held >= 8) {
      held -= 8;
      bytes[at++] = (bits >> held) & 255;
    }
  }
  return bytes;
}

const utf8 = (text) => Uint8Array.from(unescape(encodeURIComponent(text)), (c) => c.charCodeAt(0));
const fromUtf8 = (bytes) => {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return decodeURIComponent(escape(text));
};

function joined(...parts) {
  const all = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

function tokenKey(sealed, token) {
  const salt = fromBase64(sealed.salt);
  let digest = nacl.hash(joined(salt, utf8(token)));
  for (let i = 1; i < sealed.rounds; i++) digest = nacl.hash(joined(digest, salt));
  return digest;
}

function openBox(box, key) {
  const plain = nacl.secretbox.open(fromBase64(box), new Uint8Array(24), key);
  return plain && JSON.parse(fromUtf8(plain));
}

/** {right, feedback} of an option. */
function openChoice(sealed, letter) {
  return openBox(sealed.boxes["abcdef".indexOf(letter)], tokenKey(sealed, letter).slice(0, 32));
}

const ID = 6;
const SEED = 16;

/** {right, feedback} of a recognised value in base units; null for any other. */
function openNumeric(sealed, value) {
  const size = Math.abs(value);
  const sign = value < 0 ? "-" : "+";
  const bucket = (step) => Math.floor(Math.log(size) / step);
  const tokens =
    size < 1e-30
      ? ["0"]
      : [`${sign}${bucket(sealed.step)}`, `${sign}d${bucket(Math.LN10)}`, `${sign}n${bucket(sealed.nearStep)}`];
  const entries = fromBase64(sealed.entries);
  for (const token of tokens) {
    const key = tokenKey(sealed, token);
    for (let at = 0; at < entries.length; at += ID + SEED) {
      if (!entries.subarray(at, at + ID).every((byte, i) => byte === key[32 + i])) continue;
      for (let i = 0; i < sealed.boxes.length; i++) {
        const pad = nacl.hash(joined(key, Uint8Array.of(i)));
        const seed = entries.subarray(at + ID, at + ID + SEED).map((byte, n) => byte ^ pad[n]);
        const found = openBox(sealed.boxes[i], nacl.hash(Uint8Array.from(seed)).slice(0, 32));
        if (found && found.low <= value && value <= found.high) return found;
      }
    }
  }
  return null;
}

const PLAIN = /^[0-9][0-9,]*\.?[0-9]*$/;

/** {right, feedback} of what was typed, or {problem}; `wrong` is the feedback for what is not recognised. */
function judgeNumeric(sealed, text, wrong) {
  const { value, problem } = parse(text, sealed.unit, sealed.example);
  if (problem) return { problem };
  const found = openNumeric(sealed, value), written = text.trim();
  if (!found && sealed.example === "%" && value > 1 && PLAIN.test(written))
    return { problem: `Did you mean ${written}%? Without the percent sign ${written} is more than the whole.` };
  return found ?? { right: false, feedback: wrong };
}

// Progress: the file that efflab.exercises.progress_file reads and writes.

function merged(...several) {
  const result = new Map();
  for (const entries of several) {
    for (const [id, b] of entries) {
      const a = result.get(id);
      if (!a) {
        result.set(id, b);
        continue;
      }
      const answer = a.solved === b.solved ? (a.answer ?? b.answer) : a.solved ? a.answer : b.answer;
      result.set(id, {
        solved: a.solved || b.solved,
        attempts: Math.max(a.attempts, b.attempts),
        points: Math.max(a.points, b.points),
        answer,
      });
    }
  }
  return result;
}

const isCount = (value, most) => Number.isInteger(value) && value >= 0 && value <= most;

/** The entries of a progress file's text, by question id. Throws an Error that says what is wrong with it. */
function readProgress(text) {
  let data;
  if (!text.trim()) throw new Error("The file is empty.");
  try {
    data = JSON.parse(text);
  } catch {
    throw new Error("The file is cut off or is not JSON. Export it again from where it came.");
  }
  const schema = data && typeof data === "object" ? data.schema : undefined;
  const match = typeof schema === "string" ? /^([a-z-]+)\/([0-9]{1,9})$/.exec(schema) : null;
  if (!match || match[1] !== "efflab-progress") {
    throw new Error(
      `This is not a progress file${match ? `, its schema is ${schema}` : ""}. A progress file has schema ${SCHEMA}.`
    );
  }
  if (Number(match[2]) !== 1) {
    throw new Error(`The file's schema ${schema} is newer than this page reads (${SCHEMA}). Use the newer site.`);
  }
  const rows = data.questions;
  if (!rows || typeof rows !== "object" || Array.isArray(rows)) throw new Error("The file holds no questions.");
  const entries = new Map();
  for (const [id, row] of Object.entries(rows)) {
    const good =
      QUESTION_ID.test(id) && row && typeof row === "object" && typeof row.solved === "boolean" &&
      isCount(row.attempts, 1e9) && isCount(row.points, 10) &&
      (row.answer === null || (typeof row.answer === "string" && row.answer.length <= LONGEST_ANSWER));
    if (!good) throw new Error(`The entry of question ${quoted(id.slice(0, 40))} is damaged. Export the file again.`);
    entries.set(id, { solved: row.solved, attempts: row.attempts, points: row.points, answer: row.answer });
  }
  return entries;
}

function writeProgress(entries) {
  const questions = {};
  for (const id of [...entries.keys()].sort()) questions[id] = entries.get(id);
  return `${JSON.stringify({ schema: SCHEMA, questions }, null, 1)}\n`;
}

/**
 * Progress in this browser. `entries` is what is stored, with the changes of this tab that could not be stored yet
 * (`unsaved`). Other tabs write too, so what is stored is read again before each change, and it decides: what another
 * tab has erased does not come back from this one's memory. `problem` says why something is not saved.
 */
const store = {
  entries: new Map(),
  unsaved: new Map(),
  problem: null,

  /** Take what is stored now. What is damaged is set aside, and what this tab knew stays. */
  load() {
    this.problem = null;
    let text = null;
    try {
      text = localStorage.getItem(KEY);
    } catch (error) {
      this.problem = notSaved(error);
      return;
    }
    try {
      this.entries = withUnsaved(text === null ? new Map() : readProgress(text), this.unsaved);
    } catch (error) {
      this.unsaved = new Map(this.entries);
      // Keep what is there for whoever can mend it, and do not let it stand in the way.
      this.problem = `The progress saved in this browser could not be read and was set aside. ${error.message}`;
      try {
        localStorage.setItem(`${KEY}-damaged`, text);
        localStorage.removeItem(KEY);
      } catch {
        // It stays where it was; saving will replace it only if the browser lets us.
      }
    }
  },

  save() {
    try {
      localStorage.setItem(KEY, writeProgress(this.entries));
      this.unsaved.clear();
      this.problem = null;
    } catch (error) {
      this.problem = notSaved(error);
    }
  },

  note(id, right, answer) {
    this.load();
    const before = this.entries.get(id) ?? { solved: false, attempts: 0, points: 0, answer: null };
    const solved = before.solved || right;
    this.unsaved.set(id, {
      solved,
      attempts: before.attempts + 1,
      points: solved ? pointsOf(id) : 0,
      answer: before.solved && !right ? before.answer : answer.slice(0, LONGEST_ANSWER),
    });
    this.entries.set(id, this.unsaved.get(id));
    this.save();
  },

  /** Take in a file's entries, keeping the best of both. */
  add(incoming) {
    this.load();
    this.unsaved = merged(this.unsaved, incoming);
    this.entries = merged(this.entries, incoming);
    this.save();
  },

  forget(topic) {
    this.load();
    for (const entries of [this.entries, this.unsaved]) {
      for (const id of [...entries.keys()]) if (topicOf(id) === topic) entries.delete(id);
    }
    this.save();
  },
};

/** What is stored, with this tab's unsaved changes. Of what is not solved the latest answer counts, which is ours. */
function withUnsaved(stored, unsaved) {
  const result = merged(stored, unsaved);
  for (const [id, mine] of unsaved) {
    const entry = result.get(id);
    if (!entry.solved) result.set(id, { ...entry, answer: mine.answer });
  }
  return result;
}

function notSaved(error) {
  const why = error && error.name === "QuotaExceededError" ? "its storage is full" : "it refuses to store data";
  return `Your answers are not saved in this browser: ${why}. Export them to a file before you leave this page.`;
}

const topicOf = (id) => id.split("-")[0];
const pointsOf = (id) => (TABLES.topics[topicOf(id)] ?? {})[id] ?? 0;
const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

// The page

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Text in which `code` becomes a code element. Never read as HTML. */
function withCode(text) {
  return text.split("`").map((part, i) => (i % 2 ? element("code", {}, part) : part));
}

class Quiz {
  constructor(root) {
    this.root = root;
    this.id = root.dataset.question;
    this.topic = topicOf(this.id);
    this.badge = root.querySelector(".efflab-quiz-badge");
    this.form = root.querySelector("form");
    root.querySelector(".efflab-quiz-nojs")?.remove();
    if (!this.form) return; // code and measurements are answered in the notebook
    this.sealed = JSON.parse(root.querySelector("script").textContent);
    this.feedback = root.querySelector(".efflab-quiz-feedback");
    this.input = root.querySelector(".efflab-quiz-input");
    root.querySelector("fieldset").disabled = false;
    for (const hidden of root.querySelectorAll("[data-needs-script]")) hidden.hidden = false;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.check();
    });
    this.form.addEventListener("input", () => this.say(null));
    this.prepareHints();
  }

  prepareHints() {
    const button = this.root.querySelector(".efflab-quiz-hint");
    const hints = [...this.root.querySelectorAll(".efflab-quiz-hints > li")];
    let shown = 0;
    const label = () => {
      const left = shown < hints.length;
      button.textContent = left ? `Hint ${shown + 1} of ${hints.length}` : "No more hints";
      button.setAttribute("aria-disabled", String(!left));
    };
    button.addEventListener("click", () => {
      if (shown === hints.length) return;
      hints[shown].parentElement.hidden = false;
      hints[shown++].hidden = false;
      label();
    });
    label();
  }

  get answer() {
    if (this.input) return this.input.value;
    return this.form.querySelector("input:checked")?.value ?? "";
  }

  set answer(text) {
    if (this.input) this.input.value = text;
    else for (const radio of this.form.querySelectorAll("input")) radio.checked = radio.value === text;
  }

  /** {right, feedback}, or {problem} where the answer is not one. */
  judge(answer) {
    if (this.sealed.kind === "choice") {
      if (!answer) return { problem: "Choose an option first." };
      return openChoice(this.sealed, answer) ?? { problem: "This question is damaged. Reload the page." };
    }
    if (!answer.trim()) return { problem: "Type an answer first." };
    return judgeNumeric(this.sealed, answer, this.root.dataset.wrong);
  }

  check() {
    const verdict = this.judge(this.answer);
    if (!verdict.problem) store.note(this.id, verdict.right, this.answer);
    this.say(verdict);
    page.refresh();
  }

  say(verdict) {
    this.feedback.replaceChildren();
    this.root.classList.remove("is-right", "is-wrong", "is-uncounted");
    this.input?.setAttribute("aria-invalid", String(Boolean(verdict && !verdict.right)));
    if (!verdict) return;
    const [state, head] = verdict.problem
      ? ["is-uncounted", "Not counted. "]
      : verdict.right ? ["is-right", "Right. "] : ["is-wrong", "Not yet. "];
    this.root.classList.add(state);
    this.feedback.append(element("strong", {}, head), ...withCode(verdict.problem ?? verdict.feedback));
  }

  /** Show what was saved: the answer, and its feedback if it was checked. */
  restore() {
    const entry = store.entries.get(this.id);
    if (!this.form || !entry || entry.answer === null || this.answer) return;
    this.answer = entry.answer;
    const verdict = this.answer ? this.judge(this.answer) : { problem: "gone" };
    if (!verdict.problem) this.say(verdict);
  }

  refresh() {
    const entry = store.entries.get(this.id);
    const solved = Boolean(entry?.solved);
    this.root.classList.toggle("is-solved", solved);
    this.badge.textContent = solved ? "Solved" : entry?.attempts ? count(entry.attempts, "attempt") : "";
  }

  clear() {
    if (!this.form) return;
    this.form.reset();
    this.say(null);
  }
}

class Bar {
  constructor(topic, quizzes) {
    this.topic = topic;
    this.quizzes = quizzes.filter((quiz) => quiz.topic === topic);
    this.heading = element("p", { class: "efflab-quiz-bar-text" });
    this.meter = element("progress", { "aria-label": "Questions solved on this page" });
    this.total = element("p", { class: "efflab-quiz-bar-total" });
    this.message = element("p", { class: "efflab-quiz-bar-message", role: "status" });
    this.file = element("input", { type: "file", accept: ".json,application/json", hidden: "", "aria-hidden": "true" });
    this.file.addEventListener("change", () => this.importFile());
    this.actions = element("div", { class: "efflab-quiz-actions" });
    this.root = element(
      "section", { class: "efflab-quiz-bar", "aria-label": "Your progress" },
      this.heading, this.meter, this.total, this.actions, this.file, this.message
    );
    this.showActions();
  }

  button(text, act, label = text) {
    const made = element("button", { type: "button", class: "efflab-quiz-button is-quiet", "aria-label": label }, text);
    made.addEventListener("click", act);
    return made;
  }

  showActions() {
    this.reset = this.button("Reset…", () => this.askReset(), "Reset… the answers of this chapter");
    this.actions.replaceChildren(
      this.button("Export", () => this.exportFile(), "Export your progress to a file"),
      this.button("Import", () => this.file.click(), "Import progress from a file"),
      this.reset
    );
  }

  askReset() {
    const solved = [...store.entries].filter(([id, e]) => topicOf(id) === this.topic && e.attempts > 0).length;
    const keep = this.button("Keep", () => {
      this.showActions();
      this.reset.focus();
    });
    const erase = this.button("Erase", () => {
      store.forget(this.topic);
      for (const quiz of this.quizzes) quiz.clear();
      this.showActions();
      this.reset.focus();
      page.refresh();
      this.say("The answers of this chapter are erased.");
    });
    this.actions.replaceChildren(
      element("span", {}, `Erase your answers to ${count(solved, "question")} of this chapter in this browser?`),
      erase, keep
    );
    keep.focus();
  }

  exportFile() {
    const blob = new Blob([writeProgress(store.entries)], { type: "application/json" });
    const link = element("a", { href: URL.createObjectURL(blob), download: "efflab-progress.json" });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    this.say(`${count(store.entries.size, "question")} written to efflab-progress.json.`);
  }

  async importFile() {
    const file = this.file.files[0];
    if (!file) return;
    try {
      if (file.size > LARGEST_FILE) throw new Error("The file is too large to be a progress file.");
      const incoming = readProgress(await file.text());
      const before = [...store.entries.values()].filter((e) => e.solved).length;
      store.add(incoming);
      const gained = [...store.entries.values()].filter((e) => e.solved).length - before;
      for (const quiz of page.quizzes) quiz.restore();
      page.refresh();
      this.say(`${count(incoming.size, "question")} read from ${file.name}; ${gained} newly solved.`);
    } catch (error) {
      this.say(`${file.name} was not imported. ${error.message}`);
    } finally {
      this.file.value = "";
    }
  }

  say(text) {
    this.message.textContent = [text, store.problem].filter(Boolean).join(" ");
    this.message.classList.toggle("is-problem", Boolean(store.problem));
  }

  refresh() {
    const solved = this.quizzes.filter((q) => store.entries.get(q.id)?.solved).length;
    this.meter.max = this.quizzes.length;
    this.meter.value = solved;
    this.heading.textContent = `${count(this.quizzes.length, "question")} on this page, ${solved} solved`;
    const all = Object.entries(TABLES.topics[this.topic] ?? {});
    const earned = all.reduce((sum, [id, points]) => sum + (store.entries.get(id)?.solved ? points : 0), 0);
    const there = all.reduce((sum, [, points]) => sum + points, 0);
    this.total.textContent =
      `${earned} of ${count(there, "point")} in this chapter: the questions of this page and those of its exercise notebook`;
    this.say(null);
  }
}

const page = {
  quizzes: [],
  bars: [],

  start() {
    const roots = [...document.querySelectorAll(".efflab-quiz")];
    if (!roots.length) return;
    this.quizzes = roots.map((root) => new Quiz(root));
    store.load();
    if (!store.problem) store.save(); // find out now whether saving works, before anything is answered
    for (const topic of new Set(this.quizzes.map((quiz) => quiz.topic))) {
      const bar = new Bar(topic, this.quizzes);
      this.bars.push(bar);
      bar.quizzes[0].root.before(bar.root);
    }
    for (const quiz of this.quizzes) quiz.restore();
    this.refresh();
    window.addEventListener("storage", (event) => {
      if (event.key !== KEY && event.key !== null) return;
      const before = store.entries;
      store.load();
      for (const quiz of this.quizzes) {
        if (before.has(quiz.id) && !store.entries.has(quiz.id)) quiz.clear(); // another tab erased it
        else quiz.restore();
      }
      this.refresh();
    });
  },

  refresh() {
    for (const quiz of this.quizzes) quiz.refresh();
    for (const bar of this.bars) bar.refresh();
  },
};

if (typeof document !== "undefined") {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", () => page.start());
  else page.start();
}

return { parse, openChoice, openNumeric, judgeNumeric, readProgress, writeProgress, merged, store };
