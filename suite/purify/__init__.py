"""Purify: a data set in, the same data set without the rows that would cost safety out, and a page that says why."""
