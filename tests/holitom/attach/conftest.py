"""The hosts of the attach tests, one tiny random model each."""

import pytest
from hosts import HOSTS
from seam import Host


@pytest.fixture(scope="session", params=HOSTS)
def host(request):
    return Host(request.param)


@pytest.fixture(scope="session", params=["sdpa", "eager"])
def both(request):
    """LLaVA-OneVision with either attention."""
    return Host(attention=request.param)


@pytest.fixture(scope="session")
def plain():
    return Host()
