#!/usr/bin/env bash
# Tests an image that images/build.sh made: images/test.sh IMAGE. It runs as on a locked-down cluster: not as root,
# without capabilities, with a read-only root file system, a writable /tmp and no network.
#
# Settings, by environment variable: ENGINE (docker or podman), RUN_FLAGS (more arguments for the engine).
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "error: $*" >&2
    exit 1
}

[[ $# -eq 1 ]] || fail "name one image: images/test.sh localhost/yolo-distill-python:0.1.0-cpu"
image=$1
engine=${ENGINE:-$(command -v docker > /dev/null && echo docker || echo podman)}
command -v "$engine" > /dev/null || fail "$engine is not installed"
# shellcheck disable=SC2206  # several flags in one variable
flags=(--rm --network=none --read-only --cap-drop=ALL --security-opt=no-new-privileges --tmpfs "/tmp:rw,mode=1777,size=2g" ${RUN_FLAGS:-})

run() {
    "$engine" run "${flags[@]}" "$@"
}

inspect() {
    "$engine" image inspect --format "$1" "$image"
}

user=$(inspect '{{.Config.User}}')
[[ $user == 10001:10001 ]] || fail "$image runs as '$user', not as the number 10001:10001"
for label in title version revision licenses; do
    value=$(inspect "{{index .Config.Labels \"org.opencontainers.image.$label\"}}")
    [[ -n $value && $value != '<no value>' ]] || fail "$image has no label org.opencontainers.image.$label"
    echo "$label: $value"
    [[ $label != title || $image == */yolo-distill-mlflow:* || $value == *"(${image##*-})" ]] ||
        fail "$image was built as $value"
done

# What is installed is what constraints.txt says, and nothing else.
run --interactive "$image" python3 - "$(grep -v '^#' constraints.txt)" << 'PYTHON'
import importlib.metadata as metadata
import re
import sys

normal = lambda name: re.sub(r"[-_.]+", "-", name).lower()
pinned = {normal(name): version for name, _, version in (line.partition("==") for line in sys.argv[1].split())}
found = {normal(d.name): d.version.partition("+")[0] for d in metadata.distributions() if d.name != "yolo-distill"}
wrong = sorted(f"{name} {version}" for name, version in found.items() if pinned.get(name) != version)
sys.exit(f"not as locked in constraints.txt: {', '.join(wrong)}" if wrong else 0)
PYTHON

case $image in
    */yolo-distill-mlflow:*)
        version=$(sed -n 's/^mlflow==//p' constraints.txt)
        said=$(run "$image" mlflow --version)
        [[ $said == *" $version" ]] || fail "$image says '$said'"
        run "$image" python3 -c 'import boto3, psycopg2'
        # shellcheck disable=SC2016  # expanded in the container
        run "$image" sh -ec '
            mlflow server --backend-store-uri sqlite:////tmp/mlflow.db --artifacts-destination /tmp/artifacts &
            python3 - << "PYTHON"
import time, urllib.request
for _ in range(120):
    try:
        print(urllib.request.urlopen("http://127.0.0.1:5000/health").read().decode())
        break
    except OSError:
        time.sleep(1)
else:
    raise SystemExit("the server does not answer")
PYTHON
            kill $!'
        ;;
    *)
        version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
        said=$(run "$image" yolo-distill --version)
        [[ $said == "yolo-distill $version" ]] || fail "$image says '$said'"
        run --interactive "$image" python3 - < images/smoke.py
        # A platform may choose any number for the user.
        run --user 4321:0 "$image" yolo-distill --version > /dev/null
        ;;
esac
echo "$image: passed"
