#!/usr/bin/env bash
# Runs the whole pipeline twice on a tiny data set, from the same IR: each task as a process, then each as a container
# of the images, under KFP's DockerRunner and podman's Docker-compatible service. Debian, as root, without a registry.
#
#   tests/e2e/docker_runner.sh     (needs .venv or another PYTHON; builds the images that are missing)
#
# The program itself runs under the number 10001, and so do the containers.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-.venv/bin/python}
NUMBER=10001
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
export CONTAINERS_CONF=$PWD/tests/e2e/containers.conf
export YOLO_DISTILL_CPU_IMAGE=${YOLO_DISTILL_CPU_IMAGE:-localhost/yolo-distill-python:$VERSION-cpu}
export YOLO_DISTILL_TRAIN_IMAGE=${YOLO_DISTILL_TRAIN_IMAGE:-localhost/yolo-distill-python:$VERSION-cuda}
TINY=(
    "--data=digits:train=16,val=8,test=8,size=96" --imgsz=96 --epochs=2 --teacher-epochs=2 --teacher=yolov8n.yaml
    --student=yolov8n.yaml --batch=8 --views=1 --cache-parts=2 --calibration-images=8 --benchmark-seconds=1
)

fail() {
    echo "error: $*" >&2
    exit 1
}

say() {
    echo "== $*" >&2
}

[[ $(id -u) -eq 0 ]] || fail "the container engine is run as root"
[[ -x $PYTHON ]] || fail "$PYTHON is missing: run make setup, or name another in PYTHON"
missing=()
for image in "$YOLO_DISTILL_CPU_IMAGE" "$YOLO_DISTILL_TRAIN_IMAGE"; do
    podman image exists "$image" 2> /dev/null || missing+=("${image##*-}")
done
[[ ${#missing[@]} -eq 0 ]] || tests/e2e/build_images.sh "${missing[@]}"

scratch=$(mktemp -d)
service=
# shellcheck disable=SC2317,SC2329  # called by the trap
clean_up() {
    [[ -z $service ]] || kill "$service" 2> /dev/null || true
    rm -rf "$scratch"
}
trap clean_up EXIT
chown $NUMBER:$NUMBER "$scratch"

podman system service --time=0 "unix://$scratch/engine.sock" 2> "$scratch/engine.log" &
service=$!
for _ in $(seq 60); do
    [[ ! -S $scratch/engine.sock ]] || break
    sleep 0.5
done
chown $NUMBER "$scratch/engine.sock" || fail "podman's service did not start: $(cat "$scratch/engine.log")"

# A user without rights. Python may lie in root's home, so that this one may read everything; its containers may not.
# No function, whose process in the background would be a shell and not the program.
as_user=(
    setpriv "--reuid=$NUMBER" "--regid=$NUMBER" --clear-groups --no-new-privs
    "--inh-caps=-all,+dac_read_search" "--ambient-caps=-all,+dac_read_search"
    env "--chdir=$scratch" "HOME=$scratch" "DOCKER_HOST=unix://$scratch/engine.sock"
)
program=$(cd "$(dirname "$PYTHON")" && pwd)/yolo-distill
run() {
    "${as_user[@]}" "$program" run "${TINY[@]}" "$@"
}

containers_left() {
    podman ps --all --quiet --filter label=yolo-distill.run
}

# The images of the containers that the latest run started.
started() {
    local run
    run=$("$PYTHON" -c 'import json, sys; print(json.load(sys.stdin)["run_id"])' < "$scratch/docker/latest/run.json")
    podman events --stream=false --filter event=start --filter "label=yolo-distill.run=$run" --format '{{.Image}}'
}

say "each task a process"
run --output subprocess

say "each task a container"
run --runner docker --output docker
started > "$scratch/started"
sort "$scratch/started" | uniq --count >&2

say "what came of it"
for runner in subprocess docker; do
    sha256sum "$scratch/$runner/latest/pipeline.yaml" | cut -d ' ' -f 1
done > "$scratch/digests"
[[ $(sort -u "$scratch/digests" | wc -l) -eq 1 ]] || fail "the two runs were not of the same IR"
echo "IR: sha256:$(head -1 "$scratch/digests")"
"${as_user[@]}" "$program" compile --output again.yaml > /dev/null
cmp "$scratch/again.yaml" "$scratch/docker/latest/pipeline.yaml" || fail "that is not what compile writes"
"$PYTHON" - "$scratch" $NUMBER << 'PYTHON'
import json, os, sys
from pathlib import Path

from mlflow import MlflowClient

scratch, number = Path(sys.argv[1]), int(sys.argv[2])
run = (scratch / "docker" / "latest").resolve()
events = {file.stem: [json.loads(line) for line in file.open()] for file in (run / "events").glob("*.jsonl")}
done = {name for name, lines in events.items() if lines[-1].get("state") == "done"}
failed = {name for name, lines in events.items() if lines[-1].get("state") not in {"done", "skipped"}}
assert not failed, failed
started = (scratch / "started").read_text().split()
assert len(started) == len(done), (len(started), len(done))
images = {os.environ["YOLO_DISTILL_CPU_IMAGE"], os.environ["YOLO_DISTILL_TRAIN_IMAGE"]}
assert set(started) == images, set(started)
owners = {os.lstat(path).st_uid for path in (scratch / "docker").rglob("*")}
assert owners == {number}, owners
client = MlflowClient(f"sqlite:///{scratch}/docker/mlflow.db")
runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
tasks = [one for one in runs if "mlflow.parentRunId" in one.data.tags]
ids = json.loads((run / "run.json").read_text())["images"]
assert {one.data.tags["yolo_distill.image"] for one in tasks} == {f"{name} {key}" for name, key in ids.items()}
assert {one.info.status for one in runs} == {"FINISHED"}
assert len(tasks) == len(done), (len(tasks), len(done))
roles = [model["role"] for model in json.loads(next((run / "comparison").glob("*.json")).read_text())["models"]]
assert roles == ["teacher", "plain", "distilled", "openvino", "quantized"], roles
print(f"{len(done)} tasks, each in a container of its own; all files belong to {number}; recorded with their images")
PYTHON
[[ -z $(containers_left) ]] || fail "containers are left over"

say "again, from the cache"
run --runner docker --output docker > "$scratch/again.log"
[[ $(grep -c ': cached' "$scratch/again.log") -eq $(wc -l < "$scratch/started") ]] || fail "$(cat "$scratch/again.log")"
[[ -z $(started) ]] || fail "containers were started for what was cached"

say "a step that refuses its data"
mkdir "$scratch/data" "$scratch/data/images" "$scratch/data/labels"
printf 'no image' > "$scratch/data/images/one.jpg"
printf '0 0.5 0.5 0.1 0.1\n' > "$scratch/data/labels/one.txt"
printf 'path: .\ntrain: images\nval: images\nnames: [thing]\n' > "$scratch/data/data.yaml"
status=0
"${as_user[@]}" "$program" run --runner docker --data "$scratch/data" --output refused > "$scratch/refused.log" 2>&1 || status=$?
[[ $status -eq 2 ]] || fail "it ended with $status: $(cat "$scratch/refused.log")"
tail -1 "$scratch/refused.log"
[[ -z $(containers_left) ]] || fail "containers are left over"

say "an interruption"
"${as_user[@]}" "$program" run "${TINY[@]}" --runner docker --no-cache --epochs=1000 --output interrupted \
    > "$scratch/interrupted.log" 2>&1 &
interrupted=$!
# Either student may come first.
until grep -q 'Train the student .*: epoch' "$scratch/interrupted.log"; do
    kill -0 $interrupted 2> /dev/null || fail "it ended early: $(cat "$scratch/interrupted.log")"
    sleep 0.5
done
sleep 5
[[ -n $(containers_left) ]] || fail "nothing runs: $(cat "$scratch/interrupted.log")"
kill -TERM $interrupted
status=0
wait $interrupted || status=$?
[[ $status -eq 143 ]] || fail "it ended with $status: $(cat "$scratch/interrupted.log")"
[[ -z $(containers_left) ]] || fail "containers are left over"
echo "passed"
