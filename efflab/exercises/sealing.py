"""Sealing a question for the site, so that the page's source holds neither answers nor feedback.

There is no server. The page carries, for each question, the feedback texts encrypted, and only the token of the
answer that a feedback belongs to opens it:

- choice: the token is the option's letter.
- number: the token names a narrow bucket of logarithmic scale that the answer falls into, with its sign. Every
  bucket that touches a right or a recognised wrong range has an entry, which holds the key of that range's
  feedback. The exact ends of the range are sealed with the feedback, so the verdict does not depend on buckets.
  The range of what is close, which surrounds the right one, has wider buckets of its own and goes last.

Keys come from a salted, repeated SHA-512; the box is NaCl's secretbox, which TweetNaCl opens in the browser.
All feedback of a question is padded to one length, and the entries are filled up with decoys, so that lengths
and counts tell nothing. Salts derive from the question, so that a build is reproducible.

This is a self-test, not proctoring. Whoever wants to can try every option, or every bucket, in a script; the
repetition only makes that slower than thinking. The bank itself is in the open in the repository.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
from collections.abc import Iterator
from typing import Any

from nacl.secret import SecretBox

from efflab.exercises.questions import CLOSE, Choice, Numeric, canonical

ROUNDS = 400  # of SHA-512 per token: a few milliseconds in a browser
STEP = 0.004  # width of a bucket, natural logarithm: 0.4%
SMALLEST = 1e-30  # magnitudes below this fall into the bucket of zero
NEAR_STEP = 0.05  # width of a bucket of what is close
DECADE = math.log(10.0)  # width of the buckets of a range that holds zero
PAD, ENTRIES = 64, 16  # lengths are rounded up to multiples of these
ID, SEED = 6, 16  # bytes


def seal(question: Choice | Numeric) -> dict[str, Any]:
    """What the page carries of a question, ready for JSON: no answer, no feedback in plain.

    Keys: kind, salt, rounds, boxes (base64), and for a number unit, example, step, nearStep, entries
    (base64).
    """
    secret = hashlib.sha512(b"efflab secret\0" + canonical(question).encode()).digest()
    salt = hashlib.sha512(b"efflab salt\0" + canonical(question).encode()).digest()[:12]
    if isinstance(question, Choice):
        texts = [{"right": o.right, "feedback": o.feedback} for o in question.ordered.values()]
        keys = [token_key(salt, letter)[:32] for letter in question.ordered]
        return {"kind": "choice", "salt": _text(salt), "rounds": ROUNDS, "boxes": _boxes(texts, keys)}
    ranges = [(*question.bounds, "right", question.right)]
    ranges += [(*question.misconception_bounds(i), "wrong", m.feedback) for i, m in enumerate(question.misconceptions)]
    if near := question.near_bounds:
        ranges.append((*near, "near", CLOSE))
    # The order of the boxes must not tell which holds the answer.
    ranges.sort(key=lambda r: _derive(secret, f"order {r}"))
    seeds = [_derive(secret, f"seed {i}")[:SEED] for i in range(len(ranges))]
    payloads = [
        {"low": low, "high": high, "right": kind == "right", "near": kind == "near", "feedback": text}
        for low, high, kind, text in ranges
    ]
    entries = []
    for i, (low, high, kind, _) in enumerate(ranges):
        for token in near_tokens(low, high) if kind == "near" else tokens(low, high):
            key = token_key(salt, token)
            # One bucket may open two ranges, so the pad is drawn per box.
            pad = hashlib.sha512(key + bytes([i])).digest()
            entries.append(key[32 : 32 + ID] + bytes(a ^ b for a, b in zip(seeds[i], pad, strict=False)))
    for n in range(-len(entries) % ENTRIES):
        entries.append(_derive(secret, f"decoy {n}")[: ID + SEED])
    return {
        "kind": "numeric",
        "unit": question.unit,
        "example": question.example,
        "salt": _text(salt),
        "rounds": ROUNDS,
        "step": STEP,
        "nearStep": NEAR_STEP,
        "boxes": _boxes(payloads, [hashlib.sha512(s).digest()[:32] for s in seeds]),
        "entries": _text(b"".join(sorted(entries))),
    }


def token_key(salt: bytes, token: str) -> bytes:
    """64 bytes from a salted token by repeated SHA-512: the key of a box, then an entry's id."""
    digest = hashlib.sha512(salt + token.encode()).digest()
    for _ in range(ROUNDS - 1):
        digest = hashlib.sha512(digest + salt).digest()
    return digest


def tokens(low: float, high: float) -> Iterator[str]:
    """The tokens of every bucket that touches [low, high]. The reader's logarithm may differ in the last bit, so a
    bucket that begins within a billionth of an end is included."""
    if low > high:
        raise ValueError(f"empty range {low} to {high}")
    if low <= 0 <= high:
        yield "0"
        for sign, end in (("-", -low), ("+", high)):
            if end >= SMALLEST:
                for n in range(_bucket(SMALLEST, DECADE, -1), _bucket(end, DECADE, 1) + 1):
                    yield f"{sign}d{n}"
        return
    sign, small, large = ("+", low, high) if low > 0 else ("-", -high, -low)
    if small < SMALLEST:
        raise ValueError(f"a range from {low} to {high} is neither zero nor large enough to be told from it")
    for n in range(_bucket(small, STEP, -1), _bucket(large, STEP, 1) + 1):
        yield f"{sign}{n}"


def near_tokens(low: float, high: float) -> Iterator[str]:
    """The tokens of every wide bucket that touches [low, high], both of one sign."""
    sign, small, large = ("+", low, high) if low > 0 else ("-", -high, -low)
    for n in range(_bucket(small, NEAR_STEP, -1), _bucket(large, NEAR_STEP, 1) + 1):
        yield f"{sign}n{n}"


def _bucket(value: float, step: float, side: int) -> int:
    return math.floor(math.log(value) / step + side * 1e-9)


def _boxes(payloads: list[dict[str, Any]], keys: list[bytes]) -> list[str]:
    plain = [json.dumps(p, ensure_ascii=False, separators=(",", ":")).encode() for p in payloads]
    length = math.ceil(max(map(len, plain)) / PAD) * PAD
    # Spaces after JSON are no part of it. Each key seals one box only, so the nonce need not vary.
    nonce = bytes(SecretBox.NONCE_SIZE)
    return [
        _text(SecretBox(key).encrypt(text.ljust(length), nonce).ciphertext)
        for text, key in zip(plain, keys, strict=True)
    ]


def _derive(secret: bytes, label: str) -> bytes:
    return hmac.new(secret, label.encode(), hashlib.sha512).digest()


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
