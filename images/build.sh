#!/usr/bin/env bash
# Builds and tags the container images: images/build.sh [cpu|cuda|tensorrt|mlflow …], all of them without a name.
#
# Settings, by environment variable:
#   ENGINE         docker, podman or buildah; the first that is installed
#   REGISTRY       what the tags begin with (localhost)
#   VERSION        what they end with (the version in pyproject.toml)
#   PYTHON_IMAGE   base image (the one pinned in the Dockerfiles)
#   PIP_INDEX_URL  package index (pip's own)
#   TORCH_INDEX    index with PyTorch for CPUs, for the cpu image; an empty one takes PyPI's build with CUDA
#   TENSORRT_INDEX index with TensorRT's libraries, for the tensorrt image
#   PIP_CONF       pip.conf for the time of the build, such as one with credentials; it stays out of the image
#   CA_BUNDLE      certificate authorities for the time of the build, in PEM
#   BUILD_FLAGS    more arguments for the engine, such as --network=host
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "error: $*" >&2
    exit 1
}

first_engine() {
    local name
    for name in docker podman buildah; do
        if command -v "$name" > /dev/null; then
            echo "$name"
            return
        fi
    done
    fail "none of docker, podman and buildah is installed; install one, or name another in ENGINE"
}

pinned() {
    sed -n "s/^$1==//p" constraints.txt
}

ENGINE=${ENGINE:-$(first_engine)}
REGISTRY=${REGISTRY:-localhost}
VERSION=${VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)}
TORCH_INDEX=${TORCH_INDEX-https://download.pytorch.org/whl/cpu}
TENSORRT_INDEX=${TENSORRT_INDEX-https://pypi.nvidia.com}
GIT_COMMIT=${GIT_COMMIT:-$(git rev-parse HEAD 2> /dev/null || true)}
command -v "$ENGINE" > /dev/null || fail "$ENGINE is not installed"

build() {
    local dockerfile=$1 tag=$2
    shift 2
    local arguments=(--file "$dockerfile" --tag "$tag" "$@" --build-arg "GIT_COMMIT=$GIT_COMMIT")
    [[ -z ${PYTHON_IMAGE:-} ]] || arguments+=(--build-arg "PYTHON_IMAGE=$PYTHON_IMAGE")
    [[ -z ${PIP_INDEX_URL:-} ]] || arguments+=(--build-arg "PIP_INDEX_URL=$PIP_INDEX_URL")
    [[ -z ${PIP_CONF:-} ]] || arguments+=(--secret "id=pip.conf,src=$PIP_CONF")
    [[ -z ${CA_BUNDLE:-} ]] || arguments+=(--secret "id=ca.pem,src=$CA_BUNDLE")
    # shellcheck disable=SC2206  # several flags in one variable
    arguments+=(${BUILD_FLAGS:-})
    echo "building $tag" >&2
    DOCKER_BUILDKIT=1 "$ENGINE" build "${arguments[@]}" .
}

task_image() {
    local flavour=$1
    shift
    build images/Dockerfile "$REGISTRY/yolo-distill-python:$VERSION-$flavour" \
        --build-arg "FLAVOUR=$flavour" --build-arg "VERSION=$VERSION" "$@"
}

[[ $# -gt 0 ]] || set -- cpu cuda tensorrt mlflow
for name in "$@"; do
    case $name in
        cpu) task_image cpu --build-arg "TORCH_INDEX=$TORCH_INDEX" ;;
        cuda) task_image cuda ;;
        tensorrt) task_image tensorrt --build-arg EXTRAS=pipeline,tensorrt --build-arg "TENSORRT_INDEX=$TENSORRT_INDEX" ;;
        mlflow)
            build images/mlflow/Dockerfile "$REGISTRY/yolo-distill-mlflow:$(pinned mlflow)" \
                --build-arg "VERSION=$(pinned mlflow)"
            ;;
        *) fail "there is no image named $name; there are cpu, cuda, tensorrt and mlflow" ;;
    esac
done
