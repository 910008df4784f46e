"""Guards the length control: characters of the response, and nothing else."""

from baselines import Sample, get_method


def test_longer_responses_score_higher_whatever_the_prompt():
    samples = [Sample.of("a very long question " * 9, "Yes."), Sample.of("why", "Because."), Sample.of("what", "")]
    scores = get_method("length")().score(None, None, samples)
    assert scores.ids == tuple(s.id for s in samples)
    assert scores.score.tolist() == [4, 8, 0]
    assert scores.ranks().tolist() == [2, 1, 3]
