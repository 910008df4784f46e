"""Geometry of hidden states: streaming moments, principal directions, intrinsic dimension, alignment (FlowLens).

The mathematics alone, on arrays; which model and layers they come from is the caller's matter.
"""
