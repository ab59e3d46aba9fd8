"""What tests have to know of `tests.cache_app`, which they do not import: it changes what belongs to all."""

TABLES = """
DROP TABLE IF EXISTS counter, computation CASCADE;
CREATE TABLE counter (id int PRIMARY KEY, owner text NOT NULL, value int NOT NULL DEFAULT 0);
CREATE TABLE computation (counter_id int NOT NULL, pid int NOT NULL);
"""
NEVER_COMMITTED = -1
SLOW_LEASE = 2.0  # seconds

# In seconds, and shorter than in earnest: after which another server does what a server that died has left to drop, and
# for which rows are kept when they are done. The first has to be more than the second and a tick.
OWN, LINGER = 3.5, 1.5
