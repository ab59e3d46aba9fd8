"""What a full Redis/Valkey does: a cache may forget; the limits, the queue and who has written may not."""

from typing import Final

from app.core.doctor.finding import Finding, failed, ok, warning

CACHE, LIMITS, QUEUE = "cache", "limits", "queue"
NOTES = "notes"  # of who has written, which `core/db/replica.py` makes
_NEVER: Final = "noeviction"
_LOST: Final = {
    LIMITS: "a count that is evicted is a limit forgotten",
    NOTES: "of whom it is forgotten that they have written, a replica that is behind shows what was before",
    QUEUE: "a queue that is evicted is work put off, or lost where there is no PostgreSQL",
}


def judge_eviction(use: str, setting: str, address: str, maxmemory: int, policy: str, *, is_shared: bool) -> Finding:
    """One finding.

    Args:
        use: one of `cache`, `limits`, `notes`, `queue`.
        setting: the variable that says where the server is.
        address: of the server.
        maxmemory: in bytes; 0 for no limit, and then nothing is evicted.
        policy: its `maxmemory-policy`.
        is_shared: whether it is used for something else besides.
    """
    check = f"valkey {use}: eviction"
    if use == CACHE:
        return _of_cache(check, setting, maxmemory, policy, is_shared)
    if policy == _NEVER:
        return ok(check, _NEVER)
    remedy = f"CONFIG SET maxmemory-policy {_NEVER} (and in the server's configuration), or have {setting} name another"
    if not maxmemory:
        return warning(check, f"{address} has {policy}, and would evict keys once it has a maxmemory", remedy)
    # Counts have an expiry, so volatile-* takes them as well. But some managed servers come with that.
    return failed(
        check,
        f"{address} evicts keys when it is full ({policy}): {_LOST[use]}",
        remedy,
        is_certain=policy.startswith("allkeys"),
    )


def _of_cache(check: str, setting: str, maxmemory: int, policy: str, is_shared: bool) -> Finding:
    if not maxmemory:
        return ok(check, "it has no maxmemory, and evicts nothing")
    if policy != _NEVER:
        return ok(check, policy)
    own = f"have {setting} name a server of its own, with maxmemory-policy allkeys-lru"
    remedy = own if is_shared else "CONFIG SET maxmemory-policy allkeys-lru (and in the server's configuration)"
    return warning(check, f"{_NEVER}: once it is full, nothing new is cached", remedy)
