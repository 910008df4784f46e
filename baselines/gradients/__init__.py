"""The per-sample gradient engine: what a sample's gradient has to say, without ever writing that gradient down.

A batch's samples do not see each other, so one backward pass of the summed loss gives every layer's output gradients
sample by sample. With the layer's inputs they hold each sample's parameter gradient in factored form, and everything
the methods ask for is a contraction of the factors:

- ``capture``: the backward pass that hands out (inputs, output gradients), layer by layer; ``prefix``: what the samples
  have in common is computed once; ``arithmetic``: float32 over 16-bit weights;
- ``contractions``: dot products, norms and slices of one layer's per-sample gradients;
- ``whole``: dot products with reference gradients and the norm of the gradient over all parameters (Bi-Anchoring);
- ``slices``: cosines of chosen rows and columns of chosen matrices (GradSafe).

Source of the factored norm: Goodfellow, "Efficient per-example gradient computations" (arXiv 1510.01799); for
sequences Li et al., "Large language models can be strong differentially private learners" (ICLR 2022), section 4.
"""
