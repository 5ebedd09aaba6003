// Numbers of binary formats, written exactly and as bits, as binary.py does. efflabUnits comes before this text; the
// value of the whole is {exact, fields, BRIEF}.

const { raised, group } = efflabUnits;
const LONGEST = 60, BRIEF = 12; // significant digits that are written out

function parts(value) { // an odd whole number and a power of two, of a positive number
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, value);
  const bits = view.getBigUint64(0), field = Number(bits >> 52n), low = bits & (2n ** 52n - 1n);
  let whole = field ? low | (2n ** 52n) : low, power = Math.max(field, 1) - 1075;
  for (; whole % 2n === 0n; whole /= 2n) power++;
  return [whole, power];
}

const plain = (exponent) => exponent >= -7 && exponent <= 20; // no power of ten

function decimal(digits, exponent, more = "") { // digits with their point
  if (!plain(exponent))
    return digits[0] + (digits.length > 1 ? "." + digits.slice(1) : "") + `${more} × 10${raised(exponent)}`;
  if (exponent < 0) return "0." + "0".repeat(-exponent - 1) + digits + more;
  const all = digits.padEnd(exponent + 1, "0"), rest = all.slice(exponent + 1);
  return group(all.slice(0, exponent + 1)) + (rest && "." + rest) + more;
}

function roundedDigits(value, count) {
  const [mantissa, exponent] = value.toExponential(count - 1).split("e");
  return [mantissa.replace(".", ""), Number(exponent)];
}

function exact(value, brief) {
  if (Number.isNaN(value)) return "NaN";
  const sign = value < 0 || Object.is(value, -0) ? "−" : "";
  if (value === 0) return sign + "0";
  value = Math.abs(value);
  if (value === Infinity) return sign + "∞";
  const [whole, power] = parts(value), all = String(power < 0 ? whole * 5n ** BigInt(-power) : whole << BigInt(power));
  const exponent = all.length - 1 + Math.min(power, 0), digits = all.replace(/0+$/, "");
  if (digits.length <= (brief ? BRIEF : LONGEST)) return sign + decimal(digits, exponent);
  if (brief) return sign + decimal(...roundedDigits(value, plain(exponent) ? 9 : 6), "…");
  const product = (whole > 1n ? group(String(whole)) + " × " : "") + "2" + raised(power);
  return `${sign}${product} ≈ ${sign}${decimal(...roundedDigits(value, 17))}`;
}

function fields(value, exponentBits, mantissaBits, flavour) { // null where the format has no such number
  const bias = 2 ** (exponentBits - 1) - (flavour === "fnuz" ? 0 : 1), ones = 2 ** exponentBits - 1, full = 2 ** mantissaBits;
  const bits = (n, width) => (width ? n.toString(2).padStart(width, "0") : "");
  const made = (sign, exponent, mantissa, meaning) =>
    ({ sign: flavour === "scale" ? "" : String(sign), exponent: bits(exponent, exponentBits), mantissa: bits(mantissa, mantissaBits), meaning });
  if (Number.isNaN(value)) {
    if (flavour === "ieee") return made(0, ones, full / 2, "exponent all ones, mantissa not zero: NaN");
    if (flavour === "fn" || flavour === "scale") return made(0, ones, full - 1, "all ones: NaN");
    return flavour === "fnuz" ? made(1, 0, 0, "the place of −0: NaN") : null;
  }
  const sign = value < 0 || Object.is(value, -0) ? 1 : 0, minus = sign ? "−" : "", size = Math.abs(value);
  if (size === Infinity)
    return flavour === "ieee" ? made(sign, ones, 0, `exponent all ones, mantissa zero: ${minus}∞`) : null;
  if (size === 0 && flavour !== "scale") return flavour === "fnuz" ? made(0, 0, 0, "0") : made(sign, 0, 0, `${minus}0`);
  if (flavour === "scale" && !(value > 0)) return null;
  const lowest = 1 - bias, [whole, power] = parts(size), exponent = whole.toString(2).length - 1 + power;
  if (flavour === "scale") return whole > 1n || exponent < -bias || exponent >= ones - bias ? null : made(0, exponent + bias, 0, "2" + raised(exponent));
  const subnormal = exponent < lowest, least = Math.max(exponent, lowest), shift = power + mantissaBits - least;
  if (shift < 0) return null;
  const scaled = Number(whole) * 2 ** shift, field = subnormal ? 0 : exponent + bias, mantissa = scaled - (subnormal ? 0 : full);
  if (field > (flavour === "ieee" ? ones - 1 : ones) || (flavour === "fn" && field === ones && mantissa === full - 1)) return null;
  const share = group(String(mantissa)) + "/" + (mantissaBits <= 10 ? group(String(full)) : "2" + raised(mantissaBits));
  const meaning = subnormal ? ` × ${share}, subnormal` : mantissa ? ` × (1 + ${share})` : "";
  return made(sign, field, mantissa, `${minus}2${raised(least)}${meaning}`);
}
