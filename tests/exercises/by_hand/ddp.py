"""The answers and mistakes on training with several devices, computed from the questions' texts by hand."""

import math


def ring(message: float, ranks: int, bandwidth: float, latency: float = 0.0) -> float:
    """An all-reduce step by step: a reduce-scatter and an all-gather, a chunk in each step."""
    return sum(latency + message / ranks / bandwidth for _ in range(2 * (ranks - 1)))


def overlapped(backward: float, buckets: int, communication: float) -> float:
    """What shows of the communication, bucket after bucket."""
    free = 0.0
    for k in range(buckets):
        free = max(free, (k + 1) * backward / buckets) + communication / buckets
    return free - backward


def noise_scale(small: int, small_norm: float, large: int, large_norm: float) -> tuple[float, float]:
    """S and |G|² from two equations |G|² + S/b = norm, by elimination."""
    s = (small_norm - large_norm) / (1 / small - 1 / large)
    return s, small_norm - s / small


def state(weight: float, gradient: float, optimizer: float) -> float:
    """Bytes of 7 billion parameters."""
    return 7e9 * (weight + gradient + optimizer)


SECONDS_BETWEEN = 54 * 24 * 3600 / 419
ACTIVATIONS = 4096 * 8192 * 2  # of a microbatch, in bytes
NOISE, SQUARED = noise_scale(32, 6, 256, 2)

# Each answer again, from the numbers in the question's text and nothing else.
ANSWERS = {
    "ddp-1": ring(1e9 * 2, 8, 900e9 / 2),
    "ddp-2": 6 / 4 * 1e9 / 4e-3,  # six chunks of a quarter
    "ddp-3": 16 * (25e9 * 10e-6),  # chunks that take as long as the latency
    "ddp-4": sum(ring(25e6, 8, 12.5e9, 100e-6) for _ in range(20)),
    "ddp-5": overlapped(0.120, 10, 0.150),
    "ddp-8": -50000 % 64,
    "ddp-9": (32 * 32 / 0.5) / (32 * 32 / 0.41),  # sequences per second: of 32 GPUs, of 32 times one
    "ddp-10": 6.4 / 16 / 0.5,  # ideal time over time
    "ddp-11": 0.5 + 0.1,
    "ddp-13": 4 * (0.060 + 0.120) + 0.090 + 0.020,
    "ddp-14": 50e3 + 50e3 * 2 / 4,
    "ddp-15": NOISE / SQUARED,
    "ddp-16": state(2, 2 / 8, 12 / 8),
    "ddp-17": 3 * (14e9 - 14e9 / 64),
    "ddp-18": 7 / 32,
    "ddp-20": (2 * 8 + 7) / 2,  # chunks of half a stage
    "ddp-21": 80 * 4 * ring(ACTIVATIONS, 8, 50e9),
    "ddp-23": math.sqrt(2 * 60 * SECONDS_BETWEEN),
}
# The values that the named mistakes lead to, again by hand.
MISTAKES = {
    ("ddp-1", "took both directions"): ring(2e9, 8, 900e9),
    ("ddp-1", "sent the message once"): 2 / 450,
    ("ddp-1", "forgot the last chunk"): 4 / 450,
    ("ddp-1", "sent everything to everyone"): 14 / 450,
    ("ddp-1", "took FP32"): ring(4e9, 8, 450e9),
    ("ddp-2", "gave the algorithm bandwidth"): 250e9,
    ("ddp-2", "took an all-gather"): 3 / 4 * 250e9,
    ("ddp-2", "doubled the message"): 500e9,
    ("ddp-2", "divided by the factor"): 250e9 / 1.5,
    ("ddp-2", "added up the GPUs"): 4 * 375e9,
    ("ddp-3", "forgot the ranks"): 250e3,
    ("ddp-3", "counted the steps twice"): 30 * 250e3,
    ("ddp-3", "left one chunk out"): 15 * 250e3,
    ("ddp-4", "forgot the latency"): ring(500e6, 8, 12.5e9),
    ("ddp-4", "counted one step for each bucket"): ring(500e6, 8, 12.5e9) + 20 * 100e-6,
    ("ddp-4", "one message for each tensor"): ring(500e6, 8, 12.5e9) + 148 * 14 * 100e-6,
    ("ddp-4", "counted half the ring"): 0.098 / 2,
    ("ddp-5", "began at once"): 0.030,
    ("ddp-5", "hid nothing"): 0.150,
    ("ddp-5", "the last bucket alone"): 0.015,
    ("ddp-5", "gave the whole"): 0.120 / 10 + 0.150,
    ("ddp-8", "dropped them"): 50000 % 64,
    ("ddp-8", "gave a rank's samples"): math.ceil(50000 / 64),
    ("ddp-8", "filled up one rank"): 1,
    ("ddp-8", "filled up all"): 64,
    ("ddp-9", "took strong scaling"): 0.41 / 0.5 / 32,
    ("ddp-9", "turned it over"): 50 / 41,
    ("ddp-9", "gave the speedup"): 32 * 0.82,
    ("ddp-9", "gave what is lost"): 9 / 50,
    ("ddp-10", "gave the speedup"): 6.4 / 0.5,
    ("ddp-10", "turned it over"): 1.25,
    ("ddp-10", "gave the ratio of the times"): 5 / 64,
    ("ddp-11", "averaged over the ranks"): (63 * 0.5 + 0.6) / 64,
    ("ddp-11", "gave the delay"): 0.1,
    ("ddp-11", "added the delay for each rank"): 6.9,
    ("ddp-13", "reduced each time"): 4 * (0.060 + 0.120 + 0.090) + 0.020,
    ("ddp-13", "forgot the communication"): 0.740,
    ("ddp-13", "updated each time"): 4 * (0.060 + 0.120 + 0.020) + 0.090,
    ("ddp-13", "took one microbatch"): 0.290,
    ("ddp-14", "halved the steps"): 100e3 / 2,
    ("ddp-14", "turned the ratio over"): 50e3 + 50e3 * 4 / 2,
    ("ddp-14", "took the critical batch"): 100e3,
    ("ddp-15", "gave the noise"): NOISE,
    ("ddp-15", "divided by the mean's norm"): NOISE / 2,
    ("ddp-15", "counted batches"): NOISE / SQUARED / 32,
    ("ddp-16", "split nothing"): 112e9,
    ("ddp-16", "took stage 1"): state(2, 2, 12 / 8),
    ("ddp-16", "took stage 3"): 112e9 / 8,
    ("ddp-16", "split the gradients alone"): state(2, 2 / 8, 12),
    ("ddp-17", "took an all-reduce"): 2 * (14e9 - 14e9 / 64),
    ("ddp-17", "counted one gather"): 14e9 - 14e9 / 64,
    ("ddp-17", "took FP32"): 3 * (28e9 - 28e9 / 64),
    ("ddp-17", "divided among the ranks"): 42e9 / 64,
    ("ddp-18", "took the share of the whole time"): 7 / (7 + 32),
    ("ddp-18", "counted all stages"): 1 / 4,
    ("ddp-18", "turned it over"): 32 / 7,
    ("ddp-18", "forgot the microbatches"): 7 / 8,
    ("ddp-20", "took 1F1B"): 8,
    ("ddp-20", "took GPipe"): 32,
    ("ddp-20", "doubled"): 2 * 8,
    ("ddp-20", "forgot the chunks"): 8 + 7,
    ("ddp-21", "forgot the backward pass"): 80 * 2 * ring(ACTIVATIONS, 8, 50e9),
    ("ddp-21", "counted one all-reduce"): 80 * ring(ACTIVATIONS, 8, 50e9),
    ("ddp-21", "sent the message once"): 80 * 4 * ACTIVATIONS / 50e9,
    ("ddp-21", "took NVLink"): 80 * 4 * ring(ACTIVATIONS, 8, 450e9),
    ("ddp-21", "took FP32"): 80 * 4 * ring(2 * ACTIVATIONS, 8, 50e9),
    ("ddp-23", "forgot the two"): math.sqrt(60 * SECONDS_BETWEEN),
    ("ddp-23", "took the interval of failures"): SECONDS_BETWEEN,
    ("ddp-23", "took the whole time"): math.sqrt(2 * 60 * 54 * 24 * 3600),
    ("ddp-23", "forgot the root"): SECONDS_BETWEEN / 60,
}
