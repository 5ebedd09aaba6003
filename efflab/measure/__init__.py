"""How to measure: the device, the clock. Nothing here predicts."""
