"""Example of a reward service: GenEval's rule with an object detector in PyTorch."""
