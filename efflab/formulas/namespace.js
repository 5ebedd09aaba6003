// The functions of namespace.py that JavaScript lacks. Each is exact: no logarithm, no power of a rounded exponent.

function exponent_of(x) {
  const size = Math.abs(x);
  if (size === 0) return -Infinity;
  if (!(size < Infinity)) return size;
  if (size < 2.2250738585072014e-308) return exponent_of(size * 18014398509481984) - 54;
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, size);
  return (view.getUint32(0) >>> 20) - 1023;
}

function power_of_two(exponent) {
  const whole = Math.floor(exponent);
  if (!(Math.abs(whole) < 1100)) return whole > 0 ? Infinity : whole < 0 ? 0 : NaN;
  let result = whole === exponent ? 1 : Math.pow(2, exponent - whole);
  let factor = whole < 0 ? 0.5 : 2;
  for (let n = Math.abs(whole); n; n >>= 1) {
    if (n & 1) result *= factor;
    factor *= factor;
  }
  return result;
}

function round_half_even(x) {
  const size = Math.abs(x);
  if (!(size < 4503599627370496)) return x;
  const below = Math.floor(size);
  const rest = size - below;
  const whole = rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below;
  return x < 0 || Object.is(x, -0) ? -whole : whole;
}

function copy_sign(size, sign) {
  return sign < 0 || Object.is(sign, -0) ? -Math.abs(size) : Math.abs(size);
}

function magnitude(x) {
  return Math.abs(x);
}

function floor(x) {
  return Math.floor(x);
}

function nearest_multiple(x, step) {
  return round_half_even(x / step) * step;
}

function if_above(left, right, then, otherwise) {
  return left > right ? then : otherwise;
}

function capped(x, limit, beyond) {
  return x > limit ? beyond : x;
}

function unsigned_zero(x) {
  return x + 0;
}

function size_class(size, lowest, largest) {
  return size !== size ? 4 : size > largest ? 3 : size >= lowest ? 2 : size > 0 ? 1 : 0;
}
