"""The mixed-precision chapter's answers and mistakes, computed from the questions' texts by hand."""

import math


def scaler() -> float:
    """The history of amp-12, step by step."""
    scale, good = 65536.0, 0
    for overflow in [True] * 3 + [False] * 150 + [True] + [False] * 60:
        good = 0 if overflow else good + 1
        if overflow:
            scale /= 2
        if good == 100:
            scale, good = 2 * scale, 0
    return scale


def least(layers: int, layer: float, boundary: float) -> int:
    """The number of segments that keeps the least, by trying all."""
    return min(range(1, layers + 1), key=lambda k: k * boundary + math.ceil(layers / k) * layer)


# Each answer again, from the numbers in the question's text and nothing else.
ANSWERS = {
    "amp-5": 100 / (65 / 6 + 35 / 1.2),  # of 100 ms
    "amp-6": 100 / 20,
    "amp-8": 1e9 * (4 + 4 + 8 + 2) + 8e9 + 8e9 / 2,
    "amp-10": 1 / 2**25 / 2**10,
    "amp-11": 65504 / 2.5,
    "amp-12": scaler(),
    "amp-13": sum(65536 / 2**n > 3000 for n in range(17)),  # the scales that are too large
    "amp-14": 1 / 2001,
    "amp-17": (1 / 4 / 32) / (1 / 800),
    "amp-20": math.ceil(512 / 8 / 12),
    "amp-21": 8 * 0.085 + 0.060,
    "amp-22": 0.080 + 0.170 + 0.050 + 0.080,
    "amp-23": least(36, 400, 100),
}
# The values that the named mistakes lead to, again by hand.
MISTAKES = {
    ("amp-5", "gave the products' speedup"): 6,
    ("amp-5", "left the rest as it was"): 100 / (65 / 6 + 35),
    ("amp-5", "averaged the speedups"): 3.9 + 0.42,
    ("amp-5", "exchanged the shares"): 100 / (35 / 6 + 65 / 1.2),
    ("amp-5", "gave the time"): 0.4,
    ("amp-6", "gave the data sheet's factor"): 15,
    ("amp-6", "took the data sheet's factor"): 100 / (80 / 15 + 20),
    ("amp-6", "divided by the products' share"): 1.25,
    ("amp-6", "took the time of the rest"): 0.2,
    ("amp-8", "forgot the copies"): 16e9 + 12e9,
    ("amp-8", "halved everything"): 16e9,
    ("amp-8", "halved all activations"): 18e9 + 8e9,
    ("amp-8", "took FP32"): 32e9,
    ("amp-8", "counted the activations alone"): 12e9,
    ("amp-10", "forgot the rounding"): 1 / 2**24 / 1024,
    ("amp-10", "forgot the scale"): 1 / 2**25,
    ("amp-10", "multiplied by the scale"): 1024 / 2**25,
    ("amp-10", "took the smallest normal number"): 1 / 2**14 / 1024,
    ("amp-11", "multiplied"): 163760,
    ("amp-11", "gave the largest number"): 65504,
    ("amp-11", "gave a power of two"): 2**14,
    ("amp-12", "counted across the overflow"): 65536 / 8 * 2 / 2 * 2,
    ("amp-12", "never doubled"): 65536 / 16,
    ("amp-12", "forgot the last overflow"): 65536 / 8 * 4,
    ("amp-12", "began anew"): 65536,
    ("amp-13", "rounded down"): 4,
    ("amp-13", "did not round"): math.log2(65536 / 3000),
    ("amp-13", "counted the first good step"): 6,
    ("amp-13", "divided"): 65536 / 3000,
    ("amp-14", "gave the good steps"): 1 - 1 / 2001,
    ("amp-14", "skipped two"): 2 / 2001,
    ("amp-14", "forgot the percent"): 1 / 2001 / 100,
    ("amp-14", "every second try"): 1 / 2,
    ("amp-17", "forgot the number of microbatches"): 800 / 32,
    ("amp-17", "compared with the first microbatch"): 10,
    ("amp-17", "turned it over"): 4 * 32 / 800,
    ("amp-17", "took them as equal"): 1,
    ("amp-20", "rounded down"): 512 // 96,
    ("amp-20", "did not round"): 512 / 96,
    ("amp-20", "forgot the GPUs"): math.ceil(512 / 12),
    ("amp-20", "forgot the microbatch"): 512 / 8,
    ("amp-21", "updated each time"): 8 * (0.085 + 0.060),
    ("amp-21", "forgot the update"): 0.68,
    ("amp-21", "took one microbatch"): 0.145,
    ("amp-22", "took a third"): 0.4,
    ("amp-22", "ran everything twice"): 0.6,
    ("amp-22", "ran the backward pass twice"): 0.3 + 0.17,
    ("amp-22", "ran forward and backward pass twice"): 0.3 + 0.08 + 0.17,
    ("amp-23", "took the root of the layers"): 6,
    ("amp-23", "forgot the root"): 36 * 4,
    ("amp-23", "one for each layer"): 36,
    ("amp-23", "turned the ratio over"): math.sqrt(36 * 100 / 400),
}
