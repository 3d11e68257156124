"""An S3-compatible server: OpenStack Swift with its S3 API, one node on loopback, objects below the stack's folder."""

import subprocess
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.hosts import user_name
from infra.stack.programs import swift_program
from infra.stack.stack import Stack

BUCKETS = ("facereel", "mlflow")
REGION = "us-east-1"
_PARTS = ("account", "container", "object")
_COMMON = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
swift_dir = {folder}
devices = {devices}
mount_check = false
user = {user}
log_level = WARNING
fallocate_reserve = 0
disable_fallocate = true
"""
_PART = """[pipeline:main]
pipeline = {part}-server
[app:{part}-server]
use = egg:swift#{part}
recon_cache_path = {folder}
"""
_PROXY = """[pipeline:main]
pipeline = catch_errors cache listing_formats bulk s3api tempauth copy slo dlo versioned_writes symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
error_suppression_interval = 3600
error_suppression_limit = 1
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
location = {region}
allow_multipart_uploads = true
min_segment_size = 5242880
s3_acl = false
[filter:tempauth]
use = egg:swift#tempauth
user_stack_{key} = {secret} .admin .reseller_admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:symlink]
use = egg:swift#symlink
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true
allow_object_versioning = true
"""
# The hash of an object's path decides where it lies: with other words, earlier data would be lost.
_SWIFT = """[swift-hash]
swift_hash_path_suffix = facereel
swift_hash_path_prefix = stack
[storage-policy:0]
name = gold
default = yes
policy_type = replication
[swift-constraints]
max_file_size = 5368709122
"""


def start_swift(stack: Stack, venv: Path) -> None:
    """Write its files and start its four servers."""
    folder, ports = stack.folder.config / "swift", stack.state.ports
    folder.mkdir(exist_ok=True)
    devices = stack.folder.data / "s3"
    (devices / "disk").mkdir(parents=True, exist_ok=True)
    (folder / "swift.conf").write_text(_SWIFT)
    user = user_name()

    def common(port: int) -> str:
        return _COMMON.format(port=port, folder=folder, devices=devices, user=user)

    for part in _PARTS:
        port = ports[f"s3_{part}"]
        (folder / f"{part}-server.conf").write_text(common(port) + _PART.format(part=part, folder=folder))
        _make_ring(swift_program(venv, "swift-ring-builder"), folder / f"{part}.builder", port)
    proxy = _PROXY.format(region=REGION, key=stack.state.s3_key, secret=stack.state.s3_secret)
    stack.folder.write_secret(folder / "proxy-server.conf", common(ports["s3"]) + proxy)
    for part in (*_PARTS, "proxy"):
        where = f"127.0.0.1:{ports['s3' if part == 'proxy' else f's3_{part}']}"
        what = f"S3 at http://{where}, buckets {', '.join(BUCKETS)}" if part == "proxy" else f"its part, at {where}"
        command = [swift_program(venv, f"swift-{part}-server"), folder / f"{part}-server.conf"]
        stack.launch(f"s3-{part}", command, what, {"SWIFT_ROOT": str(folder)})


def make_buckets(stack: Stack) -> bool:
    """Whether the server answers and stores an object; then its buckets exist."""
    client = boto3.client(
        "s3",
        endpoint_url=endpoint(stack),
        region_name=REGION,
        aws_access_key_id=access_key(stack),
        aws_secret_access_key=stack.state.s3_secret,
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=20),
    )
    try:
        there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
        for name in BUCKETS:
            if name not in there:
                client.create_bucket(Bucket=name)
        client.put_object(Bucket=BUCKETS[0], Key=".stack", Body=b"up")
        return client.get_object(Bucket=BUCKETS[0], Key=".stack")["Body"].read() == b"up"
    except (BotoCoreError, ClientError):
        return False


def endpoint(stack: Stack) -> str:
    """The server's address."""
    return f"http://127.0.0.1:{stack.state.ports['s3']}"


def access_key(stack: Stack) -> str:
    """Swift's names have two parts: account and user."""
    return f"stack:{stack.state.s3_key}"


def _make_ring(program: Path, builder: Path, port: int) -> None:
    """One disk: the ring says on which port its server listens, so it is made anew at every start."""
    builder.unlink(missing_ok=True)
    for arguments in (["create", "4", "1", "1"], ["add", f"r1z1-127.0.0.1:{port}/disk", "1"], ["rebalance"]):
        done = subprocess.run([program, builder, *arguments], capture_output=True, text=True, check=False)
        if done.returncode > 1:  # 1: a warning
            raise RuntimeError(f"swift-ring-builder {arguments[0]}: {done.stdout.strip()[-500:]} {done.stderr[-500:]}")
