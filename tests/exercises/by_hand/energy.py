"""The answers and mistakes on energy, computed from the questions' texts by hand.

Energy is in J and carbon in g, as efflab keeps them. 1 kWh is 3.6 MJ.
"""

import math

KWH = 3.6e6
POUND = 453.59237

GPU_HOURS = 512 * 30 * 24
RUN = GPU_HOURS * 0.55  # kWh of the GPUs
# Carbon of one busy GPU-hour, kg: an eighth of the server over the hours in which it works.
HOUR = 3200 / 8 / (35_000 * 7 / 10)
MADE, USED = 50_000 * HOUR, 50_000 * 0.5 * 1.1 * 0.040  # kg
NODE = 8 * 550 + 1200  # W
PHONE, NETWORK = 5 * 0.1, 2 * 0.050 * 20  # Wh in a round: 6 min; 50 MB twice at 20 Wh for each GB


def cost(energy: float, hours: float, largest: float, weight: float) -> float:
    """Zeus's cost, J: energy in kWh, power in kW."""
    return KWH * (weight * energy + (1 - weight) * largest * hours)


def slowest_is_best(switching: float, flowing: float) -> float:
    """Where switching / s² + flowing s has no slope, by bisection of the slope between 1 and 10."""
    low, high = 1.0, 10.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if flowing - 2 * switching / middle**3 < 0 else (low, middle)
    return low


# Each answer again, from the numbers in the question's text and nothing else.
ANSWERS = {
    "energy-2": KWH * RUN * 1.15,
    "energy-3": 433 * 1000 * 662,
    "energy-4": 310 * 1000 * 400,
    "energy-6": 1507 * 0.954 * POUND,
    "energy-8": MADE / (MADE + USED),
    "energy-9": NODE / 8000,
    "energy-10": 500 * 0.5 * 1.7 * 1.1,
    "energy-12": 1 / 3,  # one period of three
    "energy-14": cost(1.55, 11.8, 0.25, 0.6),
    "energy-15": slowest_is_best(20, 10),
    "energy-16": 1000 * 100 * (PHONE + NETWORK) * 3600,
}
# The values that the named mistakes lead to, again by hand.
MISTAKES = {
    ("energy-2", "forgot PUE"): KWH * RUN,
    ("energy-2", "applied PUE twice"): KWH * RUN * 1.3225,
    ("energy-2", "took the TDP"): KWH * GPU_HOURS * 0.7 * 1.15,
    ("energy-2", "divided by PUE"): KWH * RUN / 1.15,
    ("energy-2", "took one hour"): KWH * 512 * 0.55 * 1.15,
    ("energy-2", "counted days as hours"): KWH * RUN * 1.15 / 24,
    ("energy-2", "took joules for watt-hours"): KWH * RUN * 1.15 * 3600,
    ("energy-2", "took one GPU"): KWH * 720 * 0.55 * 1.15,
    ("energy-2", "took 1,000 for 3,600"): KWH * RUN * 1.15 * 3.6,
    ("energy-2", "took kilowatt-hours for megawatt-hours"): KWH * RUN * 1150,
    ("energy-2", "took megawatt-hours for kilowatt-hours"): 3600 * RUN * 1.15,
    ("energy-3", "kept the grid"): 24_681_000,
    ("energy-3", "turned the ratio over"): 433_000 * 57 / (662 / 57),
    ("energy-3", "took kilograms"): 286_646,
    ("energy-3", "took pounds"): 286_646_000 * 2.20462,
    ("energy-3", "gave the difference"): 286_646_000 - 24_681_000,
    ("energy-3", "took kilograms for tonnes"): 286_646e6,
    ("energy-4", "applied PUE twice"): 124e6 * 1.24,
    ("energy-4", "took the computers alone"): 250_000 * 400,
    ("energy-4", "took kilograms"): 124e3,
    ("energy-4", "gave the cooling"): 60_000 * 400,
    ("energy-4", "took 24% off"): 310 * 76 / 100 * 400e3,
    ("energy-4", "took kilograms for tonnes"): 124e9,
    ("energy-6", "took pounds for kilograms"): 1507 * 0.954 * 1000,
    ("energy-6", "multiplied in place of dividing"): 1507 * 0.954 * 2204.62,
    ("energy-6", "applied PUE twice"): 1507 * 0.954 * POUND * 1.58,
    ("energy-6", "left out the intensity"): 1507 * POUND,
    ("energy-6", "divided by the intensity"): 1507 * POUND / 0.954,
    ("energy-6", "took megawatt-hours"): 1.507 * 0.954 * POUND,
    ("energy-8", "forgot the idle hours"): 0.7 * MADE / (0.7 * MADE + USED),
    ("energy-8", "gave the ratio"): MADE / USED,
    ("energy-8", "gave the other share"): USED / (MADE + USED),
    ("energy-8", "took the server for a GPU"): 8 * MADE / (8 * MADE + USED),
    ("energy-8", "multiplied by the busy share"): 0.49 * MADE / (0.49 * MADE + USED),
    ("energy-8", "forgot PUE"): MADE / (MADE + 50_000 * 0.5 * 0.040),
    ("energy-8", "took the share for percent"): MADE / (MADE + USED) / 100,
    ("energy-8", "mixed grams and kilograms"): MADE / (MADE + 1000 * USED),
    ("energy-9", "counted the GPUs alone"): 4400 / 8000,
    ("energy-9", "took one GPU"): 55 / 800,
    ("energy-9", "turned it over"): 8000 / NODE,
    ("energy-9", "counted the rest for each GPU"): 8 * (550 + 1200) / 8000,
    ("energy-9", "took one GPU and the rest"): 1.75 / 8,
    ("energy-9", "left the power in kilowatts"): 5.6 / 8000,
    ("energy-9", "took the power"): NODE,
    ("energy-10", "counted the accelerators alone"): 250,
    ("energy-10", "forgot PUE"): 250 * 1.7,
    ("energy-10", "forgot hosts and idle capacity"): 250 * 1.1,
    ("energy-10", "added the factors"): 250 * 3.8,
    ("energy-10", "took joules for watt-hours"): 467.5 * 3600,
    ("energy-10", "took one token"): 467.5 / 500,
    ("energy-10", "divided by PUE"): 425 / 1.1,
    ("energy-10", "took 1,000 for 3,600"): 0.4675 * 3600,
    ("energy-10", "took watt-hours for kilowatt-hours"): 467_500,
    ("energy-12", "turned it over"): 3,
    ("energy-12", "counted both ends in full"): 2 / 3,
    ("energy-12", "took the mean"): 1 / 6,
    ("energy-12", "forgot the window"): 1 / 10,
    ("energy-12", "divided by the longest window"): 1 / 4,  # of 300 ms and a period
    ("energy-12", "took the share for percent"): 1 / 300,
    ("energy-12", "mixed milliseconds and seconds"): 1000 / 3,
    ("energy-14", "exchanged the weights"): cost(1.55, 11.8, 0.25, 0.4),
    ("energy-14", "took the limit for the largest power"): cost(1.55, 11.8, 0.15, 0.6),
    ("energy-14", "took the energy alone"): 1.55 * KWH,
    ("energy-14", "took the time alone"): 11.8 / 4 * KWH,
    ("energy-14", "left out the weights"): (1.55 + 2.95) * KWH,
    ("energy-14", "added hours to kilowatt-hours"): cost(1.55, 11.8, 1, 0.6),
    ("energy-14", "took watts for kilowatts"): cost(1.55, 11.8, 250, 0.6),
    ("energy-14", "took megajoules for kilowatt-hours"): 3.6 * cost(1.55, 11.8, 0.25, 0.6),
    ("energy-15", "forgot the two"): slowest_is_best(10, 10),
    ("energy-15", "took the square root"): 2,
    ("energy-15", "forgot the root"): 4,
    ("energy-15", "gave the clock"): 1 / slowest_is_best(20, 10),
    ("energy-15", "let the static part stay"): math.sqrt(20 / 10),
    ("energy-15", "mixed kilojoules and joules"): slowest_is_best(20, 10) / 10,  # a thousandth below the root
    ("energy-15", "forgot the time"): math.cbrt(2 * 200),
    ("energy-15", "gave the energy"): 20 / slowest_is_best(20, 10) ** 2 + 10 * slowest_is_best(20, 10),
    ("energy-16", "forgot the network"): 1e5 * PHONE * 3600,
    ("energy-16", "forgot the phones"): 1e5 * NETWORK * 3600,
    ("energy-16", "counted one direction"): 1e5 * (PHONE + NETWORK / 2) * 3600,
    ("energy-16", "took one round"): 100 * (PHONE + NETWORK) * 3600,
    ("energy-16", "took one phone"): 1000 * (PHONE + NETWORK) * 3600,
    ("energy-16", "took minutes for hours"): 1e5 * (60 * PHONE + NETWORK) * 3600,
    ("energy-16", "took megabytes for gigabytes"): 1e5 * (PHONE + 1000 * NETWORK) * 3600,
    ("energy-16", "took kilowatt-hours for megawatt-hours"): 1e8 * (PHONE + NETWORK) * 3600,
}
