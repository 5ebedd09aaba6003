// Quantities in the browser, written and read as efflab.units does. `UNITS` comes before this text: for each unit's
// symbol its accepted spellings by factor (of a count: the names after COUNT_WORDS), the prefixes it is shown with, an example, what it
// measures, whether it is of bytes or of things counted, the unit it is shown in, a larger one and from how many of it on it is shown, and the digits. The value of the whole is {UNITS, FACTORS, show, parse, real, significant, group, raised, quoted}.

for (const unit of Object.values(UNITS)) {
  unit.accepted = Object.fromEntries(unit.accepted.flatMap(([factor, names]) => names.split(";").map((n) => [n, factor])));
  const [names, size] = unit.names;
  for (const name of names)
    for (const [prefix, factor] of Object.entries(COUNT_WORDS))
      for (const gap of prefix && name ? ["", " "] : [""]) unit.accepted[prefix + gap + name] = factor * size;
}

const COUNTS = { "": 1, k: 1e3, M: 1e6, B: 1e9, T: 1e12 };
const FACTORS = { f: 1e-15, p: 1e-12, n: 1e-9, µ: 1e-6, m: 1e-3, "": 1, k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15, E: 1e18, Z: 1e21 };
const YEAR = 365.25 * 86400;
const LONG_TIMES = [["min", 60, 7200], ["h", 3600, 172800], ["d", 86400, 2 * YEAR]];
const RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹";

const group = (text) => {
  const [whole, rest] = text.split(".");
  return whole.replace(/\B(?=(\d{3})+$)/g, ",") + (rest ? "." + rest : "");
};

function significant(value, count = 3) { // toExponential rounds halves up, as Python's decimal does there
  if (value === 0) return "0";
  const [mantissa, power] = value.toExponential(count - 1).split("e");
  const digits = mantissa.replace(".", ""), e = Number(power);
  if (e >= count - 1) return digits + "0".repeat(e - count + 1);
  const text = e < 0 ? "0." + "0".repeat(-e - 1) + digits : digits.slice(0, e + 1) + "." + digits.slice(e + 1);
  return text.replace(/\.?0+$/, "");
}

const raised = (e) => (e < 0 ? "⁻" : "") + String(Math.abs(e)).replace(/\d/g, (d) => RAISED[d]);

function scientific(value, count) {
  const [mantissa, power] = value.toExponential(count - 1).split("e");
  return mantissa.replace(/\.?0+$/, "") + " × 10" + raised(Number(power));
}

function plain(value, count = 3) {
  if (Number.isInteger(value) && value < 1e6) return group(String(value));
  return value >= 0.001 && value < 999999.5 ? group(significant(value, count)) : scientific(value, count);
}

function show(value, symbol) { // a number in base units as text
  if (Number.isNaN(value)) return "not a number";
  if (!Number.isFinite(value)) return (value < 0 ? "−" : "") + "infinite";
  const { prefixes, counted, digits, beyond, shown: [name, size] } = UNITS[symbol];
  const sign = value < 0 ? "−" : "", tail = name ? " " + name : "", factors = counted ? COUNTS : FACTORS;
  value = Math.abs(value) / size;
  if (value === 0) return "0" + tail;
  if (beyond && value >= beyond[2] * beyond[1] * (1 - 1e-9)) return sign + plain(value / beyond[1], digits) + " " + beyond[0];
  if (symbol === "s" && value >= 120) {
    const long = LONG_TIMES.find((t) => value < t[2]);
    return sign + (long ? group(significant(value / long[1])) + " " + long[0] : plain(value / YEAR) + " years");
  }
  if (prefixes.length === 1) return sign + plain(value, digits) + tail;
  const rounded = Number(significant(value, digits));
  const best = prefixes.filter((p) => rounded >= factors[p] * (1 - 1e-9)).pop() ?? prefixes[0];
  const scaled = value / factors[best];
  if (scaled >= (best && best === prefixes.at(-1) ? 999.5 : 99999.5) || scaled < 0.001) return sign + scientific(value, digits) + tail;
  if (counted) return sign + (best ? group(significant(scaled, digits)) : plain(scaled, digits)) + best + tail;
  return sign + group(significant(scaled, digits)) + " " + best + name;
}

const EXPONENT = "([+\\-−]?[0-9]+|[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)";
const QUANTITY = new RegExp(
  "^\\s*([+\\-−]?(?:[0-9][0-9,_]*\\.?[0-9]*|\\.[0-9]+)(?:[eE][+\\-−]?[0-9]+)?)" +
    `(?:\\s*(?:[×x*·]|\\\\times)\\s*10\\s*(?:\\^|\\*\\*)?\\s*\\{?${EXPONENT}\\}?)?\\s*(.*?)\\s*$`, "u");
const POWER = /^\s*(2|10)\s*(?:\^|\*\*)\s*([+\-−]?[0-9]{1,3})(?![0-9.])\s*(.*?)\s*$/u;
const FRACTION = /^\s*([+\-−]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*\/\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*$/u;
const lowered = (text) => text.replace(/[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻−]/gu, (c) => "0123456789+--"["⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻−".indexOf(c)]);
const quoted = (text) => text.includes("'") && !text.includes('"')
  ? `"${text.replace(/\\/g, "\\\\")}"` : `'${text.replace(/\\/g, "\\\\").replace(/'/g, "\\'")}'`;

const REAL = new RegExp(
  "^\\s*([+\\-−]?)\\s*(?:(inf|infinity|∞|nan)|(?:([0-9][0-9,_]*\\.?[0-9]*|\\.[0-9]+)\\s*[×x*·]\\s*)?" +
    "2\\s*(?:\\^|\\*\\*)\\s*([+\\-−]?[0-9]{1,4}))\\s*$", "iu");

function real(text) { // any number, as parse(text, REAL) in Python: {value} or {problem}
  const match = REAL.exec(text);
  if (!match) {
    const found = FRACTION.test(text) ? { problem: "unit /" } : parse(text, "");
    if (found.problem?.startsWith("unit ")) found.problem = `${quoted(text)} is not a number. Write it like 0.1, 3e-8, 2^-24, -0, inf or nan.`;
    return found;
  }
  const [, sign, special, times, power] = match, e = power && Number(lowered(power));
  const half = Math.trunc(e / 2), scale = Number((times ?? "1").replace(/[_,]/g, ""));
  const size = special ? (/nan/i.test(special) ? NaN : Infinity)
    : Math.abs(e) < 1000 ? scale * 2 ** e : scale * 2 ** half * 2 ** (e - half);
  return { value: sign && sign !== "+" ? -size : size };
}

// {value} in base units, perhaps infinite; or {problem}: why the text is no such quantity. `named` is the unit to name
function parse(text, symbol, named) {
  const unit = UNITS[symbol], guess = !named || unit.prefixes.length === 1;
  named ||= unit.example;
  const fraction = symbol ? null : FRACTION.exec(text);
  if (fraction) {
    const under = Number(fraction[2]);
    return under ? { value: Number(lowered(fraction[1])) / under } : { problem: `${quoted(text)} divides by zero.` };
  }
  const power = POWER.exec(text), match = power ?? QUANTITY.exec(text);
  if (!match) return { problem: `no number found in ${quoted(text)}. Write it like '3.2${symbol && " " + named}'.` };
  let number;
  if (power) number = power[1] === "2" ? 2 ** Number(lowered(power[2])) : Number("1e" + lowered(power[2]));
  else {
    let digits = lowered(match[1].replaceAll("_", ""));
    if (digits.includes(",") && !/^[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+(\.[0-9]*)?(e[+-]?[0-9]+)?$/i.test(digits))
      return { problem: `the comma in ${quoted(text)} is ambiguous. Write decimals with a point: '3.2', not '3,2'.` };
    digits = digits.replaceAll(",", "");
    if (match[2]) {
      if (/e/i.test(digits)) return { problem: `${quoted(text)} has two exponents. Write 3.14e23 or 3.14×10^23.` };
      digits += "e" + lowered(match[2]);
    }
    number = Number(digits);
  }
  const written = match[3];
  if (Object.hasOwn(unit.accepted, written)) return { value: number * unit.accepted[written] };
  const add = guess ? `Add one, such as '${text.trim()} ${named}'.` : `Add the one that you mean, such as ${named}.`;
  if (!written) return { problem: `${quoted(text)} has no unit. ${add}` };
  if (unit.bytes && /^[kKMGTP]?i?b(it)?s?(\/s|ps)?$/.test(written))
    return { problem: `${quoted(written)} means bits. Write bytes with a capital B: eight bits are one, so that 10 Gbit/s are 1.25 GB/s.` };
  if (unit.bytes && /^[kmgtp]i?b(\/s|ps)?$/i.test(written))
    return { problem: `unit ${quoted(written)} is not spelled as SI does. Write kB, MB, GB, TB or KiB, MiB, GiB, TiB.` };
  const wanted = symbol ? `Write it in ${named}.` : "Write a plain number, such as 4096.";
  return { problem: `unit ${quoted(written)} is not a unit of ${unit.kind}. ${wanted}` };
}
