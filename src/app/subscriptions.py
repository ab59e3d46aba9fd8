"""What this application has called when something happens (docs/events.md): in the API, the workers and the scripts."""

from collections.abc import Sequence

from app.core.events import Subscription

SUBSCRIPTIONS: Sequence[Subscription] = ()
