"""Property tests have no deadline: the first example may import a library, and the machine may be shared."""

from hypothesis import settings

settings.register_profile("shared_machine", deadline=None)
settings.load_profile("shared_machine")
