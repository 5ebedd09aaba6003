"""efflab: predict, measure and reconcile the efficiency of AI workloads."""

__version__ = "0.1.0"
