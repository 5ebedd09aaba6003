"""efflab: predict, measure and reconcile the efficiency of AI workloads."""
