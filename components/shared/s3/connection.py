"""The connection to object storage, and what its failures mean for the user."""

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)

from yolo_distill.components.shared.errors import InputError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECTIONS = 16
CONNECT_SECONDS = 10
READ_SECONDS = 60
_RETRIES = 3
_NOT_FOUND = {"404", "NoSuchKey", "NoSuchBucket"}
_CREDENTIALS_REMEDY = "Give boto3 credentials that may use it: by environment variables, a profile or a role"
_RENEW = "Renew it: log in again, or fetch new credentials"
# What the storage answers, what it means, and what to do.
_REFUSALS = {
    "InvalidAccessKeyId": ("it does not know this access key", _CREDENTIALS_REMEDY),
    "SignatureDoesNotMatch": ("the secret key does not fit the access key", _CREDENTIALS_REMEDY),
    "InvalidToken": ("the session token does not fit the access key", _CREDENTIALS_REMEDY),
    "ExpiredToken": ("the session token has expired", _RENEW),
    "TokenRefreshRequired": ("the session token has expired", _RENEW),
    "RequestTimeTooSkewed": ("this machine's clock is wrong", "Set the clock"),
    "PermanentRedirect": ("the bucket lies in another region", "Name it in AWS_DEFAULT_REGION"),
    "AuthorizationHeaderMalformed": ("the bucket lies in another region", "Name it in AWS_DEFAULT_REGION"),
    "PreconditionFailed": ("it was changed while it was read", "Try again"),
    "412": ("it was changed while it was read", "Try again"),
    "SlowDown": ("it is overloaded", "Try again later"),
    "ServiceUnavailable": ("it is overloaded", "Try again later"),
    "503": ("it is overloaded", "Try again later"),
    "InternalError": ("it is broken", "Try again later"),
    "500": ("it is broken", "Try again later"),
}
_FORBIDDEN = ("these credentials may not do that", _CREDENTIALS_REMEDY)


def connect() -> "S3Client":
    """Open a connection, which repeats by itself what fails for a moment.

    Endpoint, addressing style, region, CA and credentials are found by boto3, in the environment, the profile or the
    pod's role. A storage that an endpoint is named for gets its bucket in the path, unless the profile says otherwise.

    Raises:
        BotoCoreError: The settings or credentials are no good.
        ClientError: A role is refused.
        ValueError: The endpoint is no address.
    """
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"max_attempts": _RETRIES, "mode": "standard"},
        max_pool_connections=CONNECTIONS,
        # Its own are in trailers and headers that not every storage knows. Ours are Content-MD5 on the way up, which
        # all know, and digests of the whole file on the way down.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    # The default session would keep the credentials of an earlier call.
    session = boto3.Session()
    if credentials := session.get_credentials():
        try:
            # A role's token is read at its first use, wherever that may be.
            credentials.get_frozen_credentials()
        except (FileNotFoundError, PermissionError) as error:
            raise CredentialRetrievalError(provider=credentials.method, error_msg=str(error)) from error
    return session.client("s3", config=config)


def error_code(error: ClientError) -> str:
    """Return the short name of what a storage answers, such as ``NoSuchKey``; a bare status where it gives none."""
    return re.sub(r"\W+", " ", error.response.get("Error", {}).get("Code", "unknown"))[:60]


def is_missing(error: ClientError) -> bool:
    """Return whether a storage's answer says that there is no such object or bucket."""
    return error_code(error) in _NOT_FOUND


def explain(error: Exception, source: str, endpoint: str) -> InputError:
    """Return what the user can do about something that boto3 raised.

    Args:
        error: What it raised.
        source: The address at fault, without credentials.
        endpoint: The storage's own address.
    """
    # The names of single exceptions come before those of their families.
    match error:
        case ClientError():
            return _explain_refusal(error, source, endpoint)
        case NoCredentialsError() | PartialCredentialsError():
            return InputError(source, "there are no credentials for it", _CREDENTIALS_REMEDY)
        case CredentialRetrievalError():
            # Its text repeats what another program printed, which may be the secret.
            problem = f"the credentials for it cannot be fetched by {error.kwargs['provider']}"
            return InputError(source, problem, "Check the profile, or AWS_WEB_IDENTITY_TOKEN_FILE")
        case SSLError():
            reason = re.search(r"certificate verify failed: ([^(\]]+)", str(error))
            problem = reason.group(1).strip() if reason else _one_line(error)
            return InputError(
                source,
                f"no TLS connection to {_host(error, endpoint)}: {problem}",
                "Name the file of its certificate authority in AWS_CA_BUNDLE, and check AWS_ENDPOINT_URL",
            )
        case IncompleteReadError():
            return InputError(source, "the connection breaks off time and again", "Check the network and try again")
        case ConnectionError() | HTTPClientError():
            return InputError(
                source,
                f"the storage at {_host(error, endpoint)} does not answer",
                "Check the network and AWS_ENDPOINT_URL",
            )
        case _:
            return InputError(source, f"cannot be read or written: {_one_line(error)}", "Check the settings of boto3")


def _explain_refusal(error: ClientError, source: str, endpoint: str) -> InputError:
    code = error_code(error)
    if error.operation_name.startswith("AssumeRole"):
        return InputError(
            source,
            f"the role for it cannot be taken on ({code})",
            "Check AWS_ROLE_ARN, AWS_WEB_IDENTITY_TOKEN_FILE and whom the role trusts",
        )
    if code == "NoSuchBucket":
        return InputError(
            source, f"does not exist: there is no such bucket at {_host(error, endpoint)}", "Check bucket and endpoint"
        )
    if is_missing(error):
        return InputError(source, "does not exist", "Check bucket and key")
    forbidden = error.response["ResponseMetadata"]["HTTPStatusCode"] in {401, 403}
    meaning, remedy = _REFUSALS.get(code, _FORBIDDEN if forbidden else ("", _CREDENTIALS_REMEDY))
    return InputError(source, f"the storage refuses it ({code}){': ' if meaning else ''}{meaning}", remedy)


def _host(error: ClientError | BotoCoreError, endpoint: str) -> str:
    """Return which server an error is about, without user name, password and path."""
    url = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url") or endpoint))
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}"


def _one_line(error: Exception) -> str:
    return re.sub(r"//[^/@\s]*@", "//", " ".join(str(error).split()))
