#!/usr/bin/env bash
# From nothing to a table: a kind cluster, Kubeflow Pipelines and MLflow on it, the pipeline run on the embedded digits.
# What is there already is kept, so that it can be repeated. "kind delete cluster --name yolo-distill" removes all of it.
#
#   manifests/kind/up.sh [options of "yolo-distill submit"]
#
# Settings, by environment variable: ENGINE (docker or podman), KFP_VERSION, PORT (of this machine, for the API),
# STORE_PORT (for the object storage).
set -euo pipefail
cd "$(dirname "$0")/../.."

KFP_VERSION=${KFP_VERSION:-2.17.0}
PORT=${PORT:-8888}
STORE_PORT=${STORE_PORT:-9000}
ENGINE=${ENGINE:-$(command -v docker > /dev/null && echo docker || echo podman)}
CLUSTER=yolo-distill
CONTEXT=kind-$CLUSTER
KFP_MANIFESTS=github.com/kubeflow/pipelines/manifests/kustomize
PYTHON=.venv/bin/python
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGES=("localhost/yolo-distill-python:$VERSION-cpu" "localhost/yolo-distill-mlflow:$(sed -n 's/^mlflow==//p' constraints.txt)")

fail() {
    echo "error: $*" >&2
    exit 1
}

say() {
    echo "== $*" >&2
}

kube() {
    kubectl --context "$CONTEXT" "$@"
}

check_prerequisites() {
    local tool
    for tool in "$ENGINE" kind kubectl git; do
        command -v "$tool" > /dev/null || fail "$tool is not installed or not in PATH"
    done
    "$ENGINE" info > /dev/null 2>&1 || fail "$ENGINE does not answer: is its service running, and may you use it?"
    [[ -x .venv/bin/yolo-distill ]] || fail ".venv is missing: run make setup"
    local free_gb memory_gb
    free_gb=$(df --output=avail -BG . | tail -1 | tr -dc 0-9)
    [[ $free_gb -ge 30 ]] || fail "$free_gb GB of disk are free, 30 are needed for images and their copies in the node"
    memory_gb=$(($(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 1048576))
    [[ $memory_gb -ge 11 ]] || fail "the machine has $memory_gb GB of memory, 12 are needed"
}

start_cluster() {
    [[ $ENGINE != podman ]] || export KIND_EXPERIMENTAL_PROVIDER=podman
    if kind get clusters 2> /dev/null | grep -qx "$CLUSTER"; then
        say "the cluster $CLUSTER is there"
    else
        kind create cluster --config manifests/kind/cluster.yaml --wait 300s
    fi
    kube wait --for=condition=Ready nodes --all --timeout=300s
}

load_images() {
    "$ENGINE" image inspect "${IMAGES[0]}" > /dev/null 2>&1 || ENGINE=$ENGINE images/build.sh cpu
    "$ENGINE" image inspect "${IMAGES[1]}" > /dev/null 2>&1 || ENGINE=$ENGINE images/build.sh mlflow
    local image
    for image in "${IMAGES[@]}"; do
        say "loading $image"
        # An archive, because kind finds images of docker alone by name.
        "$ENGINE" save --output "$scratch/image.tar" "$image"
        kind load image-archive "$scratch/image.tar" --name "$CLUSTER"
        rm "$scratch/image.tar"
    done
}

install_pipelines() {
    say "Kubeflow Pipelines $KFP_VERSION"
    kube apply -k "$KFP_MANIFESTS/cluster-scoped-resources?ref=$KFP_VERSION"
    kube wait --for=condition=established --timeout=60s crd/applications.app.k8s.io
    kube apply -k "$KFP_MANIFESTS/env/platform-agnostic?ref=$KFP_VERSION"
    kube --namespace kubeflow wait --for=condition=Available deployments --all --timeout=1200s
}

# MLflow's Secret: a password of chance, and the keys of Kubeflow's own storage. The file is kept, because the database
# keeps the password that it was made with.
write_secrets() {
    local file=manifests/overlays/kind/mlflow/mlflow.env
    [[ ! -e $file ]] || return 0
    local key secret password
    key=$(kube --namespace kubeflow get secret mlpipeline-minio-artifact --output 'jsonpath={.data.accesskey}' | base64 -d)
    secret=$(kube --namespace kubeflow get secret mlpipeline-minio-artifact --output 'jsonpath={.data.secretkey}' | base64 -d)
    password=$("$PYTHON" -c 'import secrets; print(secrets.token_hex(16))')
    (
        umask 077
        printf 'POSTGRES_PASSWORD=%s\nAWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\n' \
            "$password" "$key" "$secret" > "$file"
    )
}

install_ours() {
    say "MLflow, and what the tasks need"
    write_secrets
    kube apply -k manifests/overlays/kind
    kube --namespace yolo-distill rollout status statefulset/mlflow-postgres --timeout=600s
    kube --namespace yolo-distill rollout status deployment/mlflow --timeout=600s
}

forward() {
    local service=$1 from=$2 to=$3
    kube --namespace kubeflow port-forward "service/$service" "$from:$to" > "$scratch/$service.log" 2>&1 &
    forwards+=($!)
    local _
    for _ in $(seq 60); do
        if (: < "/dev/tcp/127.0.0.1/$from") 2> /dev/null; then
            return
        fi
        kill -0 "${forwards[-1]}" 2> /dev/null || fail "port $from cannot be forwarded: $(cat "$scratch/$service.log")"
        sleep 1
    done
    fail "$service does not answer on port $from"
}

run_pipeline() {
    say "the pipeline"
    forward ml-pipeline "$PORT" 8888
    .venv/bin/yolo-distill submit --host "http://127.0.0.1:$PORT" --cluster manifests/overlays/kind/cluster.yaml \
        --service-account yolo-distill --wait "$@" | tee "$scratch/run.log"
}

print_table() {
    local run
    run=$(grep -oE '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}' "$scratch/run.log" | head -1)
    [[ -n $run ]] || fail "the run was not named"
    forward minio-service "$STORE_PORT" 9000
    kube --namespace kubeflow get secret mlpipeline-minio-artifact --output json |
        "$PYTHON" manifests/kind/table.py "http://127.0.0.1:$STORE_PORT" mlpipeline "$run"
}

forwards=()
scratch=$(mktemp -d)
# shellcheck disable=SC2317,SC2329  # called by the trap
clean_up() {
    [[ ${#forwards[@]} -eq 0 ]] || kill "${forwards[@]}" 2> /dev/null || true
    rm -rf "$scratch"
}
trap clean_up EXIT

check_prerequisites
start_cluster
load_images
install_pipelines
install_ours
run_pipeline "$@"
print_table
say "Kubeflow: kubectl --context $CONTEXT --namespace kubeflow port-forward service/ml-pipeline-ui 8080:80"
say "MLflow:   kubectl --context $CONTEXT --namespace yolo-distill port-forward service/mlflow 5000:5000"
