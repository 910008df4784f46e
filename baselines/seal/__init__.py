"""SEAL: a data selector learnt by bilevel optimisation (Shen et al., ICLR 2025).

``method`` has the options, the ambiguities and the scores; ``training`` the two coupled optimisations; ``data`` what
goes through the model and in which order; ``state`` the files: checkpoints, and selectors that other models can use.
"""

from baselines.seal.method import Seal
from baselines.seal.state import load_selector, save_selector

__all__ = ["Seal", "load_selector", "save_selector"]
