"""A part of the 10,000 malformed files that ``make faults`` tries (docs/robustness.md)."""

from tests.integration.faults.malformed import try_files


def test_a_malformed_file_is_a_clear_message_and_never_a_traceback_or_a_hang():
    outcome = try_files(1500, seed=1)
    assert outcome.faults == []
    assert outcome.refused > outcome.files / 2  # the damage is real
    assert outcome.accepted > 20  # and not of every file all is lost
    assert outcome.with_line > outcome.refused / 4
