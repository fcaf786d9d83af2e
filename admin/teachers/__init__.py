"""Teachers to show the wheel with: one simulated, one that replays recorded exchanges."""

import uvicorn
from fastapi import FastAPI


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve a teacher until SIGTERM or SIGINT. Open streams get five seconds to end."""
    uvicorn.run(app, host=host, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=5)
