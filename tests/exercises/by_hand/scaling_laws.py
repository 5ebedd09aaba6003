"""The scaling laws' answers and mistakes, computed from the questions' texts by hand."""

import math

# (αA/βB)^(1/(α+β)) and the powers, step by step.
G = math.exp(math.log(0.34 * 406.4 / (0.28 * 410.7)) / 0.62)
G_UNROUNDED = math.exp(
    math.log(0.33917084 * 406.4010175194737 / (0.2849083 * 410.7228269450398)) / (0.33917084 + 0.2849083)
)
DATA_TERM = 2085.43 * math.exp(-0.3658 * math.log(1.4e12))
MODEL_TERM = 482.01 * math.exp(-0.3478 * math.log(70e9))
EMBEDDING = 50257 * 768
CHINCHILLA = 6 * 70e9 * 1.4e12
CHINCHILLA_HOURS = CHINCHILLA / (0.4 * 989.4e12) / 3600

# Each answer again, from the numbers in the question's text and nothing else.
ANSWERS = {
    "scaling_laws-1": (2 + 4) * 175e9 * 300e9,
    "scaling_laws-3": 4096 * 4096 + 4096 * 1024 + 4096 * 1024 + 4096 * 4096 + 3 * 4096 * 14336 + 4096 + 4096,
    "scaling_laws-5": 6 * 12288,
    "scaling_laws-6": 3.14e23 / (0.4 * 989.4e12),
    "scaling_laws-7": 78e21 / (135168 * 3600 * 312e12),
    "scaling_laws-8": 0.54 * 3 / 4,
    "scaling_laws-9": 3.8e25 / (0.41 * 989.4e12),
    "scaling_laws-10": CHINCHILLA_HOURS * 2.5,
    "scaling_laws-11": math.exp(math.log(2) / 0.076),
    "scaling_laws-13": math.sqrt(1e21 / (6 * 20)),
    "scaling_laws-14": 0.28 / 0.62,
    "scaling_laws-15": G * math.exp(0.28 / 0.62 * math.log(5.76e23 / 6)),
    "scaling_laws-19": 3 * (35 * 3.65 - 70 * 1.4) / 35 * 1e12,
    "scaling_laws-20": DATA_TERM * (1 - math.exp(-0.3658 * math.log(10))),
    "scaling_laws-21": EMBEDDING / 124.4e6,
}
# The values that the named mistakes lead to, again by hand.
MISTAKES = {
    ("scaling_laws-1", "counted the forward pass alone"): 2 * 175e9 * 300e9,
    ("scaling_laws-1", "took the backward pass for as long as the forward pass"): 4 * 175e9 * 300e9,
    ("scaling_laws-1", "counted a multiply-add as one"): 3 * 175e9 * 300e9,
    ("scaling_laws-3", "gave keys and values as many heads as queries"): 4 * 4096**2 + 3 * 4096 * 14336 + 8192,
    ("scaling_laws-3", "gave the MLP two matrices"): 2 * 4096**2 + 2 * 4096 * 1024 + 2 * 4096 * 14336 + 8192,
    ("scaling_laws-3", "took 12 h²"): 2 * 4096**2 + 4 * 4096**2 + 6 * 4096**2,
    ("scaling_laws-3", "counted the MLP alone"): 3 * 4096 * 14336,
    ("scaling_laws-3", "counted the attention alone"): 2 * 4096 * (4096 + 1024),
    ("scaling_laws-5", "counted one operation per parameter"): 3 * 12288,
    ("scaling_laws-5", "left out the masked half"): 12 * 12288,
    ("scaling_laws-5", "set s equal to h"): 12288,
    ("scaling_laws-5", "compared the whole of training with the forward pass"): 18 * 12288,
    ("scaling_laws-6", "took the whole peak"): 3.14e23 / 989.4e12,
    ("scaling_laws-6", "used the sparse peak"): 3.14e23 / (0.4 * 1979e12),
    ("scaling_laws-6", "multiplied by the MFU"): 3.14e23 * 0.4 / 989.4e12,
    ("scaling_laws-6", "used the FP32 peak"): 3.14e23 / (0.4 * 66.9e12),
    ("scaling_laws-7", "half"): 78e21 / (135168 * 3600 * 624e12),
    ("scaling_laws-7", "counted the forward pass alone"): 26e21 / (135168 * 3600 * 312e12),
    ("scaling_laws-7", "counted recomputed operations"): 104e21 / (135168 * 3600 * 312e12),
    ("scaling_laws-8", "took HFU for MFU"): 0.54,
    ("scaling_laws-8", "turned the ratio over"): 0.72,
    ("scaling_laws-8", "halved it"): 0.27,
    ("scaling_laws-8", "counted a second backward pass"): 0.324,
    ("scaling_laws-9", "forgot the MFU"): 3.8e25 / 989.4e12,
    ("scaling_laws-9", "used the sparse peak"): 3.8e25 / (0.41 * 1979e12),
    ("scaling_laws-9", "took seconds for hours"): 3600 * 3.8e25 / (0.41 * 989.4e12),
    ("scaling_laws-9", "divided by the devices"): 3.8e25 / (0.41 * 989.4e12 * 16384),
    ("scaling_laws-10", "forgot the MFU"): CHINCHILLA / 989.4e12 / 3600 * 2.5,
    ("scaling_laws-10", "half"): CHINCHILLA / (0.4 * 1979e12) / 3600 * 2.5,
    ("scaling_laws-10", "counted the forward pass alone"): 2 * 70e9 * 1.4e12 / (0.4 * 989.4e12) / 3600 * 2.5,
    ("scaling_laws-11", "took the law for a line"): 2 / 0.076,
    ("scaling_laws-11", "inverted the exponent"): 1 / 0.076,
    ("scaling_laws-11", "supposed inverse proportion"): 2,
    ("scaling_laws-11", "used the exponent of compute"): 2**20,
    ("scaling_laws-13", "forgot the 6"): math.sqrt(5e19),
    ("scaling_laws-13", "gave the tokens"): 20 * math.sqrt(1e21 / 120),
    ("scaling_laws-13", "forgot the root"): 1e21 / 120,
    ("scaling_laws-13", "counted the forward pass alone"): 5e9,
    ("scaling_laws-14", "swapped the exponents"): 34 / 62,
    ("scaling_laws-14", "took equal growth"): 0.5,
    ("scaling_laws-14", "took Kaplan's exponent"): 0.73,
    ("scaling_laws-14", "gave the exponent of the loss"): 0.34 * 0.28 / 0.62,
    ("scaling_laws-15", "used the unrounded constants"): G_UNROUNDED
    * (5.76e23 / 6) ** (0.2849083 / (0.33917084 + 0.2849083)),
    ("scaling_laws-15", "forgot the 6, or took the refit"): G * (5.76e23) ** (0.28 / 0.62),
    ("scaling_laws-15", "gave the tokens"): (5.76e23 / 6) ** (0.34 / 0.62) / G,
    ("scaling_laws-19", "served at the price of training"): (35 * 3.65 - 70 * 1.4) / 35 * 1e12,
    ("scaling_laws-19", "forgot the 6"): 0.5 * (35 * 3.65 - 70 * 1.4) / 35 * 1e12,
    ("scaling_laws-19", "took the difference of the tokens"): 3.65e12 - 1.4e12,
    ("scaling_laws-19", "divided by the larger model's cost"): 3 * (35 * 3.65 - 70 * 1.4) / 70 * 1e12,
    ("scaling_laws-20", "gave the whole term"): DATA_TERM,
    ("scaling_laws-20", "gave what is left"): DATA_TERM / math.exp(0.3658 * math.log(10)),
    ("scaling_laws-20", "took a tenth"): DATA_TERM - DATA_TERM / 10,
    ("scaling_laws-20", "let the model grow as well"): DATA_TERM * (1 - 10**-0.3658) + MODEL_TERM * (1 - 10**-0.3478),
    ("scaling_laws-21", "counted it twice"): 2 * EMBEDDING / 124.4e6,
    ("scaling_laws-21", "compared with the rest"): EMBEDDING / (124.4e6 - EMBEDDING),
    ("scaling_laws-21", "added a head of its own"): 2 * EMBEDDING / (124.4e6 + EMBEDDING),
}
