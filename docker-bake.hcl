# All images at once: docker buildx bake. images/build.sh builds the same ones with podman and buildah too.

variable "REGISTRY" {
  default = "localhost"
}

variable "VERSION" {
  default = "0.1.0"
}

variable "MLFLOW_VERSION" {
  default = "3.17.2"
}

variable "GIT_COMMIT" {
  default = ""
}

variable "PYTHON_IMAGE" {
  default = "docker.io/library/python:3.11-slim-bookworm@sha256:528257d48c1da0dcecc2e725d1ae34498d60c965f1241e39cd6a85a8859bdf84"
}

variable "PIP_INDEX_URL" {
  default = ""
}

variable "TORCH_INDEX" {
  default = "https://download.pytorch.org/whl/cpu"
}

variable "TENSORRT_INDEX" {
  default = "https://pypi.nvidia.com"
}

group "default" {
  targets = ["cpu", "cuda", "tensorrt", "mlflow"]
}

target "_common" {
  context   = "."
  platforms = ["linux/amd64"]
  args = {
    PYTHON_IMAGE  = PYTHON_IMAGE
    PIP_INDEX_URL = PIP_INDEX_URL
    GIT_COMMIT    = GIT_COMMIT
  }
}

target "cpu" {
  inherits   = ["_common"]
  dockerfile = "images/Dockerfile"
  tags       = ["${REGISTRY}/yolo-distill-python:${VERSION}-cpu"]
  args = {
    FLAVOUR     = "cpu"
    VERSION     = VERSION
    TORCH_INDEX = TORCH_INDEX
  }
}

target "cuda" {
  inherits   = ["_common"]
  dockerfile = "images/Dockerfile"
  tags       = ["${REGISTRY}/yolo-distill-python:${VERSION}-cuda"]
  args = {
    FLAVOUR = "cuda"
    VERSION = VERSION
  }
}

target "tensorrt" {
  inherits   = ["_common"]
  dockerfile = "images/Dockerfile"
  tags       = ["${REGISTRY}/yolo-distill-python:${VERSION}-tensorrt"]
  args = {
    FLAVOUR        = "tensorrt"
    VERSION        = VERSION
    EXTRAS         = "pipeline,tensorrt"
    TENSORRT_INDEX = TENSORRT_INDEX
  }
}

target "mlflow" {
  inherits   = ["_common"]
  dockerfile = "images/mlflow/Dockerfile"
  tags       = ["${REGISTRY}/yolo-distill-mlflow:${MLFLOW_VERSION}"]
  args = {
    VERSION = MLFLOW_VERSION
  }
}
