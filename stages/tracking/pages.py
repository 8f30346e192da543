"""MLflow's server as `make ui` starts it: its pages open under "Model training" where nobody has chosen otherwise.

The pages keep in the browser whether they show training or GenAI, and begin with GenAI. The address of a run does not say it, so
that traces, judges and prompts would stand around each training. MLflow finds ``create_app`` by the entry point in plugin/.
"""

from typing import Any

# Runs before the page's own script, which is deferred.
_CHOICE = b"""<head><script>
localStorage.getItem("mlflow.workflowType_v1") || localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"')
</script>"""


def create_app() -> Any:
    """Return MLflow's server, as an ASGI application."""
    # Imported here because MLflow's command imports this file too, and would build the server twice.
    from mlflow.server import app as pages  # noqa: PLC0415
    from mlflow.server.fastapi_app import app  # noqa: PLC0415

    pages.after_request(choose_training)
    return app


def choose_training(response: Any) -> Any:
    """Add the choice to an answer of Flask's that is the page of which all of MLflow's pages are parts."""
    if response.status_code == 200 and response.mimetype == "text/html":
        response.direct_passthrough = False  # it is a file
        response.set_data(response.get_data().replace(b"<head>", _CHOICE, 1))
        response.headers.pop("ETag", None)  # that of the file
    return response
