"""Differences between points of a comparison: paired on the prompts they share, corrected for how many were tested.

``paired`` holds the formulas on arrays, ``outcomes`` what runs did with each prompt, ``compare`` a sweep's comparison.
"""
