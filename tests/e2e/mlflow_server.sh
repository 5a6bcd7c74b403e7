#!/usr/bin/env bash
# Runs the image of MLflow's server by the command and the settings of the manifests, against a real PostgreSQL and a
# real S3 API on this machine: an experiment is recorded, an artifact stored, and both are there after a restart.
#
#   tests/e2e/mlflow_server.sh [IMAGE]     (needs podman, PostgreSQL's programs, and .venv or another PYTHON)
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-.venv/bin/python}
IMAGE=${1:-localhost/yolo-distill-mlflow:$(sed -n 's/^mlflow==//p' constraints.txt)}
PG_BIN=${PG_BIN:-$(find /usr/lib/postgresql -name initdb -printf '%h\n' 2> /dev/null | sort -V | tail -1)}
PG_PORT=55432
S3_PORT=55433
HTTP_PORT=55434
export CONTAINERS_CONF=$PWD/tests/e2e/containers.conf

fail() {
    echo "error: $*" >&2
    exit 1
}

[[ -x $PG_BIN/initdb ]] || fail "PostgreSQL's programs are missing; name their folder in PG_BIN"
command -v podman > /dev/null || fail "podman is not installed"
scratch=$(mktemp -d)
moto=
# shellcheck disable=SC2317,SC2329  # called by the trap
clean_up() {
    podman rm --force --ignore yolo-distill-mlflow-test > /dev/null 2>&1 || true
    [[ -z $moto ]] || kill "$moto" 2> /dev/null || true
    as_postgres "$PG_BIN/pg_ctl" --pgdata "$scratch/pg" --mode immediate stop > /dev/null 2>&1 || true
    rm -rf "$scratch"
}
as_postgres() {
    if [[ $(id -u) -eq 0 ]]; then
        setpriv --reuid=postgres --regid=postgres --clear-groups env HOME=/tmp "$@"
    else
        "$@"
    fi
}
trap clean_up EXIT

chmod 755 "$scratch"
mkdir "$scratch/pg"
printf 'testpassword' > "$scratch/password"
chmod 644 "$scratch/password"
[[ $(id -u) -ne 0 ]] || chown postgres "$scratch/pg"
as_postgres "$PG_BIN/initdb" --pgdata "$scratch/pg" --username mlflow --pwfile "$scratch/password" \
    --auth scram-sha-256 > /dev/null
as_postgres "$PG_BIN/pg_ctl" --pgdata "$scratch/pg" --wait --log "$scratch/pg/log" \
    --options "-p $PG_PORT -c listen_addresses=127.0.0.1 -k $scratch/pg" start > /dev/null
PGPASSWORD=testpassword "$PG_BIN/createdb" --host 127.0.0.1 --port $PG_PORT --username mlflow mlflow
"$PYTHON" -m moto.server --port $S3_PORT > "$scratch/moto.log" 2>&1 &
moto=$!

# The Deployment's command and environment, with this machine's addresses in place of the cluster's.
cp -r manifests "$scratch/manifests"
printf 'POSTGRES_PASSWORD=testpassword\nAWS_ACCESS_KEY_ID=testing\nAWS_SECRET_ACCESS_KEY=testing\n' \
    > "$scratch/manifests/overlays/kind/mlflow/mlflow.env"
kubectl=$(dirname "$PYTHON")/kubectl
"$kubectl" kustomize "$scratch/manifests/overlays/kind" > "$scratch/rendered.yaml"
"$PYTHON" - "$scratch" $PG_PORT $S3_PORT $HTTP_PORT << 'PYTHON'
import base64, json, sys
from pathlib import Path
import boto3, yaml

scratch, pg, s3, http = Path(sys.argv[1]), *sys.argv[2:]
objects = {(o["kind"], o["metadata"]["name"]): o for o in yaml.safe_load_all((scratch / "rendered.yaml").read_text())}
pod = objects["Deployment", "mlflow"]["spec"]["template"]["spec"]
(container,) = pod["containers"]
env = dict(objects["ConfigMap", container["envFrom"][0]["configMapRef"]["name"]]["data"])
for entry in container["env"]:
    if reference := entry.get("valueFrom", {}).get("secretKeyRef"):
        value = base64.b64decode(objects["Secret", reference["name"]]["data"][reference["key"]]).decode()
    else:
        value = entry["value"]
        for name, known in env.items():
            value = value.replace(f"$({name})", known)
    env[entry["name"]] = value
env["MLFLOW_BACKEND_STORE_URI"] = env["MLFLOW_BACKEND_STORE_URI"].replace("mlflow-postgres:5432", f"127.0.0.1:{pg}")
env["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{s3}"
(scratch / "env").write_text("".join(f"{name}={value}\n" for name, value in env.items()))
command = [word.replace("--port=5000", f"--port={http}") for word in container["command"]]
(scratch / "command").write_text("\n".join(command) + "\n")
storage = boto3.client("s3", endpoint_url=env["AWS_ENDPOINT_URL"], region_name="us-east-1",
                       aws_access_key_id="testing", aws_secret_access_key="testing")
storage.create_bucket(Bucket=env["MLFLOW_ARTIFACTS_DESTINATION"].split("/")[2])
PYTHON
mapfile -t command < "$scratch/command"

serve() {
    podman rm --force --ignore yolo-distill-mlflow-test > /dev/null
    podman run --detach --name yolo-distill-mlflow-test --network=host --read-only --cap-drop=ALL \
        --security-opt=no-new-privileges --tmpfs /tmp:rw,mode=1777 --env-file "$scratch/env" "$IMAGE" "${command[@]}" \
        > /dev/null
    local _
    for _ in $(seq 120); do
        if "$PYTHON" -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:$HTTP_PORT/health')" 2> /dev/null; then
            return
        fi
        sleep 1
    done
    podman logs yolo-distill-mlflow-test >&2
    fail "the server does not answer"
}

client() {
    MLFLOW_TRACKING_URI=http://127.0.0.1:$HTTP_PORT "$PYTHON" - "$1" << 'PYTHON'
import sys, urllib.error, urllib.request, os
import mlflow

if sys.argv[1] == "write":
    mlflow.set_experiment("restarts")
    with mlflow.start_run():
        mlflow.log_metric("map", 0.5)
        mlflow.log_text("kept", "note.txt")
(run,) = mlflow.search_runs(experiment_names=["restarts"], output_format="list")
assert run.data.metrics == {"map": 0.5}
assert run.info.artifact_uri.startswith("mlflow-artifacts:"), run.info.artifact_uri
assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/note.txt") == "kept"
request = urllib.request.Request(os.environ["MLFLOW_TRACKING_URI"], headers={"Host": "evil.example.org"})
try:
    urllib.request.urlopen(request)
except urllib.error.HTTPError as error:
    assert error.code == 403, error.code
else:
    raise SystemExit("the server answers to any name")
request = urllib.request.Request(os.environ["MLFLOW_TRACKING_URI"], headers={"Host": "mlflow.yolo-distill:5000"})
assert urllib.request.urlopen(request).status == 200
print(f"ok: {sys.argv[1]}")
PYTHON
}

serve
client write
serve
client read
tables=$(PGPASSWORD=testpassword "$PG_BIN/psql" --host 127.0.0.1 --port $PG_PORT --username mlflow --no-align --tuples-only \
    --command "select count(*) from metrics" mlflow)
[[ $tables -eq 1 ]] || fail "PostgreSQL holds $tables metrics"
echo "$IMAGE: passed"
