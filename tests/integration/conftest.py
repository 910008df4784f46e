import pytest


@pytest.fixture(scope="module")
def cache(tmp_path_factory, smollm2_folder):
    """A cache of its own that already holds the materialised model."""
    root = tmp_path_factory.mktemp("cache")
    (root / "model").symlink_to(smollm2_folder.parent)
    return root
