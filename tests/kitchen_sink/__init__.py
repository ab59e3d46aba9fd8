"""An application with one of everything that applications add: the tests run it in processes of its own.

uvicorn tests.kitchen_sink.main:app        arq tests.kitchen_sink.worker.WorkerSettings

Its tables are in the same metadata as the application's, so no test process imports them: `tables` creates them in a
migrated database.
"""
