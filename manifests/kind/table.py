"""Prints the table of a pipeline run that Kubeflow keeps in its object storage.

kubectl … get secret mlpipeline-minio-artifact --output json | table.py ENDPOINT BUCKET RUN_ID
"""

import base64
import json
import re
import sys

import boto3


def main(endpoint: str, bucket: str, run_id: str) -> None:
    """Find the table below the run's root and print it.

    Args:
        endpoint: Address of the object storage.
        bucket: Bucket with the artifacts.
        run_id: Id of the run.

    Raises:
        SystemExit: The run has no table.
    """
    keys = {name: base64.b64decode(value).decode().strip() for name, value in json.load(sys.stdin)["data"].items()}
    storage = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=keys["accesskey"],
        aws_secret_access_key=keys["secretkey"],
    )
    pages = storage.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="v2/artifacts/")
    wanted = re.compile(rf".*/{re.escape(run_id)}/compare/(.*/)?table")
    found = [entry["Key"] for page in pages for entry in page.get("Contents", []) if wanted.fullmatch(entry["Key"])]
    if not found:
        sys.exit(f"error: run {run_id} left no table in {bucket} at {endpoint}")
    print(storage.get_object(Bucket=bucket, Key=found[0])["Body"].read().decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
