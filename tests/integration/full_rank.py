"""``suite.stages.scoring_ranks`` in which rank 1's memory is full above ``TOKENS`` a pass; torchrun starts it."""

from contextlib import ExitStack

from suite.stages import scoring_ranks
from suite.stages.ranks import rank_main
from tests.integration.test_out_of_memory import full_above

TOKENS = 250  # the longest sample has 216

if __name__ == "__main__":
    guards = ExitStack()
    load = scoring_ranks.load

    def limited(weights, spec, compute):
        from accelerate import PartialState

        model, tokenizer = load(weights, spec, compute)
        if PartialState().process_index == 1:
            guards.enter_context(full_above(model, TOKENS))
        return model, tokenizer

    scoring_ranks.load = limited
    rank_main(scoring_ranks._rank)
