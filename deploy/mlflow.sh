#!/bin/sh
# An MLflow server for a team: runs in PostgreSQL, artifacts on S3, a login for each person.
# Everything comes from the environment, so that no secret is in an argument, which every user of the machine can read:
#   MLFLOW_BACKEND_STORE_URI         postgresql://USER:PASSWORD@HOST/DATABASE
#   MLFLOW_ARTIFACTS_DESTINATION     s3://BUCKET/PATH, with AWS's own variables; only the server needs access
#   MLFLOW_AUTH_ADMIN_PASSWORD       of the user admin, read at the first start
#   MLFLOW_FLASK_SERVER_SECRET_KEY   any random text, always the same
#   HOST, PORT                       where to listen: 127.0.0.1 and 5000 unless they say otherwise
set -eu
: "${MLFLOW_BACKEND_STORE_URI:?}" "${MLFLOW_ARTIFACTS_DESTINATION:?}" "${MLFLOW_FLASK_SERVER_SECRET_KEY:?}"
export MLFLOW_AUTH_CONFIG_PATH="${MLFLOW_AUTH_CONFIG_PATH:-$(cd -- "$(dirname -- "$0")" && pwd)/users.ini}"
export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
exec mlflow server --app-name basic-auth --host "${HOST:-127.0.0.1}" --port "${PORT:-5000}" --workers 2
