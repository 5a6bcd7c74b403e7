"""Who may use a storage, how it is found, and what is said when that fails: one line, without secrets."""

import json
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
import requests
import trustme

from tests.shared_storage.faults import Fault, Proxy, serve_proxy
from yolo_distill.components.shared.errors import InputError
from yolo_distill.components.shared.files import sha256_file
from yolo_distill.components.shared.storage import StoredFolder

ADDRESS = "s3://data/some/where"
MAY_ALL = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
MAY_LIST = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:List*", "Resource": "*"}]}


def opened(address: str = ADDRESS) -> StoredFolder:
    return StoredFolder.at(address, address)


def actions(tmp_path: Path) -> list[Callable[[StoredFolder], object]]:
    """Everything that can be done to a storage."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * 10)
    return [
        lambda folder: folder.require(),
        lambda folder: folder.read_bytes("name"),
        lambda folder: folder.write_bytes("name", b"x"),
        lambda folder: folder.describe("name"),
        lambda folder: folder.upload(file, "name", sha256_file(file)),
        lambda folder: folder.download("name", tmp_path / "back", sha256_file(file)),
    ]


def refusal(action: Callable[[StoredFolder], object], folder: StoredFolder | None = None) -> str:
    """The message; neither it nor the traceback may tell a secret."""
    with pytest.raises(InputError) as caught:
        action(folder or opened())
    error = caught.value
    assert error.__cause__ is None and error.__suppress_context__
    assert "\n" not in str(error)
    assert "s3cret" not in str(error)
    return str(error)


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("InvalidAccessKeyId", 403, "it does not know this access key. Give boto3 credentials"),
        ("SignatureDoesNotMatch", 403, "the secret key does not fit the access key. Give boto3 credentials"),
        ("ExpiredToken", 400, "the session token has expired. Renew it"),
        ("InvalidToken", 400, "the session token does not fit"),
        ("AccessDenied", 403, "these credentials may not do that"),
        ("RequestTimeTooSkewed", 403, "this machine's clock is wrong. Set the clock"),
        ("NoSuchBucket", 404, "does not exist: there is no such bucket at http://127.0.0.1"),
        ("InternalError", 500, "it is broken. Try again later"),
        ("Odd\nthing", 400, "the storage refuses it (Odd thing)"),
    ],
)
def test_refusals_are_one_clear_line(proxy: Proxy, tmp_path: Path, code: str, status: int, words: str) -> None:
    folder = opened()
    for number, action in enumerate(actions(tmp_path)):
        proxy.faults = [
            Fault("status", method, times=float("inf"), code=code, status=status)
            for method in ("GET", "PUT", "POST", "HEAD")
        ]
        if code == "NoSuchBucket" and number in {1, 3, 5}:
            # To ask for one object there is to be told of a missing object.
            continue
        message = refusal(action, folder)
        assert words in message
        assert message.startswith(ADDRESS)


@pytest.fixture
def guarded(proxy: Proxy, server: str) -> Iterator[Callable[[dict], dict[str, str]]]:
    """Makes users with a policy, in a storage that checks signatures and policies."""
    iam = boto3.Session().client("iam", endpoint_url=f"http://{server}", region_name="us-east-1")
    names = []

    def user(policy: dict) -> dict[str, str]:
        name = f"user{len(names)}"
        names.append(name)
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="policy", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        requests.post(f"http://{server}/moto-api/reset-auth", data=b"0", timeout=10).raise_for_status()
        return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}

    yield user
    requests.post(f"http://{server}/moto-api/reset-auth", data=b"inf", timeout=10).raise_for_status()
    for name in names:
        for key in iam.list_access_keys(UserName=name)["AccessKeyMetadata"]:
            iam.delete_access_key(UserName=name, AccessKeyId=key["AccessKeyId"])
        iam.delete_user_policy(UserName=name, PolicyName="policy")
        iam.delete_user(UserName=name)


def test_a_storage_that_checks(
    guarded: Callable[[dict], dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = guarded(MAY_ALL)
    for name, value in right.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "file").write_bytes(b"content")
    opened().upload(tmp_path / "file", "name", sha256_file(tmp_path / "file"))
    opened().download("name", tmp_path / "back", sha256_file(tmp_path / "file"))
    assert (tmp_path / "back").read_bytes() == b"content"

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    folder = opened()
    for action in actions(tmp_path):
        message = refusal(action, folder)
        assert "(SignatureDoesNotMatch): the secret key does not fit the access key" in message
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAUNKNOWN")
    folder = opened()
    for action in actions(tmp_path):
        assert "(InvalidAccessKeyId): it does not know this access key" in refusal(action, folder)


def test_what_somebody_may_not_do(
    guarded: Callable[[dict], dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in guarded(MAY_LIST).items():
        monkeypatch.setenv(name, value)
    require, *others = actions(tmp_path)
    folder = opened()
    require(folder)
    for action in others:
        assert "these credentials may not do that" in refusal(action, folder)


def test_no_credentials(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "there are no credentials for it. Give boto3 credentials" in refusal(actions(tmp_path)[0])
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    folder = opened()
    for action in actions(tmp_path):
        assert "there are no credentials for it. Give boto3 credentials" in refusal(action, folder)


def test_credentials_in_an_address_are_refused(proxy: Proxy) -> None:
    with pytest.raises(InputError, match=r"^s3://…@bucket: has credentials in it\. Give them to boto3") as caught:
        opened("s3://AKIA:s3cret@bucket/folder")
    assert "AKIA" not in str(caught.value) and "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("http://127.0.0.1:9", "the storage at http://127.0.0.1:9 does not answer. Check the network and AWS_ENDPOINT"),
        ("http://me:s3cret@127.0.0.1:9", "the storage at http://127.0.0.1:9 does not answer"),
        ("http://no-such-host.invalid", "the storage at http://no-such-host.invalid does not answer"),
        ("not an address", "cannot be read or written: Invalid endpoint"),
        ("http://me:s3cret@not an address", "cannot be read or written: Invalid endpoint"),
    ],
)
def test_wrong_endpoints(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str, words: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    for action in actions(tmp_path)[:2]:
        assert words in refusal(action)


# Where credentials and settings come from


def signer(proxy: Proxy) -> str:
    """Whose key has signed the last request to the bucket."""
    authorization = proxy.seen("GET", "^/data")[-1].headers["Authorization"]
    return authorization.partition("Credential=")[2].partition("/")[0]


def test_from_the_environment(proxy: Proxy) -> None:
    opened().require()
    assert signer(proxy) == "someone"


def test_from_a_profile(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    (tmp_path / "aws-credentials").write_text("[lab]\naws_access_key_id = lab\naws_secret_access_key = s3cret\n")
    (tmp_path / "aws-config").write_text(f"[profile lab]\nendpoint_url = {proxy.address}\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    opened().require()
    assert signer(proxy) == "lab"
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "cannot be read or written: The config profile (nobody) could not be found" in refusal(StoredFolder.require)


def test_from_a_program(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    program = tmp_path / "program"
    program.write_text("import sys; sys.exit('the s3cret does not work')")
    (tmp_path / "aws-config").write_text(f"[profile lab]\ncredential_process = {sys.executable} {program}\n")
    assert "the credentials for it cannot be fetched by custom-process. Check the profile" in refusal(
        StoredFolder.require
    )


def test_from_the_role_of_a_pod(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """IRSA: the pod's token is exchanged for keys that hold for an hour."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/distiller")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    assert "cannot be fetched by assume-role-with-web-identity. Check the profile, or AWS_WEB_IDENTITY" in refusal(
        StoredFolder.require
    )
    (tmp_path / "token").write_text("header.s3cret.signature")
    opened().require()
    assert b"AssumeRoleWithWebIdentity" in proxy.seen("POST")[-1].body
    assert signer(proxy).startswith("ASIA")
    assert "X-Amz-Security-Token" in proxy.seen("GET", "^/data")[-1].headers
    proxy.faults = [Fault("status", "POST", times=9, code="InvalidIdentityToken", status=400)]
    assert "the role for it cannot be taken on (InvalidIdentityToken). Check AWS_ROLE_ARN" in refusal(
        StoredFolder.require
    )


@pytest.mark.parametrize(
    ("endpoint", "style", "url"),
    [
        ("https://storage.example:9000", None, "https://storage.example:9000/data/key"),
        ("https://storage.example:9000", "virtual", "https://data.storage.example:9000/key"),
        (None, None, "https://data.s3.amazonaws.com/key"),
        (None, "path", "https://s3.amazonaws.com/data/key"),
    ],
)
def test_where_the_bucket_stands(
    proxy: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    endpoint: str | None,
    style: str | None,
    url: str,
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    if style:
        (tmp_path / "aws-config").write_text(f"[default]\ns3 =\n    addressing_style = {style}\n")
    signed = opened().client.generate_presigned_url("get_object", Params={"Bucket": "data", "Key": "key"})
    assert signed.partition("?")[0] == url


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def over_tls(proxy: Proxy, server: str, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A way to the storage by TLS, whose certificate an authority of our own has signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with serve_proxy(server, lambda sock: context.wrap_socket(sock, server_side=True)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        yield proxy


def test_an_authority_of_ones_own(
    over_tls: Proxy, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    file = tmp_path / "file"
    file.write_bytes(bytes(20_000_000))
    opened().upload(file, "name", sha256_file(file))
    over_tls.faults = [Fault("reset", after=1 << 20, times=4), Fault("cut", after=1 << 20, times=2)]
    opened().download("name", tmp_path / "back", sha256_file(file))
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert not any(fault.times for fault in over_tls.faults)


def test_an_unknown_authority(over_tls: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = opened()
    for action in actions(tmp_path)[2:5]:
        message = refusal(action, folder)
        assert f"no TLS connection to {over_tls.address}: " in message
        assert "certificate" in message
        assert "Name the file of its certificate authority in AWS_CA_BUNDLE" in message
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "other.pem"))
    assert f"no TLS connection to {over_tls.address}: " in refusal(StoredFolder.require)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "nothing.pem"))
    assert "AWS_CA_BUNDLE" in refusal(StoredFolder.require)
    assert over_tls.requests == []


# Memory


TRANSFER = """
import sys
from pathlib import Path
import psutil
from yolo_distill.components.benchmark.machine import peak_memory_bytes
from yolo_distill.components.shared.storage import StoredFolder
file, back, sha256 = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
before = psutil.Process().memory_info().rss
folder = StoredFolder.at("s3://data/some/where", "s3://data/some/where")
folder.upload(file, "name", sha256)
folder.download("name", back, sha256)
print("grown", peak_memory_bytes() - before)
"""


def test_memory_does_not_grow_with_the_file(proxy: Proxy, server: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    with file.open("wb") as content:
        content.truncate(128 << 20)
    command = [sys.executable, "-c", TRANSFER, str(file), str(tmp_path / "back"), sha256_file(file)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert int(output.rpartition("grown ")[2]) < 100 << 20
