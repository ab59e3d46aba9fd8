"""The workers. Importing anything of this package makes the command `arq` run durable jobs: a worker that forgot to ask
for that would take jobs it cannot read.
"""

from app.core.worker.worker import use_durable_worker

use_durable_worker()
