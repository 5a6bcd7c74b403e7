#!/usr/bin/env bash
# Builds and tests the images on a machine without a registry: Debian, as root, with Debian's and PyPI's packages only.
#
#   tests/e2e/build_images.sh [cpu|cuda|mlflow …]     (cpu without a name)
#
# The base image is made by debootstrap. What the build needs to reach a package index (pip's settings, the machine's
# certificate authorities) is given to it as secrets and stays out of the images.
set -euo pipefail
cd "$(dirname "$0")/../.."

BASE=localhost/python:3.11-slim
# What podman's copies take beside the images; less is enough where their dependencies are in its cache.
FREE_GB=${FREE_GB:-40}
export CONTAINERS_CONF=$PWD/tests/e2e/containers.conf
export ENGINE=podman PYTHON_IMAGE=$BASE TORCH_INDEX=${TORCH_INDEX-}

fail() {
    echo "error: $*" >&2
    exit 1
}

[[ $(id -u) -eq 0 ]] || fail "debootstrap needs root"
grep -q '^ID=debian' /etc/os-release || fail "this procedure is for Debian; elsewhere use images/build.sh"
[[ $(df --output=avail -BG / | tail -1 | tr -dc 0-9) -ge $FREE_GB ]] || fail "$FREE_GB GB of disk are needed"
if ! command -v podman > /dev/null || ! command -v debootstrap > /dev/null; then
    apt-get update -qq
    apt-get install -y --no-install-recommends \
        podman buildah runc debootstrap iptables netavark aardvark-dns catatonit
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if ! podman image exists $BASE; then
    debootstrap --variant=minbase --include=ca-certificates bookworm "$scratch/root" http://deb.debian.org/debian
    rm -rf "$scratch/root"/var/cache/apt/archives/*.deb "$scratch/root"/var/lib/apt/lists/*
    tar -C "$scratch/root" -cf "$scratch/root.tar" .
    podman import "$scratch/root.tar" localhost/debian:bookworm
    rm -rf "$scratch/root" "$scratch/root.tar"
    podman build --tag $BASE - << 'DOCKERFILE'
FROM localhost/debian:bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt
DOCKERFILE
fi

export CA_BUNDLE=${CA_BUNDLE:-/etc/ssl/certs/ca-certificates.crt}
[[ $# -gt 0 ]] || set -- cpu
images/build.sh "$@"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
for name in "$@"; do
    case $name in
        mlflow) image=localhost/yolo-distill-mlflow:$(sed -n 's/^mlflow==//p' constraints.txt) ;;
        *) image=localhost/yolo-distill-python:$version-$name ;;
    esac
    images/test.sh "$image"
done
podman images --filter reference='localhost/*'
