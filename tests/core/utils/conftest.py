"""A cluster for all tests of it in a process: it takes seconds to form."""

from collections.abc import Iterator

import pytest

from tests.redis_topologies import RedisCluster, redis_cluster


@pytest.fixture(scope="session")
def formed() -> Iterator[RedisCluster]:
    with redis_cluster() as cluster:
        yield cluster


@pytest.fixture
def nodes(formed: RedisCluster) -> RedisCluster:
    """A cluster that is whole, and empty."""
    formed.mend()
    return formed
