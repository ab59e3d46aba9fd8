"""What everything is compared with: a bare FastAPI route on the same server."""

from fastapi import FastAPI

app = FastAPI()


@app.get("/bare")
async def bare() -> dict[str, bool]:
    """The least that FastAPI can do."""
    return {"ok": True}
