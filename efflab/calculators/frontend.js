// The front end of every calculator: it reads a declaration, computes with the traced FORMULAS and draws.
// Functions above `mount` touch no document, so that tests run them against Python. OTHER_DEVICE comes before this
// text, and efflabUnits: see efflab/units.js. Formulas are added after it.

const { UNITS, FACTORS, show, significant, group, raised } = efflabUnits;
const FORMULAS = {}, BINARY = {}; // BINARY is binary.js, where a calculator needs it

function add({ formulas, binary }) {
  Object.assign(FORMULAS, formulas);
  Object.assign(BINARY, binary);
}

function checked({ value, problem }, name) { // throws an Error whose message is for the reader
  if (problem) throw new Error(`${name}: ${problem}`);
  return value;
}

const parse = (text, symbol, name) => checked(efflabUnits.parse(text, symbol), name);
const real = (text, name) => checked(efflabUnits.real(text), name);
const rounded = (value, digits) => Number(value.toPrecision(digits));

// how a refusal ends: with an example, in place of which an input has one of its own
const HINT = / (?:Add one, such as|Write it like|Write it in|Write a plain number, such as) [^\n]*$/;
const SIZE = /^(.*[0-9])\s*(k|K|M|Ki|Mi)$/, SIZES = { k: 1e3, K: 1e3, M: 1e6, Ki: 1024, Mi: 1048576 };

function quantity(text, input, what) { // as typed; throws
  const symbol = input.unit, size = input.integer && !symbol && SIZE.exec(text.trim());
  const { value, problem } = efflabUnits.parse(size ? size[1] : text, symbol);
  if (!problem) return size ? value * SIZES[size[2]] : value;
  const first = input.integer ? group(String(input.default)) : show(input.default, symbol);
  const hint = HINT.exec(problem)?.[0] ?? "";
  let end = hint.includes("plain number") ? ` Write a plain number, such as ${first}.` : ` Write it like '${first}'.`;
  if (hint.startsWith(" Add")) {
    const better = `${text.trim()} ${first.split(" ").pop()}`, number = rounded(parse(better, symbol, what), 15);
    end = input.low <= number && number <= input.high ? ` Add one, such as '${better}'.` : ` Add one, as in '${first}'.`;
  }
  throw new Error(`${what}: ${problem.replace(HINT, () => end)}`);
}

function accept(spec, input, value, what) { // a number or a text, as the input keeps it; throws
  if (input.kind === "choice") {
    if (!input.options.some((o) => o.name === value))
      throw new Error(`${what}: '${value}' is not known. Known: ${input.options.map((o) => o.name).join(", ")}.`);
    return value;
  }
  if (input.kind === "number") {
    real(String(value), what);
    return String(value).trim();
  }
  const symbol = input.unit, text = typeof value === "string";
  // 10 × 1e-6 is 9.999999999999999e-6: keep the digits that were typed
  const number = !text ? value : input.zero && value.trim() === "0" ? 0 : rounded(quantity(value, input, what), 15);
  const typed = text ? value.trim() : `${rounded(value, 12)} ${symbol}`.trim();
  if (!Number.isFinite(number)) throw new Error(`${what} must be a finite number, got '${value}'.`);
  if (!((input.low <= number && number <= input.high) || (input.zero && number === 0)))
    throw new Error(`${what} must be ${input.zero ? "0 or " : ""}between ${show(input.low, symbol)} and ` +
      `${show(input.high, symbol)}, got ${typed}.`);
  if (input.integer && !Number.isInteger(number)) throw new Error(`${what} must be a whole number, got ${typed}.`);
  return number;
}

// ---- computing: as efflab.calculators.calculator does ----------------------------------------------------------

const DECADE = [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8];

function stops({ low, high, default: first, scale, integer, zero, steps, per = 1 }) { // as Slider.stops() does
  const [from, to] = [low / per, high / per], found = [];
  if (scale === "linear") for (let i = 0; i <= steps; i++) found.push(from + ((to - from) * i) / steps);
  else {
    const log = scale === "log" ? Math.log10 : Math.log2, start = Math.floor(log(from)), end = Math.ceil(log(to));
    const ladder = scale === "log2" ? [1, 1.5] : end - start < 11 ? DECADE : [1, 2, 5];
    for (let e = start; e <= end; e++) for (const m of ladder) found.push(scale === "log" ? Number(`${m}e${e}`) : m * 2 ** e);
  }
  const kept = integer ? found.filter((v) => scale === "linear" || Number.isInteger(v)).map((v) => Math.floor(v + 0.5)) : found;
  const ends = [low, high, first, ...(zero ? [0] : [])], near = (v, e) => Math.abs(v - e) <= 1e-9 * Math.max(Math.abs(v), Math.abs(e));
  const within = kept.filter((v) => from < v && v < to).map((v) => v * per).filter((v) => !ends.some((e) => near(v, e)));
  return [...new Set([...ends, ...within])].sort((a, b) => a - b);
}

function compile(spec) { // a declaration leaves out what is empty or false
  const setters = new Map(), byName = (items) => new Map(items.map((i) => [i.name, i]));
  const inputs = spec.inputs.map((i) => {
    if (i.kind !== "choice") return i.kind === "slider" ? { ...i, stops: stops(i) } : i;
    const options = i.options.map((o) => ({ label: o.name, sets: {}, takes: {}, formulas: {}, ...o }));
    return { by: {}, missing: {}, ...i, options, table: byName(options) };
  });
  for (const choice of inputs.filter((i) => i.kind === "choice"))
    for (const name of new Set(choice.options.flatMap((o) => Object.keys({ ...o.sets, ...o.formulas, ...o.takes }))))
      setters.set(name, [...(setters.get(name) ?? []), choice]);
  const outputs = spec.outputs.map((o) => ({ given: {}, minus: [], ...o })), shown = outputs.filter((o) => o.shown);
  const curve = spec.curve && { at: [], marks: [], runs: [], describe: "", ...spec.curve, lines: spec.curve.lines.map((l) => ({ label: "", ...l })) };
  const computed = byName(outputs.filter((o) => o.formula || o.over || o.of));
  const exact = new Set(outputs.filter((o) => o.exact).map((o) => o.name));
  return { exact, drawn: [], names: [], intro: "", note: "", cautions: [], ...spec, inputs, outputs, shown, curve, setters, table: byName(inputs), computed };
}

const filled = (text, find) => text.replace(/\{(\w+)\}/g, (_, name) => find(name));

function scope(c, state, overrides) { // the values of one state, computed when asked for and kept
  const known = new Map(Object.entries(overrides ?? {})), self = { problem: null, offer: null, touched: new Set(), value };
  function value(name) {
    if (!known.has(name)) known.set(name, find(name));
    return known.get(name);
  }
  function find(name) {
    const source = origin(c, state, name);
    for (const touched of source.touched) self.touched.add(touched);
    if (source.ratio) {
      const [over, under] = source.ratio.map(value);
      return over === null || under === null ? null : over / under;
    }
    if (source.sum) {
      const { of, minus } = source.sum, parts = [...of, ...minus].map(value);
      return parts.includes(null) ? null : parts.reduce((total, part, i) => (i < of.length ? total + part : total - part));
    }
    if (source.formula) {
      const [parameters, run] = FORMULAS[source.formula], values = {};
      let complete = true;
      for (const p of parameters) {
        const from = source.given[p] ?? p;
        values[p] = typeof from === "string" ? value(from) : from;
        if (values[p] === null) complete = false;
      }
      return complete ? run(values) : null;
    }
    if (source.taken) return value(source.taken);
    if (source.problem && !self.problem) [self.problem, self.offer] = [source.problem, source.offer];
    return source.value;
  }
  return self;
}

function origin(c, state, name) { // where a value comes from: a ratio, a formula with what it is given, or a number
  const output = c.computed.get(name), touched = [];
  if (output?.over) return { ratio: [output.over, output.under], touched };
  if (output) return output.of ? { sum: output, touched } : { ...output, touched };
  for (const choice of c.setters.get(name) ?? []) {
    touched.push(choice.name);
    const option = choice.table.get(state[choice.name]);
    if (option.formulas[name]) return { formula: option.formulas[name], given: {}, touched };
    if (option.takes[name]) return { taken: option.takes[name], touched };
    if (!(name in option.sets)) continue;
    const set = option.sets[name], by = choice.by[name];
    if (!by) return { value: set, touched, choice };
    touched.push(by);
    const found = set[state[by]] ?? set[""]; // "": all others
    if (found !== undefined) return { value: found, touched, choice };
    const other = c.table.get(by), order = other.options, at = order.indexOf(other.table.get(state[by]));
    const has = order.filter((o) => o.name in set), far = (o) => Math.abs(order.indexOf(o) - at);
    const nearest = has.reduce((best, o) => (best && far(best) <= far(o) ? best : o), null);
    const texts = {
      [choice.name]: option.label,
      [by]: order[at].label,
      has: has.map((o) => o.label).join(", "),
      nearest: nearest?.label ?? "none",
    };
    const offer = nearest && { name: by, value: nearest.name, label: nearest.label };
    return { value: null, touched, problem: filled(choice.missing[name], (n) => texts[n]), offer };
  }
  touched.push(name);
  const typed = c.table.get(name)?.kind === "number";
  return { value: typed ? real(state[name], name) : state[name], typed: typed && state[name], touched };
}

function unsaid(text, symbol, label) { // without its unit where the label says it: "70B" beside "Parameters"
  const { counted, shown: [name] } = UNITS[symbol];
  return counted && label.toLowerCase().includes(name) ? text.replace(` ${name}`, "") : text;
}

const percent = (share) => show(100 * share, "") + (Number.isFinite(share) ? "%" : "");

function textOf(c, state, name, value, brief) {
  const input = c.table.get(name), output = c.computed.get(name);
  if (input?.kind === "choice") return input.table.get(state[name]).label;
  if (input?.kind === "number") return state[name];
  if (value === null || value === undefined) return output?.absent ?? "—";
  if (output?.percent) return percent(value);
  if (output?.words) return output.words[value];
  if (output?.whole && value < 1e15) return group(String(Math.ceil(value)));
  if (c.exact.has(name)) return BINARY.exact(value, brief);
  const text = show(value, c.units[name]);
  return brief ? unsaid(text, c.units[name], (output ?? input)?.label ?? "") : text;
}

function writtenOut(c, state, name, value) { // a value among the outputs, and what stands small under it
  const text = textOf(c, state, name, value), rounded = c.computed.get(name)?.rounded && value !== null;
  return rounded && text.length > BINARY.BRIEF ? [`≈ ${show(value, "")}`, `exactly ${text}`] : [text, ""];
}

const alone = (c, name) => { // the unit that the head of a column can say for all its cells
  const unit = UNITS[c.units[name]];
  const says = !c.exact.has(name) && !c.computed.get(name)?.words && !c.computed.get(name)?.percent;
  return says && unit.prefixes.length === 1 && unit.shown[0] !== "s" ? unit.shown[0] : "";
};
const headOf = (c, { name, label }) => label + (alone(c, name) && ` (${alone(c, name)})`);
const cellOf = (c, state, name, value) => textOf(c, state, name, value, true).replace(alone(c, name) && ` ${alone(c, name)}`, "");

const RELATIONS = {
  "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b, "==": (a, b) => a === b,
  "no multiple of": (a, b) => a % b !== 0,
};

function evaluate(c, state) {
  const s = scope(c, state), values = {};
  for (const name of c.drawn) values[name] = s.value(name);
  const relevant = c.inputs.map((i) => i.name).filter((name) => s.touched.has(name));
  for (const name of c.names) {
    const v = s.value(name); // a verdict may speak of a slider that does not matter now
    values[name] = c.table.has(name) && s.touched.has(name) && !relevant.includes(name) ? null : v;
  }
  const text = (name) => textOf(c, state, name, values[name]);
  const holds = ([left, relation, right]) => {
    const a = values[left], b = typeof right === "string" ? values[right] : right;
    return a !== null && b !== null && RELATIONS[relation](a, b);
  };
  const said = () => [c.verdict.find((v) => v.when.every(holds)), ...c.cautions.filter((v) => v.when.every(holds))];
  const verdict = s.problem ?? filled(said().map((v) => v.text).join(" "), text);
  return { state, values, relevant, verdict, problem: s.problem, offer: s.offer, text };
}

function each(c, state, vary, names) { // values for each option of a choice, or for the state alone
  return (vary ? c.table.get(vary).options : [{ name: "", label: "" }]).map((option) => {
    const all = vary ? { ...state, [vary]: option.name } : state, s = scope(c, all);
    return { option, chosen: !vary || state[vary] === option.name, values: names.map(s.value), state: all };
  });
}

function refused(c, state, { name, only_found }) { // the options of a choice that cannot be chosen now
  if (!only_found) return () => false;
  const found = c.inputs.flatMap((i) => Object.entries(i.by ?? {}).filter(([, by]) => by === name).map(([value]) => i.table.get(state[i.name]).sets[value]));
  return (option) => found.some((set) => set && !(option in set) && !("" in set));
}

function compared(c, state) { // the rows of the table
  const not = refused(c, state, c.table.get(c.compare.vary));
  return each(c, state, c.compare.vary, c.compare.columns.map((o) => o.name)).filter(({ option }) => !not(option.name));
}

function bits(c, state) {
  const s = scope(c, state), { value, exponent_bits, mantissa_bits, flavour } = c.bits;
  const given = [value, exponent_bits, mantissa_bits, flavour].map(s.value);
  return given.includes(null) ? null : BINARY.fields(...given);
}

const bars = (c, state) => each(c, state, c.stack.vary, [...c.stack.parts.map((p) => p.name), ...(c.stack.capacity ? [c.stack.capacity.name] : [])])
  .map(({ option, chosen, values }) => {
    const parts = values.slice(0, c.stack.parts.length), there = parts.filter((v) => v !== null);
    return { option, chosen, parts, total: there.length ? there.reduce((a, b) => a + b) : null, capacity: c.stack.capacity ? values.at(-1) : null };
  });

function listed(c, state) { // the rows under a stack: kind, label, amount, share
  const { parts, total, capacity } = bars(c, state).find((b) => b.chosen), unit = c.units[c.stack.parts[0].name];
  const text = (v) => (v === null ? "—" : show(v, unit)), whole = capacity ?? total;
  const share = (v) => (v === null || !whole ? "" : percent(v / whole));
  const rows = c.stack.parts.map((p, i) => ["part", p.label, text(parts[i]), share(parts[i])]);
  rows.push(["total", "Together", text(total), capacity === null ? "" : share(total)]);
  if (!c.stack.capacity) return rows;
  rows.push(["capacity", c.stack.capacity.label, text(capacity), ""]);
  if (total === null || capacity === null) return rows;
  const over = total > capacity, rest = Math.abs(capacity - total);
  return [...rows, [over ? "over" : "free", over ? "Too much by" : "Free", text(rest), share(rest)]];
}

// ---- what a reader takes away ----------------------------------------------------------------------------------

const literal = (v) =>
  typeof v === "boolean" ? (v ? "True" : "False")
  : typeof v === "string" ? JSON.stringify(v)
  : (v = rounded(v, 12)) !== 0 && (Math.abs(v) >= 1e6 || Math.abs(v) < 1e-3) ? v.toExponential().replace("e+", "e") : String(v);
const float = (v) => // every digit of a number that was typed
  !Number.isFinite(v) ? `float("${String(v).replace("Infinity", "inf").toLowerCase()}")`
  : Object.is(v, -0) ? "-0.0" : String(v).replace("e+", "e");
const fitted = (start, parts, end) => {
  const line = start + parts.join(", ") + end;
  return line.length <= 100 ? line : `${start}\n    ${parts.join(",\n    ")},\n${end}`;
};

function python(c, result) { // the calls of the formulas that give the numbers on show
  const { state, values } = result, modules = new Set(), done = new Set(), inputs = [], calls = [];
  function emit(name) {
    if (done.has(name)) return name;
    done.add(name);
    const source = origin(c, state, name);
    if (source.ratio) {
      const [over, under] = source.ratio.map(emit);
      calls.push(`${name} = ${over} / ${under}`);
    } else if (source.sum) {
      const { of, minus } = source.sum, [added, taken] = [of.map(emit), minus.map(emit)];
      calls.push(`${name} = ${[added.join(" + "), ...taken].join(" - ")}`);
    } else if (source.formula) {
      const parts = FORMULAS[source.formula][0].map((p) => {
        const from = source.given[p] ?? p;
        return `${p}=${typeof from === "string" ? emit(from) : literal(from)}`;
      });
      modules.add(source.formula.split(".")[0]);
      calls.push(fitted(`${name} = ${source.formula}(`, parts, ")"));
    } else if (source.taken) {
      calls.push(`${name} = ${emit(source.taken)}`);
    } else if (source.typed) {
      const number = float(source.value);
      inputs.push(`${name} = ${number}` + (number === source.typed ? "" : `  # ${source.typed}`));
    } else {
      const v = source.value, why = source.choice ? source.touched.map((n) => textOf(c, state, n)).join(", ") : "";
      const notes = [typeof v === "number" && c.units[name] ? show(v, c.units[name]) : "", why].filter(Boolean).join(": ");
      inputs.push(`${name} = ${literal(v)}` + (notes && notes !== literal(v) ? `  # ${notes}` : ""));
    }
    return name;
  }
  const shown = c.shown.filter((o) => values[o.name] !== null);
  const prints = shown.flatMap((o) => {
    emit(o.name);
    const label = JSON.stringify(o.label + ":");
    if (o.words) return [fitted(`${o.name}_words = (`, o.words.map((w) => JSON.stringify(w)), ")"), `print(${label}, ${o.name}_words[int(${o.name})])`];
    const text = o.percent ? `show(100 * ${o.name}) + "%"` : o.exact ? `exact(${o.name})` : o.whole ? `f"{ceil(${o.name}):,}"` : `show(${o.name}, UNITS["${c.units[o.name]}"])`;
    return [`print(${label}, ${text})`];
  });
  const imports = [`from efflab.formulas import ${[...modules].sort().join(", ")}`, "from efflab.units import UNITS, show", ""];
  if (shown.some((o) => o.whole)) imports.unshift("from math import ceil", "");
  if (shown.some((o) => o.exact)) imports.unshift("from efflab.calculators.binary import exact");
  const told = [`# ${c.title}`, ...(result.problem ? [`# ${result.problem}`] : [])];
  return [...(prints.length ? imports : []), ...told, ...inputs, "", ...calls, "", ...prints, ""].join("\n");
}

function prediction(c, result, source, now, random) {
  const created = now.toISOString().replace(/\.\d+Z$/, "Z"), inputs = {}, outputs = {};
  for (const name of result.relevant) inputs[name] = result.state[name];
  for (const o of c.shown)
    if (Number.isFinite(result.values[o.name])) outputs[o.name] = { value: result.values[o.name], unit: c.units[o.name] };
  const id = `${c.topic}-${c.name}-${created.replace(/[-:]/g, "")}-${random}`;
  return { schema: "efflab-prediction/1", id, topic: c.topic, created, source, calculator: c.name, inputs, outputs, note: "" };
}

const written = (v) => (typeof v === "number" ? String(rounded(v, 12)) : v);
const fragment = (id, result) => `#${id}?` + result.relevant.map((n) => `${n}=${encodeURIComponent(written(result.state[n]))}`).join("&");

function restored(c, query) { // the state of a link, and what was wrong with it in words
  const state = {}, problems = [];
  for (const part of query.split("&").filter(Boolean)) {
    const [name, ...rest] = part.split("="), input = c.table.get(name);
    try {
      const text = decodeURIComponent(rest.join("=").replaceAll("+", " "));
      if (!input) throw new Error(`${name} is not an input of this calculator.`);
      const bare = input.kind === "slider" && text.trim() !== "" && Number.isFinite(Number(text));
      state[name] = accept(c, input, bare ? Number(text) : text, name);
    } catch (error) {
      problems.push(error instanceof URIError ? `${name} cannot be read.` : error.message);
    }
  }
  return { state, problems };
}

// ---- drawing ---------------------------------------------------------------------------------------------------

const escaped = (text) => text.replace(/[&<>"]/g, (ch) => `&#${ch.charCodeAt(0)};`);
const otherDevice = (run, state) => (run.option && state[run.option[0]] === run.option[1] ? "" : OTHER_DEVICE);
const LADDER = [1, 2, 5, 10];

function roundOut(value, up) { // the next of 1, 2, 5, 10, ... at or beyond a value
  const decade = 10 ** Math.floor(Math.log10(value)), steps = LADDER.map((m) => m * decade);
  return up ? steps.find((v) => v >= value * (1 - 1e-9)) : steps.findLast((v) => v <= value * (1 + 1e-9));
}

const decades = (values) => values.every((v) => Math.abs(Math.log10(v) - Math.round(Math.log10(v))) < 1e-6);

function otherUnit(symbol, size) { // what an axis is marked in where that is no prefix of its base unit: its size, its name
  if (symbol === "%") return [0.01, "%"];
  if (symbol === "s") return size >= 172800 ? [86400, "d"] : size >= 7200 ? [3600, "h"] : [1, ""];
  const { prefixes, counted, beyond, shown: [name, per] } = UNITS[symbol];
  if (beyond && size >= beyond[2] * beyond[1] * per) return [beyond[1] * per, beyond[0]];
  if (per === 1 || counted) return [1, ""];
  const prefix = prefixes.filter((p) => FACTORS[p] * per <= size).pop() ?? prefixes[0];
  return [FACTORS[prefix] * per, prefix + name];
}

// `here`: a value whose unit, as it is written elsewhere, the axis takes too, unless its ticks would need many digits
function axis(kind, low, high, length, gap, symbol, here = 0) {
  const log = kind === "log", ticks = [], minor = [], middle = log ? Math.sqrt(low * high) : high / 2;
  const size = symbol !== "s" && here > 0 && (log || high < 100 * here) ? here : middle;
  const [per, other] = otherUnit(symbol, size);
  if (other) {
    const inner = axis(kind, low / per, high / per, length, gap, "");
    const back = (values) => values.map((v) => v * per);
    return { ...inner, low, high, ticks: back(inner.ticks), minor: back(inner.minor), unit: ` (${other})`,
      place: (v) => inner.place(v / per), text: (v) => inner.text(v / per) };
  }
  if (log) {
    const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high)), span = Math.log10(high / low);
    const skip = Math.max(1, Math.ceil((gap * span) / length));
    for (let e = first; e <= last; e++)
      for (const m of [1, 2, 3, 4, 5, 6, 7, 8, 9]) {
        const v = Number(`${m}e${e}`);
        if (v < low * (1 - 1e-9) || v > high * (1 + 1e-9)) continue;
        const wanted = m === 1 ? e % skip === 0 : span < 2 && LADDER.includes(m);
        (wanted ? ticks : minor).push(v);
      }
  } else {
    const raw = ((high - low) * gap) / length, decade = 10 ** Math.floor(Math.log10(raw));
    const step = decade * [1, 2, 2.5, 5, 10].find((m) => m * decade >= raw * (1 - 1e-9));
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-9); i++) ticks.push(i * step);
  }
  const { prefixes, counted, accepted, shown: [name] } = UNITS[symbol];
  const factor = (p) => accepted[p + name], each = log && counted; // 1M, 10M, 100M, 1B: each tick with its own prefix
  const prefix = prefixes.length > 1 && !each ? prefixes.filter((p) => factor(p) <= size).pop() ?? prefixes[0] : "";
  const place = log ? (v) => (Math.log(v / low) / Math.log(high / low)) * length : (v) => ((v - low) / (high - low)) * length;
  // one notation for the whole axis
  const scaled = (v) => v / factor(prefix), sizes = ticks.map(scaled).filter((n) => n);
  const powers = log && !each && decades(sizes) && sizes.some((n) => n < 0.000999 || n > 99999.5);
  const plain = (v) => (v < 0 ? "−" : "") + group(significant(Math.abs(v)));
  const text = (v) => each ? show(v, symbol).replace(` ${name}`, "") : powers ? "10" + raised(Math.round(Math.log10(scaled(v)))) : plain(scaled(v));
  return { log, low, high, ticks, minor, place, text, unit: name && ` (${prefix}${counted && prefix ? " " : ""}${name})`, counts: counted && !prefix && name };
}

const WIDE = 6.8; // of a character, in px at the drawing's text size

function apart(wanted, gap, low, high) { // places from low to high, at least `gap` apart and as near as can be to those wanted, rising
  const pools = [];
  wanted.forEach((place, i) => {
    let pool = { sum: place - i * gap, count: 1 };
    while (pools.length && pools.at(-1).sum / pools.at(-1).count > pool.sum / pool.count) {
      const before = pools.pop();
      pool = { sum: before.sum + pool.sum, count: before.count + pool.count };
    }
    pools.push(pool);
  });
  const last = high - (wanted.length - 1) * gap;
  return pools.flatMap(({ sum, count }) => Array(count).fill(Math.max(low, Math.min(last, sum / count)))).map((place, i) => place + i * gap);
}

function draw(c, result, width, runs, id, memo = new Map()) { // memo: lines of earlier calls, for those that stay
  const { state, values } = result, curve = c.curve, [xKind, yKind] = curve.scale, swept = c.table.get(curve.x);
  const height = Math.round(Math.min(400, Math.max(250, width * 0.88)));
  const box = { left: 46, top: 26, width: width - 46 - 16, height: height - 26 - 42 };
  const there = ([x, y]) => x !== null && y !== null && (xKind !== "log" || x > 0) && (yKind !== "log" || y > 0);
  const points = curve.at.map(([x, y]) => [values[x], values[y]]).filter(there);
  const rings = curve.marks.filter((m) => m.dot).map((m) => [values[m.x], values[m.y]]).filter(there);
  const dots = [...points, ...rings, ...runs.flatMap((r) => r.points)].filter(there);
  // the swept range, grown to hold every dot
  const end = (given, own) => (typeof given === "string" ? values[given] : given ?? own);
  let low = end(curve.low, swept?.low), high = end(curve.high, swept?.high);
  if (!(low < high)) return { svg: "", height };
  for (const [x] of dots) [low, high] = [Math.min(low, x), Math.max(high, x)];
  if (xKind === "log") [low, high] = [10 ** Math.floor(Math.log10(low) + 1e-9), roundOut(high, true)];
  const marks = curve.marks.filter((m) => values[m.x] !== null);
  const count = 80, xs = marks.map((m) => values[m.x]).filter((x) => x > low && x < high);
  for (let i = 0; i <= count; i++)
    xs.push(xKind === "log" ? low * (high / low) ** (i / count) : low + ((high - low) * i) / count);
  xs.sort((a, b) => a - b);
  const series = (y, changed) => {
    const all = { ...state, ...changed }, probe = scope(c, all, { [curve.x]: low });
    probe.value(y);
    const line = y + JSON.stringify(changed);
    const key = JSON.stringify([low, high, marks.map((m) => values[m.x]), [...probe.touched].map((n) => all[n])]);
    if (memo.get(line)?.key !== key) {
      const points = xs.map((x) => [x, scope(c, all, { [curve.x]: x }).value(y)]);
      memo.set(line, { key, points: points.filter(([, v]) => v !== null && (yKind !== "log" || v > 0)) });
    }
    return memo.get(line).points;
  };
  const lines = curve.lines.map((l) => ({ ...l, label: filled(l.label, result.text), points: series(l.y, {}) }));
  if (curve.vary)
    for (const option of c.table.get(curve.vary).options) {
      if (option.name === state[curve.vary]) continue;
      const found = series(curve.lines[0].y, { [curve.vary]: option.name }), end = found.at(-1)?.[1];
      const same = lines.find((l) => l.points.at(-1)?.[1] === end);
      if (!found.length || (found.length < xs.length && !same)) continue;
      if (same) (same.also ??= []).push(option.label);
      else lines.push({ y: curve.lines[0].y, label: option.label, faint: true, points: found });
    }
  for (const l of lines) if (l.also) l.label += l.also.length > 2 ? " and others" : ["", ...l.also].join(", ");
  const ys = [...lines.flatMap((l) => l.points.map((p) => p[1])), ...dots.map((p) => p[1])];
  if (!ys.length) return { svg: "", height };
  // faint lines may raise the drawing, and lower it only where it starts above zero
  const highest = Math.max(...ys), limit = Math.max(curve.y_high ?? Infinity, ...dots.map((p) => p[1]));
  const top = Math.min(highest, limit), firm = [...lines.filter((l) => !l.faint).flatMap((l) => l.points), ...dots].map((p) => p[1]);
  const bottom = Math.min(...(firm.length && !curve.above_zero ? firm : ys)), room = 0.08 * (top - bottom || top);
  const from = curve.above_zero ? bottom - room : Math.min(0, bottom * 1.08);
  const [yLow, yHigh] = yKind === "log" ? [roundOut(bottom * 0.7, false), roundOut(top * 1.5, true)]
    : [from, highest > limit ? top : curve.above_zero ? top + room : top * 1.08];
  const yName = curve.lines[0].y, percents = c.computed.get(yName)?.percent;
  const yAxis = axis(yKind, yLow, yHigh, box.height, 30, percents ? "%" : c.units[yName], points[0]?.[1]);
  box.left = Math.max(46, Math.ceil(Math.max(...yAxis.ticks.map((t) => yAxis.text(t).length)) * WIDE) + 9);
  const margin = curve.beside ? Math.ceil(Math.max(...lines.map((l) => l.label.length)) * WIDE) + 22 : 16; // the strong label is wider
  box.width = width - box.left - margin;
  const xAxis = axis(xKind, low, high, box.width, 44, c.units[curve.x]);
  const X = (v) => Math.round((box.left + xAxis.place(v)) * 10) / 10;
  const Y = (v) => Math.round((box.top + box.height - yAxis.place(v)) * 10) / 10;
  for (const l of lines) l.px = l.points.map(([x, y]) => [X(x), Y(y)]);
  const dotted = dots.map(([x, y]) => [X(x), Y(y)]);
  const right = box.left + box.width, base = box.top + box.height, out = [];
  const line = (x1, y1, x2, y2, cls) => out.push(`<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" class="${cls}"/>`);
  const write = (x, y, anchor, text, cls, more = "") =>
    out.push(`<text x="${x}" y="${y}" text-anchor="${anchor}" class="${cls}"${more}>${escaped(text)}</text>`);
  for (const t of xAxis.minor) line(X(t), base, X(t), base + 3, "axis");
  for (const t of yAxis.minor) line(box.left - 3, Y(t), box.left, Y(t), "axis");
  for (const t of xAxis.ticks) {
    line(X(t), box.top, X(t), base, "grid");
    const text = xAxis.text(t), over = X(t) + (text.length * WIDE) / 2 - width;
    if (over > -2) write(width - 2, base + 16, "end", text, "tick");
    else write(X(t), base + 16, "middle", text, "tick");
  }
  for (const t of yAxis.ticks) {
    line(box.left, Y(t), right, Y(t), "grid");
    write(box.left - 7, Y(t) + 4, "end", yAxis.text(t), "tick");
  }
  line(box.left, base, right, base, "axis");
  line(box.left, box.top, box.left, base, "axis");
  function titled(name, given, { unit, counts }) {
    const text = given || c.computed.get(name)?.label || c.table.get(name)?.label || name;
    return counts && text.toLowerCase().includes(counts) ? text : text + unit;
  }
  write(right, height - 6, "end", titled(curve.x, curve.x_label, xAxis), "title");
  write(2, 13, "start", titled(yName, curve.y_label, yAxis), "title");
  out.push(`<clipPath id="${id}-clip"><rect x="${box.left}" y="${box.top}" width="${box.width}" height="${box.height}"/></clipPath>`);
  for (const m of marks) {
    const x = X(values[m.x]), text = filled(m.label, result.text), wide = text.length * WIDE + 8;
    if (x < box.left || x > right) continue;
    line(x, m.y && values[m.y] !== null ? Y(values[m.y]) : box.top, x, base, "mark");
    // right or left of the line, at the foot or higher, where no dot is in the way
    const spots = [7, 23, 39].flatMap((up) => [[x, base - up, 1], [x - wide, base - up, 0]]).filter(([from]) => from > box.left && from + wide < right);
    const clear = spots.find(([from, y]) => !dotted.some(([a, b]) => a > from - 8 && a < from + wide + 8 && Math.abs(b - y + 4) < 14)) ?? spots[0];
    if (clear) write(x + (clear[2] ? 5 : -5), clear[1], clear[2] ? "start" : "end", text, "halo");
  }
  const path = (l) => "M" + l.px.map((p) => p.join()).join("L");
  let plainLines = 0;
  for (const l of lines) l.cls = l.faint ? "faint" : `line line-${plainLines++ % 4}`;
  const strokes = (some) => {
    const paths = some.filter((l) => l.points.length).map((l) => `<path d="${path(l)}" class="${l.cls}"/>`);
    out.push(`<g clip-path="url(#${id}-clip)">`, ...paths, "</g>");
  };
  strokes(lines.filter((l) => l.faint));
  // labels over the lines' right ends; where a label, a line or a dot is in the way, under it or further left
  const faintLabels = [], labels = []; // the strong lines lie over the labels of the faint ones
  const placed = [], near = (x, y, wide, high) => dotted.some(([a, b]) => Math.abs(a - x) < wide && Math.abs(b - y) < high);
  if (curve.beside) {
    const named = lines.filter((l) => l.label && l.points.length).map((l) => ({ l, end: Math.max(box.top, Math.min(base, l.px.at(-1)[1])) }));
    named.sort((a, b) => a.end - b.end);
    apart(named.map(({ end }) => end), 13, box.top, base).forEach((y, i) => {
      const { l, end } = named[i];
      line(right, end, right + 8, y.toFixed(1), "axis");
      labels.push([right + 11, (y + 4).toFixed(1), "start", l.label, l.faint ? "halo" : `halo strong ${l.cls}`]);
    });
  }
  for (const l of curve.beside ? [] : lines) {
    if (!l.label || !l.points.length) continue;
    const wide = l.label.length * WIDE, spots = [];
    for (let x = right - 3; x - wide > box.left + box.width * 0.4; x -= 16) {
      const under = l.px.filter(([a]) => a >= x - wide - 9 && a <= x + 9).map(([, b]) => b);
      if (!under.length) continue;
      const high = Math.min(...under), level = Math.max(...under) - high < 3;
      spots.push({ x, y: Math.round(high) - 5, wide, level }, ...(level ? [{ x, y: Math.round(high) + 13, wide, level }] : []));
    }
    const struck = (s) => lines.some((o) => o !== l && !o.faint && o.px.some(([a, b]) => a > s.x - wide - 4 && a < s.x + 4 && Math.abs(b - s.y + 4) < 9));
    const free = spots.filter((s) => s.y > box.top - 3 && s.y < base && !struck(s) && !placed.some((p) => Math.abs(p.y - s.y) < 13 && s.x > p.x - p.wide - 6 && s.x - wide < p.x + 6));
    const clear = free.filter((s) => !near(s.x - wide / 2, s.y - 4, wide / 2 + 8, 11));
    const spot = clear.find((s) => s.level) ?? (l.faint ? null : clear[0]) ?? free.find((s) => s.level) ?? free[0];
    if (!spot) continue;
    placed.push(spot);
    (l.faint ? faintLabels : labels).push([spot.x, spot.y, "end", l.label, l.faint ? "halo" : `halo strong ${l.cls}`]);
  }
  for (const label of faintLabels) write(...label);
  strokes(lines.filter((l) => !l.faint).toReversed());
  for (const label of labels) write(...label);
  const rising = lines[0].px.filter((p, k, all) => k && p[1] < all[k - 1][1] - 0.1);
  if (curve.slope_label && rising.length > 9) {
    const [from, to] = [rising[0], rising.at(-1)], text = filled(curve.slope_label, result.text);
    const angle = Math.atan2(to[1] - from[1], to[0] - from[0]), places = [0.18, 0.34, 0.5, 0.66].flatMap((t) => [[t, -10], [t, 13]]);
    const spots = places.map(([t, off]) => [from[0] + (to[0] - from[0]) * t, from[1] + (to[1] - from[1]) * t, off]);
    const [x, y, off] = spots.find(([a, b, o]) => !near(a - o * Math.sin(angle), b + o * Math.cos(angle), 30, 24)) ?? spots[0];
    const turn = `rotate(${((angle * 180) / Math.PI).toFixed(1)} ${x.toFixed(1)} ${y.toFixed(1)})`;
    write(x.toFixed(1), y.toFixed(1), "middle", text, "halo", ` dy="${off + 4}" transform="${turn}"`);
  }
  runs.forEach((run) => {
    for (const [x, y, title] of run.points)
      out.push(`<circle cx="${X(x)}" cy="${Y(y)}" r="4.5" class="run run-${run.index % 3}"><title>${escaped(`${title}: ${show(x, c.units[curve.x])}, ${show(y, c.units[curve.lines[0].y])} (${run.label})`)}</title></circle>`);
  });
  for (const [x, y] of rings) out.push(`<circle cx="${X(x)}" cy="${Y(y)}" r="6" class="ring"/>`);
  for (const [x, y] of points) {
    line(X(x), Y(y), X(x), base, "drop");
    out.push(`<circle cx="${X(x)}" cy="${Y(y)}" r="6" class="here"/>`);
  }
  return { svg: `<svg viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" aria-hidden="true" focusable="false">${out.join("")}</svg>`, height };
}

const BAR = { top: 20, text: 17, high: 24, gap: 11 }; // of a stack, in px; markup.py reserves the same height

function drawStack(c, result, width, id) {
  const all = bars(c, result.state), named = all.length > 1, same = all.every((b) => b.capacity === all[0].capacity), unit = c.units[c.stack.parts[0].name], out = [];
  const block = BAR.high + BAR.gap + (named ? BAR.text : 0), height = BAR.top + all.length * block;
  const most = Math.max(...all.flatMap((b) => [b.total, b.capacity]).filter((v) => v !== null && Number.isFinite(v)), 0);
  const X = (v) => Math.round(Math.min(v / (most || 1), 1) * (width - 2) * 10) / 10;
  const write = (x, y, anchor, text, cls) => out.push(`<text x="${x}" y="${y}" text-anchor="${anchor}" class="${cls}">${escaped(text)}</text>`);
  const rect = (x, y, wide, cls, inner = "") => out.push(`<rect x="${x}" y="${y}" width="${wide}" height="${BAR.high}" class="${cls}">${inner}</rect>`);
  out.push(`<pattern id="${id}-over" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><line x1="0" y1="0" x2="0" y2="7" class="hatch"/></pattern>`);
  all.forEach(({ option, chosen, parts, total, capacity }, row) => {
    const y = BAR.top + row * block + (named ? BAR.text : 0);
    if (named) {
      write(0, y - 5, "start", (chosen ? "▸ " : "") + option.label, chosen ? "title strong" : "title");
      const of = same || capacity === null ? "" : ` of ${show(capacity, unit)}`;
      write(width, y - 5, "end", total === null ? "—" : show(total, unit) + of, chosen ? "title strong" : "title");
    }
    let sum = 0;
    parts.forEach((part, i) => {
      if (!(part > 0) || !(most > 0)) return;
      const from = X(sum), wide = Math.max(X((sum += part)) - from, 0.5), { label } = c.stack.parts[i];
      rect(from, y, wide, `part part-${i % 6}${chosen ? "" : " faded"}`, `<title>${escaped(`${label}: ${show(part, unit)}`)}</title>`);
      const within = capacity === null ? wide : Math.min(from + wide, X(capacity)) - from; // no text on the hatching
      if (label.length * WIDE + 10 < within) write((from + within / 2).toFixed(1), y + BAR.high / 2 + 4, "middle", label, "in");
    });
    if (capacity === null) return;
    const x = X(capacity);
    if (total > capacity) out.push(`<rect x="${x}" y="${y}" width="${X(total) - x}" height="${BAR.high}" class="over" fill="url(#${id}-over)"/>`);
    else out.push(`<rect x="0.5" y="${y + 0.5}" width="${Math.max(x - 0.5, 0)}" height="${BAR.high - 1}" class="room"/>`);
    out.push(`<line x1="${x}" y1="${y - 4}" x2="${x}" y2="${y + BAR.high + 4}" class="limit"/>`);
  });
  const { capacity } = all[0];
  if (same && capacity !== null) {
    const text = `${c.stack.capacity.label}: ${show(capacity, unit)}`, half = (text.length * WIDE) / 2, x = X(capacity);
    if (x + half > width) write(width, 12, "end", text, "title");
    else write(Math.max(x, half), 12, "middle", text, "title");
  }
  return { svg: `<svg viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" aria-hidden="true" focusable="false">${out.join("")}</svg>`, height };
}

// ---- the document ----------------------------------------------------------------------------------------------

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== "") node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// Mount a calculator in `root`. `host` has: state (inputs at first), changed(name, value), save(result) -> Promise of
// a sentence, source, and link(fragment) -> address or null where links make no sense. Returns {set, state, destroy}.
function mount(root, spec, host) {
  const c = compile(spec), id = root.id, defaults = Object.fromEntries(c.inputs.map((i) => [i.name, i.default]));
  const initial = { ...defaults, ...host.state }, rows = new Map(), outputs = new Map(), headings = new Map(), shared = c.inputs.filter((i) => i.shared);
  const limited = []; // choices of which some options cannot be chosen in every state, each with its element
  let state = { ...initial }, result, quiet;
  const runs = (c.curve?.runs ?? []).map((run, index) => ({ ...run, index, on: run.option ? state[run.option[0]] === run.option[1] : false }));

  const status = element("p", { class: "calc-status", role: "status" });
  const manual = element("textarea", { class: "calc-manual", readonly: true, hidden: true, rows: 8, "aria-label": "Text to copy" });
  const say = (text, bad) => {
    status.textContent = text;
    status.classList.toggle("calc-bad", !!bad);
  };

  function change(name, value, from) {
    if (state[name] === value) return;
    state = { ...state, [name]: value };
    for (const run of runs) if (run.option?.[0] === name) run.on = run.option[1] === value;
    if (from !== "outside") host.changed(name, value);
    if (from !== "shared" && shared.some((i) => i.name === name) && linked.checked)
      document.dispatchEvent(new CustomEvent("efflab-shared", { detail: { name, value, from: root } }));
    update();
  }

  function row(input) {
    const key = `${id}-${input.name}`, error = element("p", { class: "calc-error", id: `${key}-error`, role: "alert", hidden: true });
    const label = element("label", { for: key }, input.label);
    if (input.help) label.append(" ", element("small", {}, input.help));
    const long = input.kind === "slider" && ((input.help ?? "").length > 30 || [input.high, input.default].some((v) => unsaid(show(v, input.unit), input.unit, input.label).length > 10));
    const node = element("div", { class: long ? "calc-row calc-long" : "calc-row" }, label);
    if (input.kind === "number") {
      const field = element("input", { type: "text", id: key, class: "calc-typed", autocomplete: "off", autocapitalize: "off", spellcheck: "false",
        oninput: () => take(input, field, error, true), onchange: () => take(input, field, error) });
      node.append(field, error);
      rows.set(input.name, { node, mend: () => mend(input, field, error), show: () => {
        if (document.activeElement !== field && !field.hasAttribute("aria-invalid")) field.value = state[input.name];
      } });
      return node;
    }
    if (input.kind === "choice") {
      const select = element("select", { id: key, onchange: () => change(input.name, select.value) });
      const groups = new Map();
      for (const o of input.options) {
        if (o.group && !groups.has(o.group)) {
          groups.set(o.group, element("optgroup", { label: o.group }));
          select.append(groups.get(o.group));
        }
        (groups.get(o.group) ?? select).append(element("option", { value: o.name }, o.label));
      }
      if (input.only_found) limited.push([input, select]);
      node.append(select);
      rows.set(input.name, { node, show: () => { select.value = state[input.name]; } });
      return node;
    }
    const stops = input.stops;
    const range = element("input", { type: "range", id: key, min: 0, max: stops.length - 1, step: 1,
      oninput: () => { mend(input, field, error); change(input.name, stops[range.value]); } });
    const field = element("input", { type: "text", class: "calc-value", inputmode: "text", autocomplete: "off", spellcheck: "false",
      "aria-label": `${input.label}, exact value`, onchange: () => { if (take(input, field, error)) display(); } });
    function display() {
      const value = state[input.name];
      const text = input.integer && value < 1e15 ? group(String(value)) : unsaid(show(value, input.unit), input.unit, input.label);
      let nearest = 0;
      stops.forEach((s, i) => { if (Math.abs(s - value) < Math.abs(stops[nearest] - value)) nearest = i; });
      range.value = nearest;
      range.setAttribute("aria-valuetext", text);
      if (!field.hasAttribute("aria-invalid")) field.value = text;
    }
    node.append(field, range, error);
    rows.set(input.name, { node, show: display, mend: () => mend(input, field, error) });
    return node;
  }
  function mend(input, field, error) {
    rows.get(input.name).last = undefined;
    error.hidden = true;
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-describedby");
    doubt();
  }
  function take(input, field, error, quietly) { // what was typed; quietly: while it is typed, when it may be unfinished
    try {
      const value = accept(c, input, field.value, input.label);
      mend(input, field, error);
      change(input.name, value);
      return true;
    } catch (problem) {
      if (quietly) return false;
      error.textContent = problem.message;
      error.hidden = false;
      field.setAttribute("aria-invalid", "true");
      field.setAttribute("aria-describedby", error.id);
      doubt();
      return false;
    }
  }
  function doubt() { // while an input is refused, what is shown belongs to the inputs before
    const stale = !!root.querySelector("[aria-invalid]");
    root.classList.toggle("calc-stale", stale);
    staleNote.hidden = !stale;
  }
  function heading(input) { // over the first input of a group
    if (!input.group || headings.has(input.group)) return [];
    const node = element("p", { class: "calc-group" }, input.group);
    headings.set(input.group, { node, names: c.inputs.filter((i) => i.group === input.group).map((i) => i.name) });
    return [node];
  }

  const verdict = element("p", { class: "calc-verdict", "aria-atomic": "true" });
  const offer = element("button", { type: "button", class: "calc-offer", onclick: () => {
    const { name, value } = result.offer;
    change(name, value);
    rows.get(name).node.querySelector("select").focus();
  } });
  const staleNote = element("p", { class: "calc-stale-note", hidden: true }, "Not yet with the number that was refused: these results are of the inputs before it.");
  const list = element("dl"), live = element("div", { class: "calc-results", "aria-live": "polite" }, staleNote, list, verdict);
  for (const o of c.shown) {
    const dd = element("dd");
    outputs.set(o.name, dd);
    list.append(element("div", { "aria-atomic": "true", class: o.exact ? "calc-exact" : "" }, element("dt", {}, o.label), dd));
  }
  const bitsBox = element("div", { class: "calc-bits", role: "img" });
  const stackPlot = element("div", { class: "calc-plot", role: "img" }), amounts = element("tbody");
  const stack = element("div", { class: "calc-stack" }, stackPlot,
    element("table", {}, ...(c.stack?.label ? [element("caption", {}, c.stack.label)] : []), amounts));
  const compare = element("div", { class: "calc-compare", role: "region", tabindex: 0, "aria-label": c.compare?.label ?? "" });
  const cells = new Map();
  if (c.compare) {
    const choice = c.table.get(c.compare.vary), body = element("tbody");
    const head = element("tr", {}, ...[choice.label, ...c.compare.columns.map((o) => headOf(c, o))].map((t) => element("th", { scope: "col" }, t)));
    for (const o of choice.options) {
      const pick = element("button", { type: "button", class: "calc-pick", onclick: () => change(choice.name, o.name) }, o.label);
      const tds = c.compare.columns.map(() => element("td")), tr = element("tr", {}, element("th", { scope: "row" }, pick), ...tds);
      cells.set(o.name, { tr, pick, tds });
      body.append(tr);
    }
    compare.append(element("table", {}, element("caption", {}, c.compare.label), element("thead", {}, head), body));
  }
  const plot = element("div", { class: "calc-plot", role: "img" });
  const legend = element("ul", { class: "calc-legend" });
  if (c.curve?.at.length) legend.append(element("li", {}, element("span", { class: "calc-key here" }), c.curve.at_label));
  for (const run of runs) {
    run.box = element("input", { type: "checkbox", onchange: () => { run.on = run.box.checked; update(); } });
    run.other = element("span", {});
    const key = element("span", { class: `calc-key run-${run.index % 3}` });
    legend.append(element("li", {}, element("label", {}, run.box, key, element("span", {}, `measured: ${run.label}`, run.other))));
  }

  async function copy(text, done) {
    manual.hidden = true;
    try {
      await navigator.clipboard.writeText(text);
      say(done);
    } catch {
      manual.value = text;
      manual.hidden = false;
      say("The browser did not allow copying. Copy the text below by hand.", true);
      manual.focus();
      manual.select();
    }
  }
  const button = (text, act) => element("button", { type: "button", onclick: act }, text);
  const actions = element("div", { class: "calc-actions" }, button("Reset", () => {
    for (const r of rows.values()) r.mend?.();
    manual.hidden = true;
    for (const name of Object.keys(initial)) change(name, initial[name]);
    update();
    say("Every input is back to its first value.");
  }));
  if (host.link) actions.append(button("Share", () => copy(host.link(fragment(id, result)), "Link copied. It opens this page with these inputs.")));
  actions.append(button("Copy as Python", () => copy(python(c, result), "Python copied.")));
  actions.append(button("Save as prediction", async () => {
    try {
      say(await host.save(c, result));
    } catch (error) {
      say(error.message, true);
    }
  }));
  const linked = element("input", { type: "checkbox", onchange: () => {
    document.dispatchEvent(new CustomEvent("efflab-linked", { detail: { on: linked.checked } }));
    if (linked.checked)
      for (const i of shared) document.dispatchEvent(new CustomEvent("efflab-shared", { detail: { name: i.name, value: state[i.name], from: root } }));
  } });
  const linkLabel = element("label", { class: "calc-link", hidden: true }, linked,
    `Same ${shared.map((i) => i.label.toLowerCase()).join(", ").replace(/, (?=[^,]*$)/, " and ")} in all calculators of this page`);
  actions.append(linkLabel);
  const listeners = {
    "efflab-linked": (event) => { linked.checked = event.detail.on; },
    "efflab-shared": (event) => {
      const { name, value, from } = event.detail, input = shared.find((i) => i.name === name);
      if (from !== root && linked.checked && input?.table.has(value)) change(name, value, "shared");
    },
    "efflab-mounted": () => {
      const others = [...document.querySelectorAll(".efflab-calculator[data-shares]")].filter((o) => o !== root);
      linkLabel.hidden = !shared.some((i) => others.some((o) => o.dataset.shares.split(" ").includes(i.name)));
    },
  };
  for (const [name, listener] of Object.entries(listeners)) document.addEventListener(name, listener);
  if (shared.length) root.dataset.shares = shared.map((i) => i.name).join(" ");

  const title = element("p", { class: "calc-title", id: `${id}-title` }, c.title);
  const parts = [title, element("p", { class: "calc-intro" }, c.intro),
    element("div", { class: c.curve || c.stack ? "calc-body calc-wide" : "calc-body" },
      element("div", { class: "calc-inputs" }, ...c.inputs.flatMap((i) => [...heading(i), row(i)])),
      element("div", { class: "calc-main" }, ...(c.bits ? [bitsBox] : []), ...(c.stack ? [stack] : []),
        ...(c.curve ? [element("div", { class: "calc-figure" }, plot, legend)] : []), live, ...(c.compare ? [compare] : []))),
    actions, status, manual, element("p", { class: "calc-note" }, c.note)];
  root.setAttribute("role", "group");
  root.setAttribute("aria-labelledby", `${id}-title`);
  root.replaceChildren(...parts.filter((p) => !p.matches(".calc-intro:empty, .calc-note:empty")));
  // JupyterLab and some themes take arrow keys from sliders
  root.addEventListener("keydown", (event) => event.stopPropagation());

  const memo = new Map();
  function redraw() {
    const width = Math.floor((c.curve ? plot : stackPlot).clientWidth);
    if (width < 100) return;
    if (c.curve) plot.innerHTML = draw(c, result, width, runs.filter((r) => r.on), id, memo).svg;
    if (c.stack) stackPlot.innerHTML = drawStack(c, result, width, id).svg;
  }
  function redrawStack() {
    const rows = listed(c, state), part = rows.filter(([kind]) => kind === "part").length, none = show(0, c.units[c.stack.parts[0].name]);
    amounts.replaceChildren(...rows.map(([kind, label, amount, share], i) => element("tr", { class: `calc-${kind}`, hidden: kind === "part" && amount === none },
      element("th", { scope: "row" }, element("span", { class: i < part ? `calc-key part-${i % 6}` : "calc-key none" }), label),
      element("td", {}, amount), element("td", {}, share))));
    stackPlot.setAttribute("aria-label", result.problem ?? filled(c.stack.describe, result.text));
  }
  function redrawBits() {
    const found = bits(c, state), names = ["sign", "exponent", "mantissa"];
    const text = found ? `${names.map((n) => found[n] && `${n} ${found[n]}`).filter(Boolean).join(", ")}: ${found.meaning}` : "";
    if (bitsBox.getAttribute("aria-label") === text) return;
    bitsBox.setAttribute("aria-label", text || "No bits.");
    bitsBox.replaceChildren(element("p", { class: "calc-bits-title" }, c.bits.label), ...names.filter((n) => found?.[n]).map((n) =>
      element("span", { class: `calc-field ${n}` }, element("span", { class: "calc-cells" }, ...Array.from(found[n], (b) => element("b", {}, b))), element("small", {}, n))),
      element("p", { class: "calc-meaning" }, found?.meaning ?? "The format has no such number."));
  }
  function redrawTable() {
    const found = compared(c, state), names = new Set(found.map(({ option }) => option.name));
    for (const [name, { tr }] of cells) tr.hidden = !names.has(name);
    for (const { option, chosen, values, state: all } of found) {
      const { tr, pick, tds } = cells.get(option.name);
      tr.classList.toggle("calc-chosen-row", chosen);
      pick.setAttribute("aria-pressed", chosen);
      tds.forEach((td, i) => put(td, cellOf(c, all, c.compare.columns[i].name, values[i])));
    }
  }
  const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  function update() {
    result = evaluate(c, state);
    for (const [name, r] of rows) {
      const hidden = !result.relevant.includes(name);
      if (r.node.hidden !== hidden) r.node.hidden = hidden;
      if (hidden || r.last === state[name]) continue;
      r.show();
      r.last = state[name];
    }
    for (const [input, select] of limited) {
      const not = refused(c, state, input);
      for (const option of select.options) option.disabled = not(option.value);
    }
    // assistive technology waits until the inputs rest
    live.setAttribute("aria-busy", "true");
    clearTimeout(quiet);
    quiet = setTimeout(() => live.setAttribute("aria-busy", "false"), 400);
    for (const { node, names } of headings.values()) node.hidden = !names.some((n) => result.relevant.includes(n));
    for (const [name, dd] of outputs) {
      const [first, exactly] = writtenOut(c, state, name, result.values[name]);
      if (dd.textContent === first + (exactly && ` ${exactly}`)) continue;
      dd.replaceChildren(first, ...(exactly ? [" ", element("small", {}, exactly)] : []));
    }
    put(verdict, result.verdict);
    verdict.classList.toggle("calc-bad", !!result.problem);
    if (result.offer) put(offer, `Use ${result.offer.label}`);
    if (!result.offer) offer.remove();
    else if (!offer.isConnected) live.append(offer);
    for (const run of runs) {
      run.box.checked = run.on;
      put(run.other, otherDevice(run, state));
    }
    if (c.curve) {
      const on = runs.filter((r) => r.on).map((r) => r.label);
      const also = on.length ? ` Measured points shown: ${on.join("; ")}.` : "";
      plot.setAttribute("aria-label", (result.problem ?? filled(c.curve.describe, result.text)) + also);
    }
    if (c.stack) redrawStack();
    if (c.bits) redrawBits();
    if (c.compare) redrawTable();
    if (c.curve || c.stack) redraw();
  }
  update();
  const watch = (c.curve || c.stack) && new ResizeObserver(redraw);
  watch?.observe(c.curve ? plot : stackPlot);
  document.dispatchEvent(new CustomEvent("efflab-mounted"));
  root.dataset.ready = "true";

  return {
    state: () => state,
    set: (name, value) => {
      rows.get(name).mend?.();
      change(name, value, "outside");
    },
    restore: (query) => {
      const found = restored(c, query);
      for (const r of rows.values()) r.mend?.();
      for (const [name, value] of Object.entries({ ...initial, ...found.state })) change(name, value);
      say(found.problems.length ? `The link was not understood in full. ${found.problems.join(" ")} Kept at first values.` : "", true);
    },
    destroy: () => {
      watch?.disconnect();
      clearTimeout(quiet);
      for (const [name, listener] of Object.entries(listeners)) document.removeEventListener(name, listener);
    },
  };
}
